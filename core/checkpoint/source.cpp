#include "core/checkpoint/source.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "core/error.h"

namespace moe::checkpoint {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

const std::string kIndexEnding = ".safetensors.index.json";

std::vector<std::string> files_ending(const std::string& dir, const std::string& ending) {
    std::vector<std::string> paths;
    for (const auto& entry : fs::directory_iterator(dir))
        if (entry.path().filename().string().ends_with(ending))
            paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    return paths;
}

/// "weight_map" of an index: the shard of every tensor.
std::map<std::string, std::string> read_index(const std::string& path) {
    const json index = json::parse(read_text_file(path), nullptr, false);
    if (!index.is_object() || !index.contains("weight_map") ||
        !index["weight_map"].is_object())
        reject(path, "no weight_map",
               "must be a JSON object with the file of each tensor");
    const std::string dir = fs::path(path).parent_path();
    std::map<std::string, std::string> path_of;
    for (const auto& [name, shard] : index["weight_map"].items()) {
        const std::string file = shard.is_string() ? shard.get<std::string>() : "";
        const bool is_name = !file.empty() && fs::path(file).filename() == fs::path(file);
        if (!is_name)
            reject(path + ": weight_map: \"" + name + "\"", shard.dump(),
                   "must be the name of a file beside the index");
        path_of[name] = dir + "/" + file;
    }
    return path_of;
}

/// The one to read of several; "" without any.
std::string choose_index(const std::string& dir) {
    const std::vector<std::string> found = files_ending(dir, kIndexEnding);
    const std::string usual = dir + "/model" + kIndexEnding;
    if (std::count(found.begin(), found.end(), usual) > 0) return usual;
    if (found.size() > 1)
        reject(dir, found[0] + " and " + found[1],
               "must have one index of shards, or model.safetensors.index.json");
    return found.empty() ? "" : found[0];
}

[[noreturn]] void reject_without_tensors(const std::string& dir) {
    const bool pickled = !files_ending(dir, ".bin").empty() ||
                         !files_ending(dir, ".pt").empty() ||
                         !files_ending(dir, ".pth").empty();
    reject(dir, pickled ? "pickled tensors" : "no *.safetensors",
           "must hold model.safetensors, or shards with their index");
}

const char* safetensors_name(DType dtype) {
    switch (dtype) {
        case DType::f64: return "F64";
        case DType::f32: return "F32";
        case DType::bf16: return "BF16";
        case DType::i64: return "I64";
        case DType::i32: return "I32";
        case DType::u8: return "U8";
    }
    return "?";
}

}  // namespace

std::string read_text_file(const std::string& path) {
    std::ifstream file(path);
    std::ostringstream text;
    if (!fs::is_regular_file(path) || !file || !(text << file.rdbuf()))
        reject(path, fs::exists(path) ? "unreadable" : "absent", "must be a text file");
    return text.str();
}

Source Source::folder(const std::string& dir) {
    if (!fs::is_directory(dir))
        reject(dir, fs::exists(dir) ? "no folder" : "absent",
               "must be a folder with config.json and *.safetensors");
    Source source;
    source.index_ = choose_index(dir);
    if (!source.index_.empty()) {
        source.path_of_ = read_index(source.index_);
    } else {
        std::vector<std::string> paths = files_ending(dir, ".safetensors");
        const std::string usual = dir + "/model.safetensors";
        if (std::count(paths.begin(), paths.end(), usual) > 0) paths = {usual};
        for (const std::string& path : paths) {
            const auto& file =
                source.files_.emplace(path, SafetensorsFile::open(path)).first->second;
            for (const std::string& name : file.names())
                if (!source.path_of_.emplace(name, path).second)
                    reject(path + ": tensor \"" + name + "\"", "twice",
                           "must not be in " + source.path_of_[name] + " as well");
        }
    }
    if (source.path_of_.empty()) reject_without_tensors(dir);
    for (const auto& [name, path] : source.path_of_) source.names_.push_back(name);
    return source;
}

Source Source::memory(const TensorMap& tensors) {
    Source source;
    source.memory_ = tensors;
    for (const auto& [name, tensor] : tensors) source.names_.push_back(name);
    return source;
}

const SafetensorsFile& Source::file_of(const std::string& name) const {
    const std::string& path = path_of_.at(name);
    auto found = files_.find(path);
    if (found == files_.end()) {
        if (!fs::exists(path))
            reject(path, "absent",
                   index_ + " says that tensor \"" + name + "\" is in this shard");
        found = files_.emplace(path, SafetensorsFile::open(path)).first;
    }
    if (!found->second.contains(name))
        reject(where(name), "absent", index_ + " says that it is in this shard");
    return found->second;
}

std::string Source::file(const std::string& name) const {
    const auto path = path_of_.find(name);
    return path == path_of_.end() ? "" : path->second;
}

std::string Source::where(const std::string& name) const {
    const std::string path = file(name);
    return one_line((path.empty() ? "" : path + ": ") + "tensor \"" + name + "\"");
}

Shape Source::shape(const std::string& name) const {
    const auto held = memory_.find(name);
    return held != memory_.end() ? held->second.shape() : file_of(name).shape(name);
}

std::string Source::dtype(const std::string& name) const {
    const auto held = memory_.find(name);
    return held != memory_.end() ? safetensors_name(held->second.dtype())
                                 : file_of(name).dtype(name);
}

Tensor Source::tensor(const std::string& name) const {
    const auto held = memory_.find(name);
    return held != memory_.end() ? held->second : file_of(name).mapped(name);
}

std::string Source::metadata(const std::string& name, const std::string& key) const {
    if (memory_.contains(name)) return "";
    const auto& strings = file_of(name).metadata();
    const auto found = strings.find(key);
    return found == strings.end() ? "" : found->second;
}

}  // namespace moe::checkpoint
