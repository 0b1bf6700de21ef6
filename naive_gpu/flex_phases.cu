// flex_phases.cu: what the flex dispatcher does with the peers' heaps. A kernel writes
// and reads them through plain pointers; that all have written, the host says.

#include "naive_gpu/flex_phases.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {

using distributed::PeerRows;

namespace {

/// Row r of what I push, in the heap of its rank.
template <typename T>
__device__ T* peer_row(const PeerRows<T>& peers, std::int64_t rank, std::int64_t r) {
    return peers.of[rank] + (peers.shift[rank] + r) * peers.width;
}

}  // namespace

//! [get_dispatch_layout]
namespace {

/// One thread per token. *lost counts the choices for which there was no slot.
__global__ void topk_kernel(std::int64_t* topk_ids, float* topk_probs,
                            std::uint8_t* is_token_in_rank, unsigned long long* lost,
                            const float* probs, const std::uint8_t* routed,
                            ExpertGrid grid, std::int64_t num_tokens, std::int64_t E,
                            std::int64_t slots) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= num_tokens) return;
    std::int64_t k = 0;
    for (std::int64_t w = 0; w < grid.num_ranks; ++w) {
        bool in_rank = false;
        for (std::int64_t l = 0; l < grid.num_local; ++l) {
            const std::int64_t e = w / grid.num_shards * grid.num_local + l;
            if (routed[t * E + e] == 0) continue;
            in_rank = true;
            if (k < slots) {
                topk_ids[t * slots + k] = w * grid.num_local + l;
                topk_probs[t * slots + k] = probs[t * E + e];
            } else {
                atomicAdd(lost, 1ull);
            }
            ++k;
        }
        is_token_in_rank[t * grid.num_ranks + w] = in_rank;
    }
    for (; k < slots; ++k) {
        topk_ids[t * slots + k] = -1;
        topk_probs[t * slots + k] = 0.0f;
    }
}

}  // namespace

DispatchLayout get_dispatch_layout(const Tensor& probs, const Tensor& routing_map,
                                   const ExpertGrid& grid, std::int64_t slots) {
    const std::int64_t num_tokens = routing_map.dim(0);
    DispatchLayout layout;
    layout.topk_ids = gpu::device_empty<std::int64_t>({num_tokens, slots});
    layout.topk_probs = gpu::device_empty<float>({num_tokens, slots});
    Tensor is_token_in_rank =
        gpu::device_empty<std::uint8_t>({num_tokens, grid.num_ranks});
    Tensor lost = gpu::device_zeros<std::int64_t>({1});
    gpu::launch("topk_kernel", topk_kernel, gpu::one_thread_per(num_tokens),
                gpu::device_data<std::int64_t>(layout.topk_ids),
                gpu::device_data<float>(layout.topk_probs),
                gpu::device_data<std::uint8_t>(is_token_in_rank),
                gpu::device_counts(lost), gpu::device_data<float>(probs),
                gpu::device_data<std::uint8_t>(routing_map), grid, num_tokens,
                routing_map.dim(1), slots);
    MOE_CHECK_EQ(gpu::to_host<std::int64_t>(lost)[0], 0);  // at most K experts per token
    layout.sent = make_row_map(is_token_in_rank);
    return layout;
}
//! [get_dispatch_layout]

//! [push_rows]
namespace {

/// One thread per element of the rows to push.
template <typename T>
__global__ void push_rows_kernel(PeerRows<T> peers, const T* source,
                                 const std::int64_t* row_token,
                                 const std::int64_t* row_rank, std::int64_t num_rows) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_rows * peers.width) return;
    const std::int64_t r = i / peers.width, column = i % peers.width;
    peer_row(peers, row_rank[r], r)[column] = source[row_token[r] * peers.width + column];
}

/// One thread per row to push.
__global__ void push_choices_kernel(PeerChoices peers, const std::int64_t* topk_ids,
                                    const float* topk_probs,
                                    const std::int64_t* row_token,
                                    const std::int64_t* row_rank, std::int64_t num_rows,
                                    std::int64_t slots, std::int64_t num_local,
                                    std::int64_t rank) {
    const std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (r >= num_rows) return;
    const std::int64_t t = row_token[r], w = row_rank[r];
    std::int32_t* peer_ids = peer_row(peers.topk_ids, w, r);
    float* peer_probs = peer_row(peers.topk_probs, w, r);
    for (std::int64_t k = 0; k < slots; ++k) {
        const std::int64_t id = topk_ids[t * slots + k];
        const bool here = id >= 0 && id / num_local == w;
        peer_ids[k] = here ? int(id % num_local) : -1;
        peer_probs[k] = here ? topk_probs[t * slots + k] : 0.0f;
    }
    std::int32_t* source = peer_row(peers.sources, w, r);
    source[0] = int(rank);
    source[1] = int(t);
}

}  // namespace

template <typename T>
void push_rows(const PeerRows<T>& peers, const Tensor& source, const RowMap& sent) {
    gpu::launch("push_rows_kernel", push_rows_kernel<T>,
                gpu::one_thread_per(sent.num_rows() * peers.width), peers,
                gpu::device_data<T>(source),
                gpu::device_data<std::int64_t>(sent.row_token),
                gpu::device_data<std::int64_t>(sent.row_expert), sent.num_rows());
}

void push_choices(const PeerChoices& peers, const DispatchLayout& layout,
                  const ExpertGrid& grid, std::int64_t rank) {
    const RowMap& sent = layout.sent;
    gpu::launch("push_choices_kernel", push_choices_kernel,
                gpu::one_thread_per(sent.num_rows()), peers,
                gpu::device_data<std::int64_t>(layout.topk_ids),
                gpu::device_data<float>(layout.topk_probs),
                gpu::device_data<std::int64_t>(sent.row_token),
                gpu::device_data<std::int64_t>(sent.row_expert), sent.num_rows(),
                layout.topk_ids.dim(1), grid.num_local, rank);
}
//! [push_rows]

