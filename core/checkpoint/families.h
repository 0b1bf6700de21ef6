/// @file
/// What each model's own code makes of its config.json. Private to model.cpp.
#pragma once

#include <map>
#include <string>

#include "core/checkpoint/fields.h"
#include "core/checkpoint/model.h"

namespace moe::checkpoint {

/// What makes scores of logits, and whether the K chosen are normalised.
enum class Scores {
    softmax,           ///< normalised, which is a softmax of the K chosen
    softmax_by_field,  ///< norm_topk_prob, false where it is left out
    softmax_unless,    ///< norm_topk_prob, true where it is left out
    softmax_of_all,    ///< not normalised
    sigmoid,           ///< normalised
    sigmoid_by_field,  ///< norm_topk_prob, false where it is left out
    sigmoid_unless,    ///< norm_topk_prob, true where it is left out
    sqrtsoftplus,      ///< normalised
};

/// Names of fields are Hugging Face's. Source: modeling_<type>.py of transformers 5.24.0.
struct Family {
    Scores scores = Scores::softmax;
    const char* ffn = "moe_intermediate_size";  ///< F
    const char* shared_width = nullptr;         ///< F_s, or
    const char* shared_count = nullptr;         ///< F_s / F
    const char* scaling = nullptr;              ///< of the K weights
    bool expert_bias = false;
    bool groups = false;  ///< n_group, topk_group; a group's score is of its best 2
    bool shared_gate = false;
    bool fp32_router = false;  ///< its logits are a product in fp32
    Packed packed = Packed::rows;
    /// What else its code makes of its fields.
    void (*more)(const Fields& fields, Model& model) = nullptr;
};

/// By model_type, without "_text".
const std::map<std::string, Family>& families();

/// What the layer lacks, by model_type.
const std::map<std::string, std::string>& lacking_models();

}  // namespace moe::checkpoint
