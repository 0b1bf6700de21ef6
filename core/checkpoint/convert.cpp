#include "core/checkpoint/convert.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/checkpoint/layouts.h"
#include "core/checkpoint/read_layer.h"
#include "core/error.h"

namespace moe::checkpoint {
namespace {

namespace fs = std::filesystem;

/// A folder that becomes `target` when all is in it, and goes away otherwise.
class NewFolder {
  public:
    NewFolder(const std::string& target, bool overwrite)
        : target_(fs::path(target).lexically_normal()), overwrite_(overwrite) {
        if (target_.filename().empty()) target_ = target_.parent_path();
        path_ = target_.string() + fmt::format(".partial-{}", ::getpid());
        std::error_code error;
        if (!fs::create_directory(path_, error))
            reject(path_.string(), error ? error.message() : "is there already",
                   "must be a folder that can be made");
    }
    NewFolder(const NewFolder&) = delete;
    ~NewFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    std::string file(const std::string& name) const { return (path_ / name).string(); }
    void finish() {
        const fs::path old = target_.string() + fmt::format(".old-{}", ::getpid());
        std::error_code error;
        if (overwrite_ && fs::exists(target_)) fs::rename(target_, old, error);
        if (!error) fs::rename(path_, target_, error);
        if (error) {
            std::error_code ignored;
            if (fs::exists(old)) fs::rename(old, target_, ignored);
            reject(target_.string(), error.message(), "must be a name to rename to");
        }
        fs::remove_all(old, error);
    }

  private:
    fs::path target_, path_;
    bool overwrite_;
};

/// A file of a folder that a conversion would not write; "" when there is none.
std::string other_file(const std::string& folder) {
    std::vector<std::string> others;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error)) {
        const std::string name = entry->path().filename().string();
        const bool ours = name == "config.json" || name.ends_with(".safetensors") ||
                          name.ends_with(".safetensors.index.json");
        std::error_code ignored;
        if (!ours || entry->is_directory(ignored)) others.push_back(name);
    }
    if (error) reject(folder, error.message(), "must be a folder that can be read");
    return others.empty() ? "" : *std::ranges::min_element(others);
}

void require_target(const Conversion& conversion) {
    const std::string& to = conversion.to;
    if (!fs::exists(to)) return;
    if (fs::equivalent(conversion.from, to))
        reject(to, "the same folder", "must be another than the checkpoint's");
    if (!conversion.overwrite)
        reject(to, "is there already", "must be a new folder, or --overwrite given");
    if (!fs::is_directory(to) || fs::is_symlink(to) || !fs::exists(to + "/config.json"))
        reject(to, "no checkpoint", "only a folder with config.json is overwritten");
    if (const std::string other = other_file(to); !other.empty())
        reject(to, "holds " + other,
               "only a folder of nothing but config.json, *.safetensors and "
               "*.safetensors.index.json is overwritten");
}

void write_text(const std::string& path, const std::string& text) {
    std::ofstream file(path, std::ios::binary);
    file << text << std::flush;
    if (!file) reject(path, "unwritable", "must be a file that can be written");
}

/// Layers with a router, ascending.
std::vector<std::int64_t> layers_of(const Source& source) {
    std::set<std::int64_t> layers;
    for (const std::string& name : source.names())
        if (const auto layer = layer_of_router(name)) layers.insert(*layer);
    return {layers.begin(), layers.end()};
}

/// One file of the new checkpoint, and what is in it.
class ShardWriter {
  public:
    ShardWriter(const NewFolder& folder, std::size_t count)
        : folder_(folder), count_(count) {}

