// flex_phases.cu: who gets a row of which token, pushing it, and taking what came. That
// all have written, the barriers of the exchange say.

#include "optimized_gpu/flex_phases.h"

#include <algorithm>

#include "gpu/launch.h"
#include "optimized_gpu/sent_rows.h"

namespace moe::optimized {

//! [make_rank_map]
namespace {

/// A thread for each token and rank.
__global__ void token_ranks_kernel(std::uint8_t* token_ranks, const int* topk_ids,
                                   ExpertGrid grid, int num_tokens, int K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int W = int(grid.num_ranks);
    if (i >= std::int64_t(num_tokens) * W) return;
    const int ep = int(i % W / grid.num_shards);
    const int* ids = topk_ids + i / W * K;
    bool in_rank = false;
    for (int k = 0; k < K; ++k) {
        if (ids[k] >= W / grid.num_shards * grid.num_local) __trap();
        in_rank |= ids[k] >= 0 && ids[k] / int(grid.num_local) == ep;
    }
    token_ranks[i] = in_rank;
}

}  // namespace

RowMap make_rank_map(const Tensor& topk_ids, const ExpertGrid& grid,
                     cudaStream_t stream) {
    const std::int64_t T = topk_ids.dim(0);
    Tensor token_ranks = gpu::device_empty<std::uint8_t>({T, grid.num_ranks});
    gpu::launch("token_ranks_kernel", token_ranks_kernel,
                gpu::one_thread_per(token_ranks.numel(), stream),
                gpu::device_data<std::uint8_t>(token_ranks),
                gpu::device_data<int>(topk_ids), grid, int(T), int(topk_ids.dim(1)));
    return make_row_map_of_dense(token_ranks, 1, Tensor(), stream);
}
//! [make_rank_map]

//! [push_rows]
namespace {

/// What goes with the rows; see PeerChoices.
struct Choices {
    PeerChoices peers;
    const int* topk_ids;
    const float* topk_probs;
    ExpertGrid grid;
    int K, my_rank;

