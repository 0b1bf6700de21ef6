/// @file
/// The tier "naive_gpu": one obvious kernel per step, in fp32 and bf16, on a GPU or on
/// the CPU executor.
#pragma once

namespace moe::naive {

/// Makes the tier, and device memory, known to core/. Call once.
void register_naive_gpu();

}  // namespace moe::naive
