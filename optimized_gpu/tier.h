/// @file
/// The tier "optimized_gpu": fused kernels in bf16, on tensor cores, without waits of the
/// host; on a GPU from sm_80 on, or on the CPU executor. One rank.
#pragma once

namespace moe::optimized {

/// Makes the tier, and device memory, known to core/. Call once.
void register_optimized_gpu();

}  // namespace moe::optimized
