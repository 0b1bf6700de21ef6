/// @file
/// What the row maps of lists and of dense maps share: one kernel counts the tokens in
/// chunks, and a second one turns the counts into the rows at which each chunk begins,
/// and fills them.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "optimized_gpu/row_map.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

/// More chunks keep more multiprocessors busy, and leave more counters to add up.
inline constexpr int kMaxChunks = 256;
/// Chunks whose counts are added up together: a chunk's first rows take the counts of
/// the groups and of at most 15 chunks, and not of 255.
inline constexpr int kChunksOfGroup = 16;
/// Numbers of as many experts fill a sector of 32 bytes; one block writes them.
inline constexpr int kExpertsOfSector = 8;

/// Chunks of consecutive tokens, one for each block; in it a piece for each warp. There
/// is one even without tokens, to say so.
struct Chunks {
    int tokens_per_warp = 0, tokens = 0, count = 0;

    /// @param at_once  tokens that a warp takes in a step
    Chunks(int num_tokens, int at_once) {
        const int step = kWarps * at_once;  // chunks are whole steps
        const int wanted = num_tokens / kMaxChunks + (num_tokens % kMaxChunks > 0);
        tokens = std::max(1, (wanted + step - 1) / step) * step;
        tokens_per_warp = tokens / kWarps;
        count = std::max(1, num_tokens / tokens + (num_tokens % tokens > 0));
    }
};

struct ChunkCounts {
    int counts[kMaxExperts];
};

/// Where a map's counts lie: a chunk is a block.
struct CountPointers {
    int *chunks, *groups;  // (chunks, E), (groups, E)
    int E;

    /// The block's counts, to its chunk's and to its group's.
    __device__ void add_chunk(const ChunkCounts& s) const {
        const int chunk = int(blockIdx.x), group = chunk / kChunksOfGroup;
        for (int e = int(threadIdx.x); e < E; e += kThreads) {
            chunks[chunk * E + e] = s.counts[e];
            // TUTORIAL: sums of whole numbers do not depend on the order of the atomics.
            if (s.counts[e] > 0) atomicAdd(&groups[group * E + e], s.counts[e]);
        }
    }
    /// How often an expert is chosen before the block's chunk, and in all.
    struct Share {
        int before, total;
    };
    __device__ Share share_of(int e) const {
        const int chunk = int(blockIdx.x), group = chunk / kChunksOfGroup;
        const int last = (int(gridDim.x) - 1) / kChunksOfGroup;
        Share share = {};
        for (int g = 0; g <= last; ++g) {
            const int count = groups[g * E + e];
            share.total += count;
            share.before += g < group ? count : 0;
        }
        for (int c = group * kChunksOfGroup; c < chunk; ++c)
            share.before += chunks[c * E + e];
        return share;
    }
};

/// The map, as its second kernel fills it.
struct RowPointers {
    int *row_token, *row_slot, *token_rows, *offsets;
    int *tokens_per_expert, *rows_per_expert;  // may be one
    float* row_probs;                          // or null
    const float* weights;                      // (T, K); null without row_probs
    int padding, num_tokens, capacity;
    unsigned long long* dropped;  ///< counts rows beyond the capacity; null: stop

    /// Rows of an expert with `total` tokens. As Megatron's routing map, which pads with
    /// tokens, no multiple is reached that is more than all tokens.
    __device__ int rows_for(int total) const {
        const int rows = (total + padding - 1) / padding * padding;
        return min(rows, max(total, num_tokens));
    }
    __device__ void place(int row, int token, int slot) const {
        const float prob = row_probs != nullptr ? weights[slot] : 0.0f;
        row_token[row] = token;
        row_slot[row] = slot;
        if (row_probs != nullptr) row_probs[row] = prob;
    }
    /// An expert's rows from `first` on: its sums, and the rows that nobody fills.
    __device__ void finish_expert(int e, int first, int total, int rows, int E) const {
        offsets[e] = first;
        if (e == E - 1) offsets[E] = first + rows;
        tokens_per_expert[e] = total;
        rows_per_expert[e] = rows;
        for (int row = first + total; row < first + rows; ++row) {
            row_token[row] = row_slot[row] = -1;
            if (row_probs != nullptr) row_probs[row] = 0.0f;
        }
    }
};

struct NextRows {
    int rows[kWarps][kMaxExperts];
    int sums[kWarps];  ///< rows of the experts of each warp's lanes
};

/// The sum over the threads before this one; adds that over all to `all`.
__device__ inline int block_sum_before(NextRows& s, int value, int& all) {
    const int in_warp = warp_sum_before(value), warp = warp_index();
    if (lane_index() == kLanes - 1) s.sums[warp] = in_warp + value;
    __syncthreads();
    int before = all + in_warp;
    for (int w = 0; w < kWarps; ++w) {
        before += w < warp ? s.sums[w] : 0;
        all += s.sums[w];
    }
    __syncthreads();  // all have read
    return before;
}

/// How many rows each warp fills at each expert becomes the first that it may fill; what
/// is one number for an expert is written by one of the blocks. Stops where rows are more
/// than the map's capacity.
__device__ inline void turn_counts_into_rows(NextRows& s, const CountPointers& counts,
                                             const RowPointers& map) {
    const int E = counts.E;
    int placed = 0;
    // TUTORIAL: each block adds up all experts for itself. That is a few numbers for a
    // thread, and cheaper than a launch that does it for all, or waiting for a block.
    for (int first = 0; first < E; first += kThreads) {
        const int e = first + int(threadIdx.x);
        const auto [before, total] =
            e < E ? counts.share_of(e) : CountPointers::Share{0, 0};
        const int rows = map.rows_for(total);
        const int begin = block_sum_before(s, rows, placed);
        if (e >= E) continue;
        const bool fits = begin + rows <= map.capacity;
        if (!fits && map.dropped == nullptr) __trap();  // rather than out of bounds
        const bool mine = e / kExpertsOfSector % int(gridDim.x) == int(blockIdx.x);
        if (mine && fits) map.finish_expert(e, begin, total, rows, E);
        if (mine && !fits) {  // without padding
            const int first = min(begin, map.capacity), kept = map.capacity - first;
            map.finish_expert(e, first, kept, kept, E);
            atomicAdd(map.dropped, 1ull * unsigned(rows - kept));
        }
        int row = begin + before;
        for (int w = 0; w < kWarps; ++w) {
            const int count = s.rows[w][e];
            s.rows[w][e] = row;
            row += count;
        }
    }
    __syncthreads();
}

/// InputError for more experts, or another padding, than these kernels take.
void check_experts(std::int64_t num_experts, int padding);

/// InputError where numbers of rows do not fit their type. @param name  of the product
void check_choices(const char* name, std::int64_t num_choices);

/// The map before its kernels: no expert has a token yet. A memset.
/// @param weights  of the choices, or undefined: the map has no row_probs
RowMap begin_row_map(int num_tokens, int topk, int num_experts, int padding,
                     std::int64_t capacity, int num_chunks, const Tensor& weights,
                     cudaStream_t stream);

CountPointers count_pointers(RowMap& map);
RowPointers row_pointers(RowMap& map, const Tensor& weights);

}  // namespace moe::optimized
