#include "cli/files.h"

#include <signal.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "core/error.h"

namespace moe {
namespace {

/// The process number keeps two runs, and the user's own files, out of the way.
std::string draft_of(const std::string& path) {
    return fmt::format("{}.{}.part", path, getpid());
}

/// Returns why not, or "".
std::string write_draft(const FileText& file) {
    std::error_code ignored;
    const auto status = std::filesystem::symlink_status(file.path, ignored);
    if (std::filesystem::is_directory(status))
        return std::generic_category().message(EISDIR);
    // A draft that moves here would take the place of a device, a pipe or a link.
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
        return "is no ordinary file";
    errno = 0;
    std::ofstream draft(draft_of(file.path), std::ios::binary);
    if (!draft.is_open()) return std::generic_category().message(errno);
    draft << file.text;
    draft.close();  // a full disk shows here at the latest
    if (draft) return "";
    return errno ? std::generic_category().message(errno) : "cannot be written";
}

/// Ctrl-C and its like wait until this ends: then no file is left half-written.
class HeldSignals {
  public:
    HeldSignals() {
        caught_ = 0;
        struct sigaction hold {};
        hold.sa_handler = [](int signal) { caught_ = signal; };
        hold.sa_flags = SA_RESTART;
        for (std::size_t i = 0; i < kHeld.size(); ++i)
            sigaction(kHeld[i], &hold, &before_[i]);
    }
    ~HeldSignals() {
        for (std::size_t i = 0; i < kHeld.size(); ++i)
            sigaction(kHeld[i], &before_[i], nullptr);
        if (caught_ != 0) std::raise(caught_);
    }
    HeldSignals(const HeldSignals&) = delete;
    HeldSignals& operator=(const HeldSignals&) = delete;

  private:
    static constexpr std::array kHeld = {SIGINT, SIGTERM, SIGHUP};
    static inline volatile std::sig_atomic_t caught_ = 0;
    std::array<struct sigaction, kHeld.size()> before_;
};

/// Makes the folders that a file lacks, and notes them in `made`, the innermost last.
void make_folders(const std::string& file, std::vector<std::filesystem::path>& made) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    std::vector<fs::path> missing;
    for (fs::path folder = fs::absolute(file, ignored).parent_path();
         !fs::exists(folder, ignored) && folder.has_relative_path();
         folder = folder.parent_path())
        missing.push_back(folder);
    for (auto folder = missing.rbegin(); folder != missing.rend(); ++folder)
        if (fs::create_directory(*folder, ignored)) made.push_back(*folder);
}

}  // namespace

std::string read_file(const std::string& field, const std::string& path) {
    std::error_code ignored;
    std::ifstream file(path, std::ios::binary);
    if (!file || std::filesystem::is_directory(path, ignored))
        reject(field, path, "must be a readable file");
    std::string text(std::istreambuf_iterator<char>(file), {});
    if (file.bad()) reject(field, path, "could not be read to its end");
    return text;
}

std::optional<WriteFailure> write_all(const std::vector<FileText>& files) {
    const HeldSignals held;
    std::optional<WriteFailure> failure;
    std::vector<std::filesystem::path> made;
    for (const FileText& file : files) make_folders(file.path, made);
    for (const FileText& file : files)
        if (const std::string reason = failure ? "" : write_draft(file); !reason.empty())
            failure = {file.path, reason};
    for (const FileText& file : files) {
        std::error_code error;
        if (!failure) std::filesystem::rename(draft_of(file.path), file.path, error);
        if (error) failure = {file.path, error.message()};
        if (failure) std::filesystem::remove(draft_of(file.path), error);
    }
    for (auto folder = made.rbegin(); failure && folder != made.rend(); ++folder) {
        std::error_code ignored;
        std::filesystem::remove(*folder, ignored);  // none that is not empty
    }
    return failure;
}

void Outputs::add(const std::string& flag, FileText file) {
    files_.push_back(std::move(file));
    flags_.push_back(flag);
}

void Outputs::write() const {
    const auto failure = write_all(files_);
    if (!failure) return;
    for (std::size_t i = 0; i < files_.size(); ++i)
        if (files_[i].path == failure->path)
            reject(flags_[i], failure->path,
                   "must be a file to write: " + failure->reason);
}

void write_file(const std::string& field, const FileText& file) {
    Outputs outputs;
    outputs.add(field, file);
    outputs.write();
}

}  // namespace moe
