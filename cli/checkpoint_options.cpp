#include "cli/checkpoint_options.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "cli/notes.h"
#include "core/error.h"
#include "core/parameters.h"
#include "core/transfer.h"

namespace moe {
namespace {

bool has_bf16(const ModuleSpec& spec) {
    for (const ComponentSpec& part :
         {spec.router, spec.dispatcher, spec.experts, spec.shared_experts})
        if (part.dtype == DType::bf16) return true;
    return false;
}

}  // namespace

CheckpointOptions::CheckpointOptions(Command& command) {
    command.option("--checkpoint", folder_,
                   "Folder of a model, config.json and *.safetensors: its layer's config "
                   "and weights instead of a preset and seeded ones");
    command.option("--layer", layer_, "Which layer of the checkpoint, from 0");
    command
        .option("--fc1-layout", options_.fc1_layout,
                "How its packed FC1 lies where its shape does not tell: rows (E, 2F, H), "
                "columns (E, H, 2F), or interleaved columns")
        .values({"rows", "columns", "interleaved"});
}

void CheckpointOptions::load(LayerOptions& options) {
    if (!folder_) {
        if (layer_) reject("--layer", *layer_, "needs --checkpoint");
        if (options_.fc1_layout)
            reject("--fc1-layout", *options_.fc1_layout, "needs --checkpoint");
        return;
    }
    if (!layer_) reject("--layer", "absent", "is required with --checkpoint");
    if (const std::string start = options.start_flag(); !start.empty())
        reject(start, "given", "must be left out with --checkpoint");
    loaded_ = checkpoint::load_layer(*folder_, *layer_, options_);
    LayerOptions::Defaults defaults = options.defaults();
    defaults.preset = fmt::format("{}, layer {}", *folder_, *layer_);
    defaults.scale = 1;
    defaults.config = loaded_->config;
    options.set_defaults(defaults);
    for (const std::string& line : loaded_->notes) note(line);
}

TensorMap CheckpointOptions::parameters(const MoEConfig& config,
                                        const std::vector<ModuleSpec>& columns) const {
    if (!loaded_) return {};
    check_parameters(config, loaded_->parameters, *folder_);
    TensorMap parameters = loaded_->parameters;
    if (std::none_of(columns.begin(), columns.end(), has_bf16)) return parameters;
    bool changed = false;
    for (auto& [name, tensor] : parameters) {
        const bool of_router = name.starts_with("router.");
        if (!is_floating(tensor.dtype()) || tensor.dtype() == DType::bf16 ||
            is_buffer(name) || (of_router && config.moe_router_dtype))
            continue;
        const Tensor rounded = transfer(tensor, {MemorySpace::host, DType::bf16});
        const Tensor back = transfer(rounded, {MemorySpace::host, tensor.dtype()});
        changed = changed || std::memcmp(back.view().bytes, tensor.view().bytes,
                                         tensor.size_bytes()) != 0;
        tensor = rounded;
    }
    if (changed)
        note(
            "weights are rounded to bf16, which some columns have, in all of them: leave "
            "these out with --dtype fp32");
    return parameters;
}

std::string CheckpointOptions::weights() const {
    if (!loaded_) return "";
    return fmt::format("{}; {} tensors, {} first", loaded_->layout, loaded_->names.size(),
                       loaded_->names[0]);
}

}  // namespace moe
