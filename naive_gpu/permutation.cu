// permutation.cu: copy routed token rows into expert order, and back.

#include "naive_gpu/permutation.h"

#include <numeric>

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {

//! [make_row_map]
namespace {

/// One thread per token and expert.
__global__ void count_rows_kernel(unsigned long long* counts, const std::uint8_t* routed,
                                  std::int64_t count, std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count && routed[i] != 0) atomicAdd(&counts[i % E], 1ull);
}

/// One thread per expert: walks the tokens, so that its rows are in their order.
__global__ void number_rows_kernel(std::int64_t* row_token, std::int64_t* row_expert,
                                   std::int64_t* token_row, const std::uint8_t* routed,
                                   const std::int64_t* offsets, std::int64_t T,
                                   std::int64_t E) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= E) return;
    std::int64_t row = offsets[e];
    for (std::int64_t t = 0; t < T; ++t) {
        const bool is_routed = routed[t * E + e] != 0;
        token_row[t * E + e] = is_routed ? row : -1;
        if (!is_routed) continue;
        row_token[row] = t;
        row_expert[row] = e;
        ++row;
    }
}

}  // namespace

RowMap make_row_map(const Tensor& routing_map) {
    const std::int64_t T = routing_map.dim(0), E = routing_map.dim(1);
    RowMap map;
    map.num_tokens = T;
    map.num_experts = E;

    // TUTORIAL: how many rows there are is known only on the device, and the host needs
    // it to allocate them: the one place in the layer where the host must wait.
    Tensor counts = gpu::device_zeros<std::int64_t>({E});
    gpu::launch("count_rows_kernel", count_rows_kernel, gpu::one_thread_per(T * E),
                gpu::device_counts(counts), gpu::device_data<std::uint8_t>(routing_map),
                T * E, E);
    map.tokens_per_expert = gpu::to_host<std::int64_t>(counts);

    // Where the rows of each expert begin
    std::vector<std::int64_t> offsets(E + 1);
    std::partial_sum(map.tokens_per_expert.begin(), map.tokens_per_expert.end(),
                     offsets.begin() + 1);

    // Expert by expert, token by token: the row order, and its inverse
    map.row_token = gpu::device_empty<std::int64_t>({offsets[E]});
    map.row_expert = gpu::device_empty<std::int64_t>({offsets[E]});
    map.token_row = gpu::device_empty<std::int64_t>({T, E});
    const Tensor device_offsets = gpu::to_device(offsets);
    gpu::launch("number_rows_kernel", number_rows_kernel, gpu::one_thread_per(E),
                gpu::device_data<std::int64_t>(map.row_token),
                gpu::device_data<std::int64_t>(map.row_expert),
                gpu::device_data<std::int64_t>(map.token_row),
                gpu::device_data<std::uint8_t>(routing_map),
                gpu::device_data<std::int64_t>(device_offsets), T, E);
    return map;
}
//! [make_row_map]

//! [pad_routing_map]
namespace {

/// One thread per expert: walks the tokens, twice.
__global__ void pad_routing_map_kernel(std::uint8_t* padded, const std::uint8_t* routed,
                                       std::int64_t T, std::int64_t E,
                                       std::int64_t pad_multiple) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= E) return;
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < T; ++t) count += routed[t * E + e] != 0;
    for (std::int64_t t = 0; t < T; ++t) {
        const bool is_routed = routed[t * E + e] != 0;
        const bool is_padding = !is_routed && count % pad_multiple != 0;
        padded[t * E + e] = is_routed || is_padding;
        count += is_padding;
    }
}

/// One thread per token and expert.
__global__ void pad_routing_map_backward_kernel(float* dprobs, const std::uint8_t* routed,
                                                std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count && routed[i] == 0) dprobs[i] = 0.0f;
}

}  // namespace

