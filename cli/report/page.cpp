// report_page.cpp: pages that need no other file, and how they get to the disk.

#include "cli/report/page.h"

#include <fmt/format.h>
#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "cli/compare/comparison.h"
#include "cli/files.h"
#include "cli/report/style.h"
#include "core/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

/// The folder itself, or the nearest one above it that is there.
fs::path nearest_folder(const std::string& field, const std::string& folder) {
    std::error_code ignored;
    fs::path nearest = fs::absolute(folder, ignored);
    if (folder.empty()) reject(field, folder, "must be a folder that can be made");
    while (!fs::exists(nearest, ignored) && nearest.has_relative_path())
        nearest = nearest.parent_path();
    if (!fs::is_directory(nearest, ignored))
        reject(field, folder, "must be a folder that can be made (it is a file)");
    return nearest;
}

[[noreturn]] void reject_unwritable(const std::string& field, const std::string& folder,
                                    const std::string& reason) {
    reject(field, folder, fmt::format("must be a folder to write in ({})", reason));
}

}  // namespace

std::string make_page(const std::string& title, const std::string& body) {
    return fmt::format(
        R"(<!doctype html>
<html lang='en'><head><meta charset='utf-8'>
<meta name='viewport' content='width=device-width, initial-scale=1'>
<title>{}</title><style>{}</style></head><body>
{}<footer>Written by <code>moe compare</code>. This file needs no other.</footer>
</body></html>
)",
        title, kReportStyle, body);
}

void require_writable_folder(const std::string& field, const std::string& folder) {
    // As large as a report, so that a disk that is nearly full shows now
    const fs::path probe =
        nearest_folder(field, folder) / fmt::format(".moe-probe-{}", getpid());
    if (const auto failure = write_all({{probe, std::string(256 * 1024, ' ')}}))
        reject_unwritable(field, folder, failure->reason);
    std::error_code ignored;
    fs::remove(probe, ignored);
}

std::string write_page(const std::string& page, const std::string& folder) {
    const fs::path path = fs::path(folder) / "index.html";
    if (const auto failure = write_all({{path, page}}))
        reject_unwritable("--report", folder, failure->reason);
    return path;
}

}  // namespace moe
