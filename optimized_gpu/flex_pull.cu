// flex_pull.cu: sums out of the peers' heaps.

#include "gpu/launch.h"
#include "optimized_gpu/flex_phases.h"
#include "optimized_gpu/sent_rows.h"

namespace moe::optimized {

//! [pull_rows]
namespace {

inline constexpr int kRowsAtOnce = 8;

/// A warp for a slice of each token.
template <typename T, typename Vector>
__global__ void __launch_bounds__(kThreads)
    pull_rows_kernel(Vector* sums, PeerSlots<Vector> peers, const Vector* addend,
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
                if (is_inside && row >= 0)
                    pulled[j] = sent.in_heap(peers, rank, row)[column];
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
__global__ void pull_prob_gradients_kernel(float* dprobs, PeerSlots<float> peers,
                                           const int* topk_ids, SentRows sent,
                                           ExpertGrid grid, int K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= std::int64_t(sent.num_tokens) * K) return;
    const int token = int(i / K), k = int(i % K), shards = int(grid.num_shards);
    const int id = topk_ids[i];
    float sum = 0.0f;
    for (int s = 0; id >= 0 && s < shards; ++s) {
        const int rank = id / int(grid.num_local) * shards + s;
        sum += sent.in_heap(peers, rank, sent.row_of(token, rank))[k * shards + s];
    }
    dprobs[i] = sum;
}

template <typename T, typename Vector>
void launch_pull(const Tensor& sums, const PeerSlots<std::byte>& peers,
                 const Tensor& addend, const RowMap& sent, cudaStream_t stream) {
    const PeerSlots<Vector> vectors = in_vectors<Vector>(peers);
    gpu::launch("pull_rows_kernel", pull_rows_kernel<T, Vector>,
                {slice_blocks(sent.num_tokens, int(vectors.width)), kThreads, 0, stream},
                reinterpret_cast<Vector*>(sums.view().bytes), vectors,
                reinterpret_cast<const Vector*>(bits_of(addend)), SentRows(sent));
}

}  // namespace

Tensor pull_rows(const PeerSlots<std::byte>& peers, DType dtype, const RowMap& sent,
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

Tensor pull_prob_gradients(const PeerSlots<float>& peers, const Tensor& topk_ids,
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
