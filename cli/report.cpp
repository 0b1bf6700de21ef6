// report.cpp: the comparison as a page.

#include <fmt/format.h>

#include <filesystem>
#include <fstream>

#include "cli/comparison.h"
#include "core/error.h"

namespace moe {
namespace fs = std::filesystem;

void require_writable_folder(const std::string& field, const std::string& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    const fs::path probe = fs::path(folder) / ".moe-probe";
    const bool written = bool(std::ofstream(probe) << "probe" << std::flush);
    fs::remove(probe, error);
    if (!written) reject(field, folder, "must be a folder that can be made and written");
}

std::string write_report(const Comparison& comparison, const std::string& folder) {
    const fs::path page = fs::path(folder) / "index.html";
    const fs::path draft = fs::path(folder) / "index.html.part";
    std::ofstream(draft) << fmt::format("<!doctype html><title>{}</title>", comparison.model);
    fs::rename(draft, page);
    return page;
}

}  // namespace moe
