// row_map.cu: choices of experts become an order of rows, by counting.

#include "optimized_gpu/row_map.h"

#include <climits>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/row_map_chunks.h"

namespace moe::optimized {

//! [make_row_map]
namespace {

/// The map's expert that a choice names, -1: none of them.
__device__ int expert_of(int id, const ExpertWindow& window, int E) {
    if (id >= window.all) __trap();  // rather than a row that nobody asked for
    const int e = id - window.first;
    return id >= 0 && e >= 0 && e < E ? e : -1;
}

/// How often each expert is chosen: in each chunk of `choices` ids, and in all.
__global__ void __launch_bounds__(kThreads)
    count_choices_kernel(CountPointers counts, const int* ids, ExpertWindow window,
                         int num_choices, int choices) {
    auto& s = gpu::shared_memory<ChunkCounts>();
    const int t = int(threadIdx.x), E = counts.E;
    for (int e = t; e < E; e += kThreads) s.counts[e] = 0;
    __syncthreads();
    const std::int64_t first = std::int64_t(blockIdx.x) * choices;
    const int end = int(min(first + choices, std::int64_t(num_choices)));
    for (int i = int(first) + t; i < end; i += kThreads) {
        const int e = expert_of(ids[i], window, E);
        if (e >= 0) atomicAdd(&s.counts[e], 1);
    }
    __syncthreads();
    counts.add_chunk(s);
}

/// Counts the choices of each warp's tokens.
__device__ void count_pieces(NextRows& s, const int* ids, const ExpertWindow& window,
                             int begin, int end, int E) {
    const int t = int(threadIdx.x), warp = warp_index();
    for (int w = 0; w < kWarps; ++w)
        for (int e = t; e < E; e += kThreads) s.rows[w][e] = 0;
    __syncthreads();
    for (int i = begin + lane_index(); i < end; i += kLanes) {
        const int e = expert_of(ids[i], window, E);
        if (e >= 0) atomicAdd(&s.rows[warp][e], 1);
    }
    __syncthreads();
}

/// The place of a lane's choice among the `topk` choices of its token, by expert.
__device__ int place_in_token(int expert, int first_lane, int topk) {
    int place = 0;
    for (int j = 0; j < topk; ++j) {
        const int from = min(first_lane + j, kLanes - 1);  // lanes without a choice
        const int other = __shfl_sync(kAllLanes, expert, from);
        place += other < expert || (other == expert && from < lane_index());
    }
    return place;
}

/// A block for a chunk. Each warp walks its tokens in order, as many at once as have room
/// in its lanes, a lane for each choice.
__global__ void __launch_bounds__(kThreads)
    place_choices_kernel(RowPointers map, CountPointers counts, const int* ids,
                         ExpertWindow window, int num_tokens, int K,
                         int tokens_per_warp) {
    auto& s = gpu::shared_memory<NextRows>();
    const int lane = lane_index(), warp = warp_index();
    const std::int64_t piece = std::int64_t(blockIdx.x) * kWarps + warp;
    const int begin = int(min(piece * tokens_per_warp, std::int64_t(num_tokens)));
    const int end = min(begin + tokens_per_warp, num_tokens);
    count_pieces(s, ids, window, begin * K, end * K, counts.E);
    turn_counts_into_rows(s, counts, map);

    const int at_once = kLanes / K, mine = lane / K;
    for (int first = begin; first < end; first += at_once) {
        const int slot = first * K + lane;
        const bool is_choice = mine < at_once && first + mine < end;
        const int id = is_choice ? expert_of(ids[slot], window, counts.E) : -1;
        const int expert = id >= 0 ? id : INT_MAX;  // dropped choices come last
        const int place = place_in_token(expert, mine * K, K);

        // TUTORIAL: an atomicAdd() that hands out rows would give them in the order in
        // which lanes happen to come. Here the lanes with the same expert find each
        // other, and each takes as many rows further on as there are lanes before it.
        const unsigned same = __match_any_sync(kAllLanes, expert);
        const int rank = __popc(same & lanes_before());
        int row = -1;
        if (id >= 0) row = s.rows[warp][id] + rank;
        if (row >= map.capacity) row = -1;  // dropped: what is behind it is as well
        __syncwarp();                       // all have read
        if (id >= 0 && rank == 0) s.rows[warp][id] += __popc(same);
        __syncwarp();  // the next step reads

        if (is_choice) map.token_rows[slot - lane + mine * K + place] = row;
        if (row >= 0) map.place(row, first + mine, slot);
    }
}

/// InputError beyond what the kernels hold.
void check_sizes(const Tensor& ids, int num_experts, int padding) {
    MOE_CHECK_EQ(ids.shape().size(), 2u);
    if (ids.dim(1) < 1 || ids.dim(1) > kMaxTopk)
        reject(
            "moe_router_topk", ids.dim(1),
            "optimized_gpu takes 1 to 32 experts per token; naive_gpu takes any number");
    check_experts(num_experts, padding);
    check_choices("tokens * moe_router_topk", ids.numel());
}

}  // namespace

void check_experts(std::int64_t num_experts, int padding) {
    if (num_experts < 1 || num_experts > kMaxExperts)
        reject("num_moe_experts", num_experts,
               "optimized_gpu takes 1 to 1024 experts; naive_gpu takes any number");
    if (padding != 1 && padding != 16 && padding != 32)
        reject("padding", padding, "1, 16 or 32 rows");
}

void check_choices(const char* name, std::int64_t num_choices) {
    // Row numbers are i32; so is the index of the last padding row of the last expert.
    const std::int64_t most = INT_MAX - std::int64_t(kMaxExperts) * 32;
    if (num_choices > most)
        reject(name, num_choices,
               fmt::format("optimized_gpu takes at most {}; naive_gpu takes more", most));
}

RowMap begin_row_map(int num_tokens, int topk, int num_experts, int padding,
                     std::int64_t capacity, int num_chunks, const Tensor& weights,
                     cudaStream_t stream) {
    const int num_groups = (num_chunks + kChunksOfGroup - 1) / kChunksOfGroup;
    RowMap map;
    map.num_tokens = num_tokens;
    map.topk = map.num_choices = topk;
    map.num_experts = num_experts;
    map.padding = padding;
    map.capacity = capacity;
    for (Tensor* rows : {&map.row_token, &map.row_slot})
        *rows = gpu::device_empty<int>({capacity});
    if (weights.defined()) map.row_probs = gpu::device_empty<float>({capacity});
    map.token_rows = gpu::device_empty<int>({num_tokens, topk});
    map.offsets = gpu::device_empty<int>({num_experts + 1});
    map.tokens_per_expert = gpu::device_empty<int>({num_experts});
    map.rows_per_expert =
        padding == 1 ? map.tokens_per_expert : gpu::device_empty<int>({num_experts});
    map.chunk_counts = gpu::device_empty<int>({num_chunks, num_experts});
    map.group_counts = gpu::device_empty<int>({num_groups, num_experts});
    gpu::check(cudaMemsetAsync(gpu::device_data<int>(map.group_counts), 0,
                               map.group_counts.size_bytes(), stream),
               "cudaMemsetAsync");
    return map;
}

CountPointers count_pointers(RowMap& map) {
    return {gpu::device_data<int>(map.chunk_counts),
            gpu::device_data<int>(map.group_counts), map.num_experts};
}

RowPointers row_pointers(RowMap& map, const Tensor& weights) {
    return {gpu::device_data<int>(map.row_token),
            gpu::device_data<int>(map.row_slot),
            gpu::device_data<int>(map.token_rows),
            gpu::device_data<int>(map.offsets),
            gpu::device_data<int>(map.tokens_per_expert),
            gpu::device_data<int>(map.rows_per_expert),
            gpu::device_data<float>(map.row_probs),
            gpu::device_data<float>(weights),
            map.padding,
            map.num_tokens,
            int(map.capacity),
            nullptr};
}

RowMap make_row_map(const Tensor& ids, int num_experts, int padding,
                    const Tensor& weights, cudaStream_t stream, const ExpertWindow& of,
                    const RowLimit& limit) {
    check_sizes(ids, num_experts, padding);
    MOE_CHECK(limit.most < 0 || (padding == 1 && limit.dropped != nullptr));
    MOE_CHECK(!weights.defined() || weights.numel() == ids.numel());
    const int T = int(ids.dim(0)), K = int(ids.dim(1)), E = num_experts;
    const Chunks chunks(T, kLanes / K);
    const ExpertWindow window = {of.first, of.all > 0 ? of.all : E};
    // Each expert that has a row may have padding - 1 empty ones, and ends at a multiple.
    // A token's experts differ, unless all are the map's and it says otherwise.
    const std::int64_t rows = of.all > 0 ? std::int64_t(T) * std::min(K, E) : ids.numel();
    const std::int64_t experts_with_rows = std::min<std::int64_t>(E, rows);
    std::int64_t capacity = rows + experts_with_rows * (padding - 1);
    capacity -= capacity % padding;
    if (limit.most >= 0) capacity = std::min(capacity, limit.most);

    RowMap map = begin_row_map(T, K, E, padding, capacity, chunks.count, weights, stream);
    const CountPointers counts = count_pointers(map);
    RowPointers pointers = row_pointers(map, weights);
    if (limit.most >= 0) pointers.dropped = limit.dropped;
    const int* const choices = gpu::device_data<int>(ids);
    gpu::launch("count_choices_kernel", count_choices_kernel,
                {chunks.count, kThreads, sizeof(ChunkCounts), stream}, counts, choices,
                window, T * K, chunks.tokens * K);
    gpu::launch("place_choices_kernel", place_choices_kernel,
                {chunks.count, kThreads, sizeof(NextRows), stream}, pointers, counts,
                choices, window, T, K, chunks.tokens_per_warp);
    return map;
}
//! [make_row_map]

}  // namespace moe::optimized
