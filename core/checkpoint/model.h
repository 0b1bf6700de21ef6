/// @file
/// A model's config.json in this layer's words.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"

namespace moe::checkpoint {

/// How a model's packed FC1 lies, if it has one, by its own code.
enum class Packed {
    rows,         ///< (E, 2F, H): gates, then ups; as here
    columns,      ///< (E, H, 2F)
    interleaved,  ///< (E, H, 2F): gate, up, gate, up, …
    either,       ///< its code reads rows and columns
};

struct Model {
    std::string type;  ///< model_type, without "_text"; "megatron" for our own config
    MoEConfig config;  ///< finalized, for one rank
    Packed packed = Packed::rows;
    /// An expert bias is in the file that the layer has only where it is zero.
    bool expert_bias_must_be_zero = false;
    std::vector<std::string> notes;
};

/// One layer of a model. The config's sizes are what the tensors must have.
///
/// A file without model_type has Megatron's own fields, as config_from_json() takes them.
/// InputError for a model that is not known, or needs what the layer lacks, and for a
/// layer that the model has not or that is dense.
/// @param where  named in errors, the file
Model read_model(const std::string& config_json, const std::string& where,
                 std::int64_t layer);

/// Values of model_type that read_model() takes, ascending.
std::vector<std::string> known_models();

}  // namespace moe::checkpoint