    /// A warp: the choices of a row.
    __device__ void push(const SentRows& sent, int token, int rank, int row) const {
        const int shards = int(grid.num_shards), L = int(grid.num_local);
        int* const ids = sent.in_heap(peers.topk_ids, rank, row);
        float* const probs = sent.in_heap(peers.topk_probs, rank, row);
        for (int slot = lane_index(); slot < K * shards; slot += kLanes) {
            const std::int64_t choice = std::int64_t(token) * K + slot / shards;
            const int id = topk_ids[choice];
            const bool here = id >= 0 && id / L * shards + slot % shards == rank;
            ids[slot] = here ? id % L : -1;
            probs[slot] = here ? topk_probs[choice] : 0.0f;
        }
        if (lane_index() < 2)
            sent.in_heap(peers.sources, rank, row)[lane_index()] =
                lane_index() == 0 ? my_rank : token;
    }
    /// A thread for each rank.
    __device__ void push_count(const SentRows& sent) const {
        const int rank = int(threadIdx.x);
        if (rank < sent.num_ranks)
            peers.counts.of[rank][my_rank] = sent.offsets[rank + 1] - sent.offsets[rank];
    }
};
struct NoChoices {
    __device__ void push(const SentRows&, int, int, int) const {}
    __device__ void push_count(const SentRows&) const {}
};

/// A warp for a slice of each token, to all its ranks; the first slice takes along the
/// choices, and the first block the counts.
template <typename Vector, typename WithThem>
__global__ void __launch_bounds__(kThreads)
    push_rows_kernel(PeerSlots<Vector> peers, const Vector* source, SentRows sent,
                     WithThem choices) {
    if (blockIdx.x == 0 && blockIdx.y == 0) choices.push_count(sent);
    const int token = int(blockIdx.x) * kWarps + warp_index();
    if (token >= sent.num_tokens) return;
    const int width = int(peers.width);
    const Vector* from = source + std::int64_t(token) * width;
    Vector slice[kSteps] = {};
    for (int step = 0; step < kSteps; ++step) {
        const int column = first_column() + step * kLanes;
        if (column < width) slice[step] = from[column];
    }
    int own_row = -1, own_rank = 0;
    for (int j = 0; j < sent.num_ranks; ++j) {
        if (j % kLanes == 0) {
            own_row = load_rows_of_token(sent.token_rows, token, sent.num_ranks, j);
            if (own_row >= 0) own_rank = sent.rank_of(own_row);
        }
        const int row = __shfl_sync(kAllLanes, own_row, j % kLanes);
        const int rank = __shfl_sync(kAllLanes, own_rank, j % kLanes);
        if (row < 0) break;  // rows come first
        Vector* to = sent.in_heap(peers, rank, row);
        for (int step = 0; step < kSteps; ++step) {
            const int column = first_column() + step * kLanes;
            if (column < width) to[column] = slice[step];
        }
        if (blockIdx.y == 0) choices.push(sent, token, rank, row);
    }
}

template <typename Vector, typename WithThem>
void launch_push(const PeerSlots<std::byte>& peers, const Tensor& source,
                 const RowMap& sent, const WithThem& choices, cudaStream_t stream) {
    const PeerSlots<Vector> vectors = in_vectors<Vector>(peers);
    dim3 blocks = slice_blocks(sent.num_tokens, int(vectors.width));
    blocks.x = std::max(blocks.x, 1u);  // counts of 0 travel as well
    gpu::launch("push_rows_kernel", push_rows_kernel<Vector, WithThem>,
                {blocks, kThreads, 0, stream}, vectors,
                reinterpret_cast<const Vector*>(source.view().bytes), SentRows(sent),
                choices);
}

template <typename WithThem>
void push(const PeerSlots<std::byte>& peers, const Tensor& source, const RowMap& sent,
          const WithThem& choices, cudaStream_t stream) {
    MOE_CHECK_EQ(source.dim(0), sent.num_tokens);
    switch (vector_bytes(bits_of(source) | peers.width)) {  // bits, of any type
        case 16: return launch_push<uint4>(peers, source, sent, choices, stream);
        case 4: return launch_push<unsigned>(peers, source, sent, choices, stream);
        default: launch_push<unsigned short>(peers, source, sent, choices, stream);
    }
}

}  // namespace

void push_rows(const PeerSlots<std::byte>& peers, const Tensor& source,
               const RowMap& sent, cudaStream_t stream) {
    push(peers, source, sent, NoChoices(), stream);
}

void push_tokens(const PeerSlots<std::byte>& peers, const PeerChoices& choices,
                 const Tensor& source, const Tensor& topk_ids, const Tensor& topk_probs,
                 const RowMap& sent, const ExpertGrid& grid, int rank,
                 cudaStream_t stream) {
    push(peers, source, sent,
         Choices{choices, gpu::device_data<int>(topk_ids),
                 gpu::device_data<float>(topk_probs), grid, int(topk_ids.dim(1)), rank},
         stream);
}
//! [push_rows]

//! [take_tokens]
namespace {

/// What lies in my heap, and where it goes.
struct TakenChoices {
    int *topk_ids, *counts;
    float* topk_probs;
    const int *heap_ids, *heap_counts;
    const float* heap_probs;
    int num_slots, num_sources, per_source, num_choices;
};

/// A warp for a slice of each slot; the first slice takes along the choices, and the
/// first block the counts.
template <typename Vector>
__global__ void __launch_bounds__(kThreads)
    take_tokens_kernel(Vector* rows, const Vector* heap, TakenChoices choices,
                       int width) {
    const int t = int(threadIdx.x);
    if (blockIdx.x == 0 && blockIdx.y == 0 && t < choices.num_sources)
        choices.counts[t] = choices.heap_counts[t];
    const int slot = int(blockIdx.x) * kWarps + warp_index();
    if (slot >= choices.num_slots) return;
    const int per_source = choices.per_source;
    const bool is_filled = slot % per_source < choices.heap_counts[slot / per_source];
    if (blockIdx.y == 0) {
        const std::int64_t first = std::int64_t(slot) * choices.num_choices;
        for (int k = lane_index(); k < choices.num_choices; k += kLanes) {
            const int id = is_filled ? choices.heap_ids[first + k] : -1;
            choices.topk_ids[first + k] = id;
            if (id >= 0) choices.topk_probs[first + k] = choices.heap_probs[first + k];
        }
    }
    if (!is_filled || rows == nullptr) return;
    const std::int64_t start = std::int64_t(slot) * width;
    for (int step = 0; step < kSteps; ++step) {
        const int column = first_column() + step * kLanes;
        if (column < width) rows[start + column] = heap[start + column];
    }
}

template <typename Vector>
void launch_take(const Tensor& rows, const TensorView& heap, const TakenChoices& choices,
                 cudaStream_t stream) {
    const int width = int(heap.dim(1) * size_of(heap.dtype) / sizeof(Vector));
    dim3 blocks = slice_blocks(choices.num_slots, rows.defined() ? width : 1);
    blocks.x = std::max(blocks.x, 1u);
    gpu::launch("take_tokens_kernel", take_tokens_kernel<Vector>,
                {blocks, kThreads, 0, stream}, reinterpret_cast<Vector*>(bits_of(rows)),
                static_cast<const Vector*>(heap.bytes), choices, width);
}

void take(const Tensor& rows, const TensorView& heap, const TakenChoices& choices,
          cudaStream_t stream) {
    const std::int64_t row_bytes = heap.dim(1) * std::int64_t(size_of(heap.dtype));
    switch (vector_bytes(reinterpret_cast<std::uintptr_t>(heap.bytes) | bits_of(rows) |
                         std::uintptr_t(row_bytes))) {
        case 16: return launch_take<uint4>(rows, heap, choices, stream);
        case 4: return launch_take<unsigned>(rows, heap, choices, stream);
        default: launch_take<unsigned short>(rows, heap, choices, stream);
    }
}

}  // namespace

TakenTokens take_tokens(const FlexSlots& slots, const distributed::PeerTable& table,
                        bool with_rows, cudaStream_t stream) {
    const std::int64_t N = slots.num_slots();
    const auto own = [&](const HeapSection& section) {
        return own_slots(section, N, table);
    };
    const TensorView heap = own(slots.tokens);
    TakenTokens taken;
    taken.topk_ids = gpu::device_empty<int>({N, slots.topk_ids.width});
    taken.topk_probs = gpu::device_empty<float>({N, slots.topk_probs.width});
    taken.counts = gpu::device_empty<int>({slots.num_ranks});
    if (with_rows) taken.rows = Tensor::empty(heap.shape, heap.dtype, heap.space);
    take(taken.rows, heap,
         {gpu::device_data<int>(taken.topk_ids), gpu::device_data<int>(taken.counts),
          gpu::device_data<float>(taken.topk_probs),
          static_cast<const int*>(own(slots.topk_ids).bytes),
          static_cast<const int*>(own_slots(slots.counts, slots.num_ranks, table).bytes),
          static_cast<const float*>(own(slots.topk_probs).bytes), int(N), slots.num_ranks,
          int(slots.per_source), int(slots.topk_ids.width)},
         stream);
    return taken;
}

Tensor take_rows(const FlexSlots& slots, const distributed::PeerTable& table,
                 const Tensor& counts, cudaStream_t stream) {
    const TensorView heap = own_slots(slots.tokens, slots.num_slots(), table);
    const Tensor rows = Tensor::empty(heap.shape, heap.dtype, heap.space);
    TakenChoices none = {};
    none.heap_counts = gpu::device_data<int>(counts);
    none.num_slots = int(slots.num_slots());
    none.per_source = int(slots.per_source);
    take(rows, heap, none, stream);
    return rows;
}
//! [take_tokens]

}  // namespace moe::optimized
