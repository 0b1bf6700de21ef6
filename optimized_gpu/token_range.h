/// @file
/// How routing shares its tokens out to blocks.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "optimized_gpu/warp.h"

namespace moe::optimized {

/// Which tokens a block routes: `rounds` times one for each of its warps, all of
/// population blockIdx.y.
struct TokenRange {
    std::int64_t num_tokens;
    int populations, rounds;

    __host__ __device__ std::int64_t per_population() const {
        return num_tokens / populations;
    }
    std::int64_t num_blocks() const {
        const int per_block = rounds * kWarps;
        return (per_population() + per_block - 1) / per_block;
    }
    /// The warp's token of a round; num_tokens past the end.
    __device__ std::int64_t token(int round, int warp) const {
        const std::int64_t s =
            (std::int64_t(blockIdx.x) * rounds + round) * kWarps + warp;
        return s < per_population() ? s * populations + blockIdx.y : num_tokens;
    }
};

/// The least work per block that still leaves no multiprocessor idle, from T alone: how
/// many blocks there are decides in which order scores are summed, and every GPU shall
/// get the same bits.
TokenRange make_token_range(std::int64_t num_tokens, std::int64_t populations);

}  // namespace moe::optimized