Tensor pad_routing_map(const Tensor& routing_map, std::int64_t pad_multiple) {
    const std::int64_t T = routing_map.dim(0), E = routing_map.dim(1);
    Tensor padded = gpu::device_empty<std::uint8_t>({T, E});
    gpu::launch("pad_routing_map_kernel", pad_routing_map_kernel, gpu::one_thread_per(E),
                gpu::device_data<std::uint8_t>(padded),
                gpu::device_data<std::uint8_t>(routing_map), T, E, pad_multiple);
    return padded;
}

void pad_routing_map_backward(Tensor& dprobs, const Tensor& routing_map) {
    gpu::launch("pad_routing_map_backward_kernel", pad_routing_map_backward_kernel,
                gpu::one_thread_per(dprobs.numel()), gpu::device_data<float>(dprobs),
                gpu::device_data<std::uint8_t>(routing_map), dprobs.numel());
}
//! [pad_routing_map]

namespace {

/// One thread per element of rows (N, H).
template <typename T>
__global__ void gather_token_rows_kernel(T* rows, const T* source,
                                         const std::int64_t* row_token,
                                         std::int64_t num_rows, std::int64_t H) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_rows * H) return;
    rows[i] = source[row_token[i / H] * H + i % H];
}

/// Row r of the result is the source row of the row's token.
template <typename T>
Tensor gather_token_rows(const Tensor& source, const RowMap& map) {
    Tensor rows = gpu::device_empty<T>({map.num_rows(), source.dim(1)});
    gpu::launch("gather_token_rows_kernel", gather_token_rows_kernel<T>,
                gpu::one_thread_per(rows.numel()), gpu::device_data<T>(rows),
                gpu::device_data<T>(source),
                gpu::device_data<std::int64_t>(map.row_token), map.num_rows(),
                source.dim(1));
    return rows;
}

/// One thread per element of sums (T, H).
template <typename T>
__global__ void sum_token_rows_kernel(T* sums, const T* rows,
                                      const std::int64_t* token_row,
                                      std::int64_t num_tokens, std::int64_t E,
                                      std::int64_t H) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= num_tokens * H) return;
    const std::int64_t t = i / H, column = i % H;
    gpu::Accumulator<T> sum = 0;
    for (std::int64_t e = 0; e < E; ++e) {
        const std::int64_t row = token_row[t * E + e];
        if (row >= 0) sum += gpu::widen(rows[row * H + column]);
    }
    sums[i] = gpu::narrow<T>(sum);
}

/// Row t of the result is the sum of the token's rows, in ascending order.
template <typename T>
Tensor sum_token_rows(const Tensor& rows, const RowMap& map) {
    const std::int64_t H = rows.dim(1);
    Tensor sums = gpu::device_empty<T>({map.num_tokens, H});
    gpu::launch("sum_token_rows_kernel", sum_token_rows_kernel<T>,
                gpu::one_thread_per(sums.numel()), gpu::device_data<T>(sums),
                gpu::device_data<T>(rows), gpu::device_data<std::int64_t>(map.token_row),
                map.num_tokens, map.num_experts, H);
    return sums;
}

}  // namespace

//! [permute]
template <typename T>
Tensor permute(const Tensor& tokens, const RowMap& map) {
    return gather_token_rows<T>(tokens, map);
}

template <typename T>
Tensor permute_backward(const Tensor& drows, const RowMap& map) {
    return sum_token_rows<T>(drows, map);
}

namespace {

/// One thread per row.
template <typename Prob>
__global__ void permute_probs_kernel(Prob* row_probs, const Prob* probs,
                                     const std::int64_t* row_token,
                                     const std::int64_t* row_expert,
                                     std::int64_t num_rows, std::int64_t E) {
    const std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (r < num_rows) row_probs[r] = probs[row_token[r] * E + row_expert[r]];
}

/// One thread per row; no two rows have the same token and expert.
template <typename Prob>
__global__ void permute_probs_backward_kernel(Prob* dprobs, const Prob* drow_probs,
                                              const std::int64_t* row_token,
                                              const std::int64_t* row_expert,
                                              std::int64_t num_rows, std::int64_t E) {
    const std::int64_t r = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (r < num_rows) dprobs[row_token[r] * E + row_expert[r]] = drow_probs[r];
}

}  // namespace

