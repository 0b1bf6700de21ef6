#include "cli/measure/result_shelf.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bench/result_words.h"
#include "cli/files.h"
#include "core/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

constexpr const char* kShelf = "docs/results";

/// docs/results/*/*<extension>, from `root`, sorted.
std::vector<std::string> files_on_shelf(const std::string& root,
                                        const std::string& extension) {
    const fs::path shelf = fs::path(root) / kShelf;
    std::vector<std::string> paths;
    if (!fs::exists(shelf)) return paths;
    std::error_code error;
    const auto require_readable = [&](const fs::path& folder) {
        if (error)
            reject("results", folder.string(),
                   "must be a folder that can be read (" + error.message() + ")");
    };
    for (const auto& folder : fs::directory_iterator(shelf, error)) {
        if (!folder.is_directory()) continue;
        for (const auto& file : fs::directory_iterator(folder.path(), error))
            if (file.path().extension() == extension)
                paths.push_back(file.path().lexically_relative(root));
        require_readable(folder.path());
    }
    require_readable(shelf);
    std::sort(paths.begin(), paths.end());
    return paths;
}

FiledResult read_filed(const std::string& root, const std::string& path) {
    const auto json =
        parse_json(path, read_file("result", (fs::path(root) / path).string()));
    FiledResult filed{path, fs::path(path).parent_path().filename(),
                      bench::version_of_result(json, path), std::nullopt};
    if (filed.version != bench::kResultVersion) return filed;
    filed.result = bench::result_from_json(json, path);
    if (const std::string place = place_of(*filed.result); place != path)
        reject("result", path, "belongs in " + place);
    return filed;
}

}  // namespace

std::string place_of(const bench::Result& result) {
    const std::string folder =
        result.kind == "gpu" ? bench::slug(result.device) : result.kind;
    if (folder.empty()) reject("device", result.device, "must have a letter or a digit");
    return fmt::format("{}/{}/{}-{}.json", kShelf, folder, result.created.substr(0, 10),
                       result.commit);
}

std::vector<FiledResult> read_shelf(const std::string& root) {
    std::vector<FiledResult> shelf;
    for (const std::string& path : files_on_shelf(root, ".json"))
        shelf.push_back(read_filed(root, path));
    const auto is_gpu = [](const FiledResult& filed) {
        return filed.device != "executor" && filed.device != "cpu";
    };
    const auto created = [](const FiledResult& filed) {
        return filed.result ? filed.result->created : std::string();
    };
    std::stable_sort(shelf.begin(), shelf.end(),
                     [&](const FiledResult& a, const FiledResult& b) {
                         if (is_gpu(a) != is_gpu(b)) return is_gpu(a);
                         if (a.device != b.device) return a.device < b.device;
                         return created(a) > created(b);
                     });
    return shelf;
}

std::string add_to_shelf(const std::string& root, const std::string& file) {
    const std::string text = read_file("--add", file);
    const bench::Result result = bench::result_from_json(parse_json(file, text), file);
    const std::string place = place_of(result);
    const fs::path path = fs::path(root) / place;
    std::error_code error;
    if (fs::exists(path, error))
        reject("--add", file, place + " is there already, and stays as it is");
    fs::create_directories(path.parent_path(), error);
    if (const auto failure = write_all({{path, text}}))
        reject("--add", file, fmt::format("{} {}", place, failure->reason));
    return place;
}

std::vector<std::string> pictures_on_shelf(const std::string& root) {
    return files_on_shelf(root, ".svg");
}

}  // namespace moe
