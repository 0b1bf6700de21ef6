// row_map_dense.cu: columns of choices become an order of rows, by counting.

#include "optimized_gpu/row_map.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/row_map_chunks.h"

namespace moe::optimized {

//! [make_row_map_of_dense]
namespace {

/// Columns of a dense map that count, of all that it has.
struct Columns {
    const std::uint8_t* map;
    int first, all;

    __device__ int slot(std::int64_t token, int e) const {
        return int(token) * all + first + e;
    }
    __device__ bool routed(std::int64_t token, int e) const {
        return map[slot(token, e)] != 0;
    }
};

/// How many tokens of each chunk, and of all, go to each expert. A warp for each token of
/// the block's chunk in turn.
__global__ void __launch_bounds__(kThreads)
    count_columns_kernel(CountPointers counts, Columns columns, int num_tokens,
                         int tokens) {
    const int E = counts.E;
    auto& s = gpu::shared_memory<ChunkCounts>();
    for (int e = int(threadIdx.x); e < E; e += kThreads) s.counts[e] = 0;
    __syncthreads();
    const std::int64_t first = std::int64_t(blockIdx.x) * tokens;
    const std::int64_t end = min(first + tokens, std::int64_t(num_tokens));
    for (std::int64_t t = first + warp_index(); t < end; t += kWarps)
        for (int e = lane_index(); e < E; e += kLanes)
            if (columns.routed(t, e)) atomicAdd(&s.counts[e], 1);
    __syncthreads();
    counts.add_chunk(s);
}

/// One token of a warp. Its lanes take 32 experts at a time, always the same ones, so
/// that each has the counters of its own experts to itself.
/// @param next_rows  (E) the warp's, a row further on where the token has one
__device__ void place_token(const RowPointers& map, int* next_rows,
                            const Columns& columns, int token, int E) {
    const int lane = lane_index(), row_slot = token * E;
    int placed = 0;
    for (int first = 0; first < E; first += kLanes) {
        const int e = first + lane;
        const bool is_routed = e < E && columns.routed(token, e);
        const unsigned routed = __ballot_sync(kAllLanes, is_routed);
        if (is_routed) {
            const int row = next_rows[e]++;
            map.token_rows[row_slot + placed + __popc(routed & lanes_before())] = row;
            map.place(row, token, columns.slot(token, e));
        }
        placed += __popc(routed);
    }
    for (int i = placed + lane; i < E; i += kLanes) map.token_rows[row_slot + i] = -1;
}

/// A block for a chunk; each warp walks its tokens in order.
__global__ void __launch_bounds__(kThreads)
    place_columns_kernel(RowPointers map, CountPointers counts, Columns columns,
                         int num_tokens, int tokens_per_warp) {
    const int E = counts.E;
    auto& s = gpu::shared_memory<NextRows>();
    int* const next_rows = s.rows[warp_index()];
    const std::int64_t piece = std::int64_t(blockIdx.x) * kWarps + warp_index();
    const std::int64_t begin = min(piece * tokens_per_warp, std::int64_t(num_tokens));
    const std::int64_t end = min(begin + tokens_per_warp, std::int64_t(num_tokens));
    for (int e = lane_index(); e < E; e += kLanes) {
        int count = 0;
        for (std::int64_t t = begin; t < end; ++t) count += columns.routed(t, e);
        next_rows[e] = count;
    }
    __syncthreads();
    turn_counts_into_rows(s, counts, map);
    for (std::int64_t t = begin; t < end; ++t)
        place_token(map, next_rows, columns, int(t), E);
}

}  // namespace

RowMap make_row_map_of_dense(const Tensor& routing_map, int padding, const Tensor& probs,
                             cudaStream_t stream) {
    return make_row_map_of_dense(routing_map, routing_map.dim(0), padding, probs, stream);
}

RowMap make_row_map_of_dense(const Tensor& routing_map, std::int64_t most_per_expert,
                             int padding, const Tensor& probs, cudaStream_t stream,
                             int num_experts, int first_expert) {
    MOE_CHECK_EQ(routing_map.shape().size(), 2u);
    check_experts(routing_map.dim(1), padding);
    check_choices("tokens * num_moe_experts", routing_map.numel());
    MOE_CHECK(!probs.defined() || probs.numel() == routing_map.numel());
    const int T = int(routing_map.dim(0)), all = int(routing_map.dim(1));
    const int E = num_experts > 0 ? num_experts : all;
    const std::int64_t most = std::clamp<std::int64_t>(most_per_expert, 0, T);
    const std::int64_t capacity = E * ((most + padding - 1) / padding * padding);

    const Chunks chunks(T, 1);
    RowMap map = begin_row_map(T, E, E, padding, capacity, chunks.count, probs, stream);
    map.num_choices = all;
    const CountPointers counts = count_pointers(map);
    const Columns choices = {gpu::device_data<std::uint8_t>(routing_map), first_expert,
                             all};
    gpu::launch("count_columns_kernel", count_columns_kernel,
                {chunks.count, kThreads, sizeof(ChunkCounts), stream}, counts, choices, T,
                chunks.tokens);
    gpu::launch("place_columns_kernel", place_columns_kernel,
                {chunks.count, kThreads, sizeof(NextRows), stream},
                row_pointers(map, probs), counts, choices, T, chunks.tokens_per_warp);
    return map;
}
//! [make_row_map_of_dense]

}  // namespace moe::optimized