template <typename Prob>
Tensor permute_probs(const Tensor& probs, const RowMap& map) {
    Tensor row_probs = gpu::device_empty<Prob>({map.num_rows()});
    gpu::launch(
        "permute_probs_kernel", permute_probs_kernel<Prob>,
        gpu::one_thread_per(map.num_rows()), gpu::device_data<Prob>(row_probs),
        gpu::device_data<Prob>(probs), gpu::device_data<std::int64_t>(map.row_token),
        gpu::device_data<std::int64_t>(map.row_expert), map.num_rows(), map.num_experts);
    return row_probs;
}

template <typename Prob>
Tensor permute_probs_backward(const Tensor& drow_probs, const RowMap& map) {
    Tensor dprobs = gpu::device_zeros<Prob>({map.num_tokens, map.num_experts});
    gpu::launch(
        "permute_probs_backward_kernel", permute_probs_backward_kernel<Prob>,
        gpu::one_thread_per(map.num_rows()), gpu::device_data<Prob>(dprobs),
        gpu::device_data<Prob>(drow_probs), gpu::device_data<std::int64_t>(map.row_token),
        gpu::device_data<std::int64_t>(map.row_expert), map.num_rows(), map.num_experts);
    return dprobs;
}
//! [permute]

//! [unpermute]
template <typename T>
Tensor unpermute(const Tensor& rows, const RowMap& map) {
    return sum_token_rows<T>(rows, map);
}

template <typename T>
Tensor unpermute_backward(const Tensor& doutput, const RowMap& map) {
    return gather_token_rows<T>(doutput, map);
}
//! [unpermute]

namespace {

/// One thread per element of a chunk.
template <typename T>
__global__ void copy_chunk_kernel(T* target, const T* source, std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < count) target[i] = source[i];
}

}  // namespace

template <typename T>
Tensor sort_chunks_by_idxs(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                           const std::vector<std::int64_t>& order) {
    MOE_CHECK_EQ(sizes.size(), order.size());
    std::vector<std::int64_t> starts = {0};
    for (std::int64_t size : sizes) starts.push_back(starts.back() + size);
    MOE_CHECK_EQ(starts.back(), rows.dim(0));

    const std::int64_t H = rows.shape().size() == 1 ? 1 : rows.dim(1);
    Tensor sorted = gpu::device_empty<T>(rows.shape());
    std::int64_t next = 0;
    for (std::int64_t chunk : order) {
        const std::int64_t count = sizes[chunk] * H;
        gpu::launch("copy_chunk_kernel", copy_chunk_kernel<T>, gpu::one_thread_per(count),
                    gpu::device_data<T>(sorted) + next * H,
                    gpu::device_data<T>(rows) + starts[chunk] * H, count);
        next += sizes[chunk];
    }
    return sorted;
}

#define INSTANTIATE(T)                                                       \
    template Tensor permute<T>(const Tensor&, const RowMap&);                \
    template Tensor permute_backward<T>(const Tensor&, const RowMap&);       \
    template Tensor unpermute<T>(const Tensor&, const RowMap&);              \
    template Tensor unpermute_backward<T>(const Tensor&, const RowMap&);     \
    template Tensor sort_chunks_by_idxs<T>(const Tensor&,                    \
                                           const std::vector<std::int64_t>&, \
                                           const std::vector<std::int64_t>&);
INSTANTIATE(float)
INSTANTIATE(__nv_bfloat16)
#undef INSTANTIATE
template Tensor permute_probs<float>(const Tensor&, const RowMap&);
template Tensor permute_probs_backward<float>(const Tensor&, const RowMap&);

}  // namespace moe::naive
