// flex_phases.cu: what the flex dispatcher does with the peers' heaps. That all have
// written, the dispatcher's barriers say.

#include "optimized_gpu/flex_phases.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/token_slices.h"

namespace moe::optimized {
namespace {

/// The rows that I push, as kernels see them.
struct SentRows {
    const int *token_rows, *row_slot;  // (T, W'), (T W')
    int num_tokens, num_ranks;

    explicit SentRows(const RowMap& sent)
        : token_rows(gpu::device_data<int>(sent.token_rows)),
          row_slot(gpu::device_data<int>(sent.row_slot)),
          num_tokens(sent.num_tokens),
          num_ranks(sent.num_experts) {}

    __device__ int rank_of(int row) const { return row_slot[row] % num_ranks; }
    __device__ int token_of(int row) const { return row_slot[row] / num_ranks; }
    /// The token's row for a rank; it has one.
    __device__ int row_of(int token, int rank) const {
        const int* rows = token_rows + std::int64_t(token) * num_ranks;
        while (rank_of(*rows) != rank) ++rows;
        return *rows;
    }
};

/// Row r of what I push, in the heap of its rank.
template <typename E>
__device__ E* peer_row(const PeerRows<E>& peers, int rank, int r) {
    return peers.of[rank] + (peers.shift[rank] + r) * peers.width;
}

template <typename Vector>
PeerRows<Vector> in_vectors(const PeerRows<std::byte>& bytes) {
    PeerRows<Vector> vectors;
    vectors.width = bytes.width / std::int64_t(sizeof(Vector));
    for (int w = 0; w < distributed::kMaxPeers; ++w) {
        vectors.of[w] = reinterpret_cast<Vector*>(bytes.of[w]);
        vectors.shift[w] = bytes.shift[w];
    }
    return vectors;
}

std::uintptr_t bits_of(const Tensor& tensor) {
    return tensor.defined() ? reinterpret_cast<std::uintptr_t>(tensor.view().bytes) : 0;
}

}  // namespace

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

/// A warp for a slice of each token, to all its ranks.
template <typename Vector>
__global__ void __launch_bounds__(kThreads)
    push_rows_kernel(PeerRows<Vector> peers, const Vector* source, SentRows sent) {
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
        Vector* to = peer_row(peers, rank, row);
        for (int step = 0; step < kSteps; ++step) {
            const int column = first_column() + step * kLanes;
            if (column < width) to[column] = slice[step];
        }
    }
}

/// A thread for each slot of each row; the first also says where the row comes from.
__global__ void push_choices_kernel(PeerChoices peers, const int* topk_ids,
                                    const float* topk_probs, SentRows sent,
                                    ExpertGrid grid, std::int64_t num_rows, int K,
                                    int my_rank) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    const int shards = int(grid.num_shards), L = int(grid.num_local);
    if (i >= num_rows * K * shards) return;
    const int row = int(i / (K * shards)), slot = int(i % (K * shards));
    const int token = sent.token_of(row), rank = sent.rank_of(row);
    const std::int64_t choice = std::int64_t(token) * K + slot / shards;
    const int id = topk_ids[choice];
    const bool here = id >= 0 && id / L * shards + slot % shards == rank;
    peer_row(peers.topk_ids, rank, row)[slot] = here ? id % L : -1;
    peer_row(peers.topk_probs, rank, row)[slot] = here ? topk_probs[choice] : 0.0f;
    if (slot > 0) return;
    peer_row(peers.sources, rank, row)[0] = my_rank;
    peer_row(peers.sources, rank, row)[1] = token;
}

template <typename Vector>
void launch_push(const PeerRows<std::byte>& peers, const Tensor& source,
                 const RowMap& sent, cudaStream_t stream) {
    const PeerRows<Vector> vectors = in_vectors<Vector>(peers);
    gpu::launch("push_rows_kernel", push_rows_kernel<Vector>,
                {slice_blocks(sent.num_tokens, int(vectors.width)), kThreads, 0, stream},
                vectors, reinterpret_cast<const Vector*>(source.view().bytes),
                SentRows(sent));
}

}  // namespace

void push_rows(const PeerRows<std::byte>& peers, const Tensor& source, const RowMap& sent,
               cudaStream_t stream) {
    MOE_CHECK_EQ(source.dim(0), sent.num_tokens);
    switch (vector_bytes(bits_of(source) | peers.width)) {  // bits, of any type
        case 16: return launch_push<uint4>(peers, source, sent, stream);
        case 4: return launch_push<unsigned>(peers, source, sent, stream);
        default: launch_push<unsigned short>(peers, source, sent, stream);
    }
}

void push_choices(const PeerChoices& peers, const Tensor& topk_ids,
                  const Tensor& topk_probs, const RowMap& sent, const ExpertGrid& grid,
                  std::int64_t num_rows, int rank, cudaStream_t stream) {
    const int K = int(topk_ids.dim(1));
    gpu::launch("push_choices_kernel", push_choices_kernel,
                gpu::one_thread_per(num_rows * K * grid.num_shards, stream), peers,
                gpu::device_data<int>(topk_ids), gpu::device_data<float>(topk_probs),
                SentRows(sent), grid, num_rows, K, rank);
}
//! [push_rows]

