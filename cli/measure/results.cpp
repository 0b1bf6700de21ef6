// results.cpp: `moe results`, from measurements on file to the pages that show them.

#include <algorithm>
#include <filesystem>

#include "cli/commands.h"
#include "cli/measure/result_pages.h"
#include "cli/places.h"
#include "core/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

struct ResultsOptions {
    std::string root = project_root();
    std::optional<std::string> add;
    std::string commit;
    bool check = false;
};

std::string in_project(const ResultsOptions& options, const std::string& path) {
    return fs::path(options.root) / path;
}

/// A file as it is now, "" when there is none.
std::string present(const ResultsOptions& options, const std::string& path) {
    const std::string file = in_project(options, path);
    std::error_code ignored;
    return fs::exists(file, ignored) ? read_file("results", file) : "";
}

/// Every page and picture as the data want it, by its path from the project's folder.
std::vector<FileText> wanted_files(const ResultsOptions& options) {
    ResultPages pages = make_result_pages(read_shelf(options.root), options.commit);
    std::vector<FileText> files = std::move(pages.pictures);
    for (const auto& [page, regions] :
         {std::pair("README.md", pages.readme), std::pair("docs/speed.md", pages.speed)})
        files.push_back(
            {page,
             with_regions(page, read_file("page", in_project(options, page)), regions)});
    return files;
}

/// Pictures that the data do not lead to any more.
std::vector<std::string> left_over(const ResultsOptions& options,
                                   const std::vector<FileText>& wanted) {
    std::vector<std::string> pictures = pictures_on_shelf(options.root);
    std::erase_if(pictures, [&](const std::string& path) {
        return std::any_of(wanted.begin(), wanted.end(),
                           [&](const FileText& file) { return file.path == path; });
    });
    return pictures;
}

int check(const ResultsOptions& options) {
    const std::vector<FileText> wanted = wanted_files(options);
    const std::vector<std::string> stray = left_over(options, wanted);
    bool ok = stray.empty();
    for (const FileText& file : wanted)
        if (present(options, file.path) != file.text) {
            fmt::print("✗ {}: does not say what the data say; run moe results\n",
                       file.path);
            ok = false;
        }
    for (const std::string& path : stray)
        fmt::print("✗ {}: no page shows it; delete it\n", path);
    if (ok) fmt::print("✓ pages and pictures say what the data say\n");
    return ok ? kExitOk : kExitDiffers;
}

int write(const ResultsOptions& options) {
    const std::vector<FileText> wanted = wanted_files(options);
    std::vector<FileText> changed;
    for (const FileText& file : wanted)
        if (present(options, file.path) != file.text)
            changed.push_back({in_project(options, file.path), file.text});
    if (const auto failure = write_all(changed))
        reject("results", failure->path, "must be writable: " + failure->reason);
    for (const FileText& file : changed) fmt::print("wrote {}\n", file.path);
    if (changed.empty()) fmt::print("nothing changed\n");
    for (const std::string& path : left_over(options, wanted))
        fmt::print("no page shows {}; delete it\n", path);
    return kExitOk;
}

int run_results(const ResultsOptions& options) {
    if (options.root.empty() || !fs::is_directory(fs::path(options.root) / "docs"))
        reject("--root", options.root, "must be the project's folder, with docs/ in it");
    if (options.check) return check(options);
    if (!options.add) return write(options);
    fmt::print("Filed  {}\nmoe results shows it in the pages\n",
               add_to_shelf(options.root, *options.add));
    return kExitOk;
}

}  // namespace

void add_results(CommandLine& line) {
    auto options = std::make_shared<ResultsOptions>();
    Command& command = line.add(
        "results",
        "Write tables and pictures of the results in docs/results into README.md and "
        "docs/speed.md.\n"
        "Exit code: 0 done, 1 --check found a page that says something else, 2 bad "
        "input.\n\n"
        "Examples:\n"
        "  moe results --add moe-bench.json     (file a result)\n"
        "  moe results                          (show what is filed)\n"
        "  moe results --check");
    const Flag& add =
        command.option("--add", options->add, "File this result; one in its place stays");
    command
        .flag("--check", options->check,
              "Write nothing; exit code 1 when pages and data differ")
        .excludes(add);
    command.option("--root", options->root,
                   "The project's folder (default: the source tree)");
    command.option("--commit", options->commit,
                   "Label results of another commit than this one");
    command.runs([options] { return run_results(*options); });
}

}  // namespace moe
