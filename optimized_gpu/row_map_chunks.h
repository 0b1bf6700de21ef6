/// @file
/// What the row maps of lists and of dense maps share: tokens are counted in chunks, and
/// the counts become the rows at which each chunk begins.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "optimized_gpu/row_map.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

/// More chunks keep more multiprocessors busy, and leave more counters to add up.
inline constexpr int kMaxChunks = 256;

/// Chunks of consecutive tokens, one for each block; in it a piece for each warp.
struct Chunks {
    int tokens_per_warp = 0, tokens = 0, count = 0;

    /// @param at_once  tokens that a warp takes in a step
    Chunks(int num_tokens, int at_once) {
        const int step = kWarps * at_once;  // chunks are whole steps
        const int wanted = num_tokens / kMaxChunks + (num_tokens % kMaxChunks > 0);
        tokens = std::max(1, (wanted + step - 1) / step) * step;
        tokens_per_warp = tokens / kWarps;
        count = num_tokens / tokens + (num_tokens % tokens > 0);
    }
};

struct ChunkCounts {
    int counts[kMaxExperts];
};

/// The block's counts, to its chunk's and to all.
__device__ inline void add_chunk(int* chunk_counts, int* totals, const ChunkCounts& s,
                                 int E) {
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        chunk_counts[int(blockIdx.x) * E + e] = s.counts[e];
        // TUTORIAL: sums of whole numbers do not depend on the order of the atomics.
        if (s.counts[e] > 0) atomicAdd(&totals[e], s.counts[e]);
    }
}

struct NextRows {
    int rows[kWarps][kMaxExperts];
};

/// How many rows each warp fills at each expert becomes the first that it may fill.
__device__ inline void turn_counts_into_rows(NextRows& s, const int* chunk_rows, int E) {
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        int row = chunk_rows[int(blockIdx.x) * E + e];
        for (int w = 0; w < kWarps; ++w) {
            const int count = s.rows[w][e];
            s.rows[w][e] = row;
            row += count;
        }
    }
}

/// InputError for more experts, or another padding, than these kernels take.
void check_experts(std::int64_t num_experts, int padding);

/// InputError where numbers of rows do not fit their type. @param name  of the product
void check_choices(const char* name, std::int64_t num_choices);

/// The map before its kernels: no expert has a token yet. A memset.
RowMap begin_row_map(int num_tokens, int topk, int num_experts, int padding,
                     std::int64_t capacity, int num_chunks, cudaStream_t stream);

/// Offsets and padding rows from tokens_per_expert; counts in chunk_rows become rows.
/// Stops where the rows are more than the map's capacity.
void place_chunks(RowMap& map, cudaStream_t stream);

}  // namespace moe::optimized
