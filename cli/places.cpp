#include "cli/places.h"

#include <unistd.h>

#include <climits>
#include <filesystem>

namespace moe {
namespace {

namespace fs = std::filesystem;

/// bin/.. of a bundle, which is known by its golden cases.
fs::path bundle() {
    const fs::path folder = fs::path(own_program()).parent_path().parent_path();
    std::error_code ignored;
    return fs::is_directory(folder / "golden", ignored) ? folder : fs::path();
}

/// In a bundle, or else in the source tree.
std::string find(const char* bundled, const char* source) {
    const fs::path folder = bundle();
    return folder.empty() ? fs::path(MOE_SOURCE_DIR) / source : folder / bundled;
}

/// In a bundle, or else in the build that this program is of: build/<preset>/cli/moe.
std::string find_built(const char* bundled, const char* built) {
    const fs::path folder = bundle();
    if (!folder.empty()) return folder / bundled;
    return fs::path(own_program()).parent_path().parent_path() / built;
}

}  // namespace

std::string own_program() {
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof path);
    return length < 0 ? std::string() : std::string(path, std::size_t(length));
}

std::string golden_folder() {
    return find("golden", "tests/golden");
}
std::string default_text() {
    return find("README.md", "README.md");
}
std::string moe_program() {
    return find_built("bin/moe", "cli/moe");
}
std::string tests_program() {
    return find_built("bin/moe_tests", "tests/moe_tests");
}
std::string c_library() {
    return find_built("lib/libmoe.so", "bench/libmoe.so");
}
std::string project_root() {
    return MOE_SOURCE_DIR;
}
std::string peers_script() {
    return find("bench/peers.py", "bench/peers.py");
}

}  // namespace moe