//! [indices_to_multihot]
namespace {

/// One thread per received row.
__global__ void indices_to_multihot_kernel(std::uint8_t* map, float* probs,
                                           const std::int32_t* topk_ids,
                                           const float* topk_probs, std::int64_t num_rows,
                                           std::int64_t slots, std::int64_t num_local) {
    const std::int64_t n = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= num_rows) return;
    for (std::int64_t k = 0; k < slots; ++k) {
        const std::int64_t l = topk_ids[n * slots + k];
        if (l < 0) continue;
        map[n * num_local + l] = 1;
        probs[n * num_local + l] = topk_probs[n * slots + k];
    }
}

/// One thread per received row and slot.
__global__ void indices_to_multihot_backward_kernel(
    float* dtopk_probs, const float* dprobs, const std::int32_t* topk_ids,
    std::int64_t count, std::int64_t slots, std::int64_t num_local) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t n = i / slots, l = topk_ids[i];
    dtopk_probs[i] = l >= 0 ? dprobs[n * num_local + l] : 0.0f;
}

}  // namespace

Multihot indices_to_multihot(const Tensor& topk_ids, const Tensor& topk_probs,
                             std::int64_t num_local) {
    const std::int64_t N = topk_ids.dim(0), slots = topk_ids.dim(1);
    Multihot multihot{gpu::device_zeros<std::uint8_t>({N, num_local}),
                      gpu::device_zeros<float>({N, num_local})};
    gpu::launch("indices_to_multihot_kernel", indices_to_multihot_kernel,
                gpu::one_thread_per(N), gpu::device_data<std::uint8_t>(multihot.map),
                gpu::device_data<float>(multihot.probs),
                gpu::device_data<std::int32_t>(topk_ids),
                gpu::device_data<float>(topk_probs), N, slots, num_local);
    return multihot;
}

Tensor indices_to_multihot_backward(const Tensor& dprobs, const Tensor& topk_ids) {
    Tensor dtopk_probs = gpu::device_empty<float>(topk_ids.shape());
    gpu::launch(
        "indices_to_multihot_backward_kernel", indices_to_multihot_backward_kernel,
        gpu::one_thread_per(topk_ids.numel()), gpu::device_data<float>(dtopk_probs),
        gpu::device_data<float>(dprobs), gpu::device_data<std::int32_t>(topk_ids),
        topk_ids.numel(), topk_ids.dim(1), dprobs.dim(1));
    return dtopk_probs;
}
//! [indices_to_multihot]

//! [pull_rows]
namespace {

/// One thread per element of sums (T, H).
template <typename T>
__global__ void pull_rows_kernel(T* sums, PeerRows<T> peers,
                                 const std::int64_t* token_row, std::int64_t num_tokens,
                                 std::int64_t num_ranks) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_tokens * peers.width) return;
    const std::int64_t t = i / peers.width, column = i % peers.width;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t w = 0; w < num_ranks; ++w) {
        const std::int64_t row = token_row[t * num_ranks + w];
        if (row >= 0) sum += gpu::widen(peer_row(peers, w, row)[column]);
    }
    sums[i] = gpu::narrow<T>(sum);
}

/// One thread per token and expert: looks for its choice on all shards.
__global__ void pull_prob_gradients_kernel(float* dprobs, PeerRows<float> peers,
                                           const std::int64_t* topk_ids,
                                           const std::int64_t* token_row, ExpertGrid grid,
                                           std::int64_t count, std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / E, e = i % E, slots = peers.width;
    const std::int64_t ep = e / grid.num_local, l = e % grid.num_local;
    float sum = 0;
    for (std::int64_t shard = 0; shard < grid.num_shards; ++shard) {
        const std::int64_t w = ep * grid.num_shards + shard;
        const std::int64_t row = token_row[t * grid.num_ranks + w];
        if (row < 0) continue;
        for (std::int64_t k = 0; k < slots; ++k)
            if (topk_ids[t * slots + k] == w * grid.num_local + l)
                sum += peer_row(peers, w, row)[k];
    }
    dprobs[i] = sum;
}

}  // namespace

template <typename T>
Tensor pull_rows(const PeerRows<T>& peers, const RowMap& sent) {
    Tensor sums = gpu::device_empty<T>({sent.num_tokens, peers.width});
    gpu::launch("pull_rows_kernel", pull_rows_kernel<T>,
                gpu::one_thread_per(sums.numel()), gpu::device_data<T>(sums), peers,
                gpu::device_data<std::int64_t>(sent.token_row), sent.num_tokens,
                sent.num_experts);
    return sums;
}

Tensor pull_prob_gradients(const PeerRows<float>& peers, const DispatchLayout& layout,
                           const ExpertGrid& grid, std::int64_t num_experts) {
    const RowMap& sent = layout.sent;
    Tensor dprobs = gpu::device_empty<float>({sent.num_tokens, num_experts});
    gpu::launch("pull_prob_gradients_kernel", pull_prob_gradients_kernel,
                gpu::one_thread_per(dprobs.numel()), gpu::device_data<float>(dprobs),
                peers, gpu::device_data<std::int64_t>(layout.topk_ids),
                gpu::device_data<std::int64_t>(sent.token_row), grid, dprobs.numel(),
                num_experts);
    return dprobs;
}
//! [pull_rows]

#define INSTANTIATE(T)                                                            \
    template void push_rows<T>(const PeerRows<T>&, const Tensor&, const RowMap&); \
    template Tensor pull_rows<T>(const PeerRows<T>&, const RowMap&);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE

}  // namespace moe::naive
