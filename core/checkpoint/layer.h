/// @file
/// A model's MoE layer as its checkpoint has it: config.json and tensors, under whatever
/// names and in whatever order, become a MoEConfig and parameters under this layer's
/// names. docs/checkpoints.md says which models and layouts are known.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/tensor.h"

namespace moe::checkpoint {

/// What was found.
struct Layer {
    MoEConfig config;  ///< finalized, for one rank
    /// Under core/parameters.h's names, in the dtypes of the source; the memory of the
    /// source where no element moves, else a copy. Borrowed memory is for reading.
    TensorMap parameters;
    bool copied = false;             ///< some parameter is a copy
    std::string layout;              ///< "per expert, gate_proj/up_proj/down_proj"
    std::vector<std::string> names;  ///< tensors read, in order
    std::vector<std::string> notes;  ///< one line each: what a reader should know
};

/// How FC1's packed tensor lies, where sizes alone do not tell (2F = H).
struct Options {
    /// "rows": (E, 2F, H), as Megatron has it; "columns": (E, H, 2F), transposed.
    std::optional<std::string> fc1_layout;
};

/// Reads one layer. The shards stay mapped for as long as a parameter borrows from them.
///
/// InputError of one line, naming file and tensor, for a model that is not known or needs
/// what the layer lacks; a layer that is dense or not there; a tensor that is missing,
/// not expected, of another shape, quantised or of a type that is not read; a shard that
/// is absent, and an index that names what is not there.
/// @param dir  config.json beside *.safetensors, or beside *.safetensors.index.json
Layer load_layer(const std::string& dir, std::int64_t layer, const Options& = {});

/// The same of tensors in memory: a block's state_dict, its names relative to the block,
/// or with any prefix. The parameters share their memory.
/// @param config_json  the text of the model's config.json (config.to_json_string())
Layer layer_from_tensors(const std::string& config_json, const TensorMap& tensors,
                         std::int64_t layer, const Options& = {});

}  // namespace moe::checkpoint
