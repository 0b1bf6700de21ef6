/// @file
/// The experts' weights, in whatever order they lie.
#pragma once

#include <string>

#include "core/checkpoint/layer.h"
#include "core/checkpoint/model.h"
#include "core/checkpoint/taker.h"

namespace moe::checkpoint {

/// Puts FC1's and FC2's weights and biases into `layer`. InputError as load_layer().
/// @return the layout, in words
std::string read_experts(Taker& taker, const Model& model, const Options& options,
                         Layer& layer);

/// Where rows of gates and of ups are in packed rows or columns of FC1 of 2F.
struct Half {
    std::int64_t first, stride;
};
Half half_of(Packed packed, bool gated, bool up, std::int64_t ffn);

/// "rows", "columns" or "interleaved"; InputError for another word.
Packed parse_packed(const std::string& text);

}  // namespace moe::checkpoint
