#include "gpu/library.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <sstream>

#include "core/error.h"

namespace moe::gpu {
namespace {

namespace fs = std::filesystem;

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);)
        if (!part.empty()) parts.push_back(part);
    return parts;
}

/// What python3 prints for its search path; nothing where there is no Python.
std::string ask_python() {
    const std::unique_ptr<FILE, int (*)(FILE*)> pipe(
        popen("python3 -c 'import sys; print(\"\\n\".join(sys.path))' 2>/dev/null", "r"),
        pclose);
    std::string text;
    if (pipe == nullptr) return text;
    for (int c = std::fgetc(pipe.get()); c != EOF; c = std::fgetc(pipe.get()))
        text += static_cast<char>(c);
    return text;
}

/// nvidia/cublas/lib, nvidia/nccl/lib, nvidia/cu13/lib, … of every folder of packages.
const std::vector<std::string>& python_folders() {
    static const std::vector<std::string> folders = [] {
        std::vector<std::string> found;
        std::error_code ignored;
        for (const std::string& packages : split(ask_python(), '\n'))
            for (const auto& entry :
                 fs::directory_iterator(fs::path(packages) / "nvidia", ignored))
                if (const fs::path lib = entry.path() / "lib";
                    fs::is_directory(lib, ignored))
                    found.push_back(lib);
        return found;
    }();
    return folders;
}

}  // namespace

Library::Library(const std::vector<std::string>& names) {
    std::string why;
    const auto open = [&](const std::string& path) {
        handle_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle_ != nullptr)
            where_ = path;
        else if (const char* error = dlerror(); why.empty() && error != nullptr)
            why = error;
        return handle_ != nullptr;
    };
    const auto open_in = [&](const std::vector<std::string>& folders) {
        std::error_code ignored;
        for (const std::string& folder : folders)
            for (const std::string& name : names)
                if (const fs::path path = fs::path(folder) / name;
                    fs::exists(path, ignored) && open(path))
                    return true;
        return false;
    };
    const char* chosen = std::getenv("MOE_LIBRARY_PATH");
    if (open_in(split(chosen == nullptr ? "" : chosen, ':'))) return;
    for (const std::string& name : names)
        if (open(name)) return;
    if (!open_in(python_folders())) where_ = one_line(why);
}

void* Library::symbol(const char* name) const {
    return handle_ == nullptr ? nullptr : dlsym(handle_, name);
}

}  // namespace moe::gpu