//! [pull_rows]
namespace {

inline constexpr int kRowsAtOnce = 8;

/// A warp for a slice of each token.
template <typename T, typename Vector>
__global__ void __launch_bounds__(kThreads)
    pull_rows_kernel(Vector* sums, PeerRows<Vector> peers, const Vector* addend,
                     SentRows sent) {
    constexpr int kElements = sizeof(Vector) / sizeof(T);
    const int token = int(blockIdx.x) * kWarps + warp_index();
    if (token >= sent.num_tokens) return;
    const int width = int(peers.width);
    const std::int64_t start = std::int64_t(token) * width;
#pragma unroll 1
    for (int step = 0; step < kSteps; ++step) {
        const int column = first_column() + step * kLanes;
        const bool is_inside = column < width;
        float sum[kElements] = {};
        for (int first = 0; first < sent.num_ranks; first += kRowsAtOnce) {
            const int own_row =
                load_rows_of_token(sent.token_rows, token, sent.num_ranks, first);
            const int own_rank = own_row >= 0 ? sent.rank_of(own_row) : 0;
            // TUTORIAL: the way to another GPU's memory is long; as in combine_kernel
            // all loads are on it before the first addition.
            Vector pulled[kRowsAtOnce] = {};
            for (int j = 0; j < kRowsAtOnce; ++j) {
                const int row = __shfl_sync(kAllLanes, own_row, j);
                const int rank = __shfl_sync(kAllLanes, own_rank, j);
                if (is_inside && row >= 0) pulled[j] = peer_row(peers, rank, row)[column];
            }
            if (!__any_sync(kAllLanes, is_inside)) return;
            for (int j = 0; j < kRowsAtOnce; ++j)  // zeros of absent rows change nothing
                for (int i = 0; i < kElements; ++i) sum[i] += element<T>(pulled[j], i);
            if (__shfl_sync(kAllLanes, own_row, kRowsAtOnce - 1) < 0) break;
        }
        Vector added = {}, result;
        if (is_inside && addend != nullptr) added = addend[start + column];
        for (int i = 0; i < kElements; ++i)
            set_element<T>(result, i, sum[i] + element<T>(added, i));
        if (is_inside) sums[start + column] = result;
    }
}

/// A thread for each choice.
__global__ void pull_prob_gradients_kernel(float* dprobs, PeerRows<float> peers,
                                           const int* topk_ids, SentRows sent,
                                           ExpertGrid grid, int K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= std::int64_t(sent.num_tokens) * K) return;
    const int token = int(i / K), k = int(i % K), shards = int(grid.num_shards);
    const int id = topk_ids[i];
    float sum = 0.0f;
    for (int s = 0; id >= 0 && s < shards; ++s) {
        const int rank = id / int(grid.num_local) * shards + s;
        sum += peer_row(peers, rank, sent.row_of(token, rank))[k * shards + s];
    }
    dprobs[i] = sum;
}

template <typename T, typename Vector>
void launch_pull(const Tensor& sums, const PeerRows<std::byte>& peers,
                 const Tensor& addend, const RowMap& sent, cudaStream_t stream) {
    const PeerRows<Vector> vectors = in_vectors<Vector>(peers);
    gpu::launch("pull_rows_kernel", pull_rows_kernel<T, Vector>,
                {slice_blocks(sent.num_tokens, int(vectors.width)), kThreads, 0, stream},
                reinterpret_cast<Vector*>(sums.view().bytes), vectors,
                reinterpret_cast<const Vector*>(bits_of(addend)), SentRows(sent));
}

}  // namespace

Tensor pull_rows(const PeerRows<std::byte>& peers, DType dtype, const RowMap& sent,
                 const Tensor& addend, cudaStream_t stream) {
    const std::int64_t H = peers.width / std::int64_t(size_of(dtype));
    Tensor sums = Tensor::empty({sent.num_tokens, H}, dtype, MemorySpace::device);
    const int bytes = vector_bytes(bits_of(sums) | bits_of(addend) | peers.width);
    using Bf16 = __nv_bfloat16;
    if (dtype == DType::f32 && bytes == 16)
        launch_pull<float, uint4>(sums, peers, addend, sent, stream);
    else if (dtype == DType::f32)
        launch_pull<float, unsigned>(sums, peers, addend, sent, stream);
    else if (bytes == 16)
        launch_pull<Bf16, uint4>(sums, peers, addend, sent, stream);
    else if (bytes == 4)
        launch_pull<Bf16, unsigned>(sums, peers, addend, sent, stream);
    else
        launch_pull<Bf16, unsigned short>(sums, peers, addend, sent, stream);
    return sums;
}

Tensor pull_prob_gradients(const PeerRows<float>& peers, const Tensor& topk_ids,
                           const RowMap& sent, const ExpertGrid& grid,
                           cudaStream_t stream) {
    const int K = int(topk_ids.dim(1));
    Tensor dprobs = gpu::device_empty<float>({sent.num_tokens, K});
    gpu::launch("pull_prob_gradients_kernel", pull_prob_gradients_kernel,
                gpu::one_thread_per(dprobs.numel(), stream),
                gpu::device_data<float>(dprobs), peers, gpu::device_data<int>(topk_ids),
                SentRows(sent), grid, K);
    return dprobs;
}
//! [pull_rows]

}  // namespace moe::optimized
