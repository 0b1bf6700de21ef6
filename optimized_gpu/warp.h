/// @file
/// Blocks of eight warps, and what the lanes of a warp add up among themselves.
#pragma once

#include <cuda_runtime.h>

namespace moe::optimized {

inline constexpr int kLanes = 32, kWarps = 8, kThreads = kLanes * kWarps;
inline constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline int lane_index() {
    return int(threadIdx.x) % kLanes;
}
__device__ inline int warp_index() {
    return int(threadIdx.x) / kLanes;
}
/// A mask of the lanes with a lower index.
__device__ inline unsigned lanes_before() {
    return (1u << lane_index()) - 1u;
}

/// The sum over all lanes, in one order: every lane gets the same bits.
template <typename T>
__device__ T warp_sum(T value) {
    for (int distance = kLanes / 2; distance > 0; distance /= 2)
        value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

/// The sum over the lanes before this one.
__device__ inline int warp_sum_before(int value) {
    int sum = value;
    for (int distance = 1; distance < kLanes; distance *= 2) {
        const int other = __shfl_up_sync(kAllLanes, sum, distance);
        if (lane_index() >= distance) sum += other;
    }
    return sum - value;
}

}  // namespace moe::optimized