    void write(const TensorMap& tensors, const std::string& fc1_layout) {
        const std::string name = count_ == 1
                                     ? "model.safetensors"
                                     : fmt::format("model-{:05}-of-{:05}.safetensors",
                                                   files_.size() + 1, count_);
        std::map<std::string, std::string> metadata = {{"format", "pt"}};
        if (!fc1_layout.empty()) metadata["moe_fc1_layout"] = fc1_layout;
        save_safetensors(folder_.file(name), tensors, metadata);
        files_.push_back(name);
        for (const auto& [tensor, values] : tensors) {
            weight_map_[tensor] = name;
            bytes_ += std::int64_t(values.size_bytes());
        }
    }
    void write_index() const {
        if (count_ == 1) return;
        const nlohmann::json index = {{"metadata", {{"total_size", bytes_}}},
                                      {"weight_map", weight_map_}};
        write_text(folder_.file("model.safetensors.index.json"), index.dump(2) + "\n");
    }
    const std::vector<std::string>& files() const { return files_; }

  private:
    const NewFolder& folder_;
    std::size_t count_;
    std::vector<std::string> files_;
    std::map<std::string, std::string> weight_map_;
    std::int64_t bytes_ = 0;
};

/// A block's tensors in the new layout, with what stands in front of its names.
TensorMap convert_block(const Source& source, const std::string& dir,
                        const std::string& config, std::int64_t layer,
                        const Conversion& conversion, std::set<std::string>& taken) {
    const Layout& layout = find_layout("layout", conversion.layout);
    const Model model = read_model(config, dir + "/config.json", layer);
    const Block block = find_block(source, dir, layer, model.config.num_experts());
    Layer read = read_layer(source, block, model, conversion.options);
    // ERNIE's bias of zeros is no parameter here, but its file has it
    if (model.expert_bias_must_be_zero && block.has(Role::expert_bias))
        read.parameters["router.expert_bias"] =
            source.tensor(block.parts.at(Role::expert_bias).names[0]);
    TensorMap named;
    for (const auto& [name, tensor] : in_layout(layout, read.config, read.parameters))
        named[block.prefix + name] = tensor;
    taken.insert(read.names.begin(), read.names.end());
    return named;
}

/// Tensors that no block had, by the file they are in.
std::map<std::string, std::vector<std::string>> others_of(
    const Source& source, const std::set<std::string>& taken) {
    std::map<std::string, std::vector<std::string>> others;
    for (const std::string& name : source.names())
        if (!taken.contains(name)) others[source.file(name)].push_back(name);
    return others;
}

}  // namespace

Converted convert(const Conversion& conversion) {
    const Source source = Source::folder(conversion.from);
    const std::string config = read_text_file(conversion.from + "/config.json");
    find_layout("layout", conversion.layout);
    require_target(conversion);
    Converted result;
    result.layers = conversion.layer ? std::vector<std::int64_t>{*conversion.layer}
                                     : layers_of(source);
    if (result.layers.empty())
        reject(conversion.from, "no router", "must have a layer of experts");

    // Names first: how many files there will be, and that nothing is refused on the way
    std::set<std::string> taken;
    for (const std::int64_t layer : result.layers) {
        conversion.progress(fmt::format("layer {}: read", layer));
        convert_block(source, conversion.from, config, layer, conversion, taken);
    }
    const auto others = conversion.layer ? decltype(others_of(source, taken)){}
                                         : others_of(source, taken);
    NewFolder folder(conversion.to, conversion.overwrite);
    ShardWriter shards(folder, result.layers.size() + others.size());
    const std::string fc1_layout =
        packed_in_words(find_layout("layout", conversion.layout));
    for (const std::int64_t layer : result.layers) {
        conversion.progress(fmt::format("layer {}: written", layer));
        shards.write(
            convert_block(source, conversion.from, config, layer, conversion, taken),
            fc1_layout);
    }
    for (const auto& [file, names] : others) {
        conversion.progress("the rest of " + file);
        TensorMap tensors;
        for (const std::string& name : names) tensors[name] = source.tensor(name);
        shards.write(tensors, "");
        result.others += std::int64_t(names.size());
    }
    shards.write_index();
    write_text(folder.file("config.json"), config);
    folder.finish();
    result.files = shards.files();
    return result;
}

}  // namespace moe::checkpoint
