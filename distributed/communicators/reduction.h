/// @file
/// The sum behind reduce-scatter and all-reduce, in an order that never changes.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace moe::distributed {

/// target = sources[0] + sources[1] + …, in this order for every element; bf16 is summed
/// in fp32 and rounded once. All have the target's dtype (f64, f32, bf16, i64, i32),
/// memory space and number of elements; on the device, at most kMaxPeers sources. The
/// target may be one of the sources.
void sum(const TensorView& target, const std::vector<TensorView>& sources);

}  // namespace moe::distributed
