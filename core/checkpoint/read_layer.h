/// @file
/// A layer of a block that was found. Private to core/checkpoint.
#pragma once

#include "core/checkpoint/block.h"
#include "core/checkpoint/layer.h"
#include "core/checkpoint/model.h"

namespace moe::checkpoint {

/// InputError as load_layer().
Layer read_layer(const Source& source, const Block& block, const Model& model,
                 const Options& options);

}  // namespace moe::checkpoint
