// chunk_map.cu: where the rows of each source stand among those of each expert.

#include "optimized_gpu/chunk_map.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/row_map_chunks.h"

namespace moe::optimized {

//! [make_chunk_map]
namespace {

/// How many rows came from whom for which of the L local experts.
struct Arrivals {
    const int* counts;  // (EP ETP, E); null: `capacity` from each for each
    int capacity, ep, etp, num_experts, first_expert, num_local;

    /// @param source  in the order of arrival: by expt_tp rank, then ep rank
    __device__ int rows(int source, int expert) const {
        if (counts == nullptr) return capacity;
        const int rank = source % ep * etp + source / ep;  // in tp_ep
        return counts[rank * num_experts + first_expert + expert];
    }
    __host__ __device__ int chunks() const { return ep * etp * num_local; }
};

/// Rows before a chunk, as they arrive and as they are sorted; and those of its expert.
struct RowsBefore {
    int arrived = 0, sorted = 0, of_expert = 0;

    __device__ RowsBefore over_warp() const {
        return {warp_sum(arrived), warp_sum(sorted), warp_sum(of_expert)};
    }
    __device__ void add(const RowsBefore& other) {
        arrived += other.arrived;
        sorted += other.sorted;
        of_expert += other.of_expert;
    }
};

struct ChunkSmem {
    RowsBefore warps[kWarps];
};

/// What all threads of a block get.
__device__ RowsBefore rows_before(const Arrivals& from, int source, int expert) {
    RowsBefore mine;
    for (int i = int(threadIdx.x); i < from.chunks(); i += kThreads) {
        const int s = i / from.num_local, e = i % from.num_local;
        const int rows = from.rows(s, e);
        if (i < int(blockIdx.x)) mine.arrived += rows;
        if (e < expert || (e == expert && s < source)) mine.sorted += rows;
        if (e == expert) mine.of_expert += rows;
    }
    auto& smem = gpu::shared_memory<ChunkSmem>();
    mine = mine.over_warp();
    if (lane_index() == 0) smem.warps[warp_index()] = mine;
    __syncthreads();
    RowsBefore all;
    for (int w = 0; w < kWarps; ++w) all.add(smem.warps[w]);
    return all;
}

/// A block for a chunk, which adds up the chunks before it by itself.
__global__ void __launch_bounds__(kThreads)
    place_chunks_kernel(RowPointers map, Arrivals from) {
    const int L = from.num_local;
    const int source = int(blockIdx.x) / L, expert = int(blockIdx.x) % L;
    const RowsBefore before = rows_before(from, source, expert);
    const int rows = from.rows(source, expert);
    // rather than rows out of bounds
    if (max(before.arrived, before.sorted) + rows > map.capacity) __trap();
    if (source == 0 && threadIdx.x == 0)
        map.finish_expert(expert, before.sorted, before.of_expert, before.of_expert, L);
    if (map.row_token == nullptr) return;
    for (int i = int(threadIdx.x); i < rows; i += kThreads) {
        const int arrived = before.arrived + i;
        map.token_rows[arrived] = before.sorted + i;
        map.place(before.sorted + i, arrived, arrived);
    }
}

}  // namespace

RowMap make_chunk_map(const distributed::ExchangePlan& plan, int ep_size, int etp_size,
                      int first_expert, const Tensor& arrived_probs,
                      cudaStream_t stream) {
    const std::int64_t N = arrived_probs.numel();
    check_choices("rows of a rank", N);
    RowMap map;
    map.num_tokens = int(N);
    map.topk = map.num_choices = 1;
    map.num_experts = int(plan.tokens_per_expert.size());
    map.capacity = N;
    map.offsets = gpu::device_empty<int>({map.num_experts + 1});
    map.tokens_per_expert = gpu::device_empty<int>({map.num_experts});
    map.rows_per_expert = map.tokens_per_expert;
    map.row_probs = arrived_probs;
    if (!plan.arrives_sorted()) {
        map.row_token = gpu::device_empty<int>({N});
        map.row_slot = map.row_token;
        map.token_rows = gpu::device_empty<int>({N, 1});
        map.row_probs = gpu::device_empty<float>({N});
    }
    const Arrivals from = {gpu::device_data<int>(plan.counts),
                           int(plan.chunk_sizes[0]),
                           ep_size,
                           etp_size,
                           plan.counts.defined() ? int(plan.counts.dim(1)) : 0,
                           first_expert,
                           map.num_experts};
    gpu::launch("place_chunks_kernel", place_chunks_kernel,
                {from.chunks(), kThreads, sizeof(ChunkSmem), stream},
                row_pointers(map, arrived_probs), from);
    return map;
}
//! [make_chunk_map]

}  // namespace moe::optimized
