// token_dropping.cu: capacity, drop policies, padding to capacity.

#include "naive_gpu/token_dropping.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::naive {
namespace {

/// How many tokens expert e prefers to token t; equal tokens in index order.
/// @param keys (T, E), the larger the better
template <typename Key>
__device__ std::int64_t rank_of_token(const Key* keys, std::int64_t t, std::int64_t e,
                                      std::int64_t T, std::int64_t E) {
    const Key mine = keys[t * E + e];
    std::int64_t rank = 0;
    for (std::int64_t other = 0; other < T; ++other) {
        const Key theirs = keys[other * E + e];
        rank += theirs > mine || (theirs == mine && other < t);
    }
    return rank;
}

}  // namespace

//! [token_dropping]
namespace {

/// One thread per token and expert: it stays if fewer than `capacity` tokens are before
/// it.
template <typename Scalar>
__global__ void apply_token_dropping_kernel(Scalar* kept_p, std::uint8_t* kept_map,
                                            const Scalar* p, const std::uint8_t* routed,
                                            std::int64_t T, std::int64_t E,
                                            std::int64_t capacity, bool by_probs,
                                            bool pad) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= T * E) return;
    const std::int64_t t = i / E, e = i % E;
    const std::int64_t rank =
        by_probs ? rank_of_token(p, t, e, T, E) : rank_of_token(routed, t, e, T, E);
    const bool kept = rank < capacity && (pad || routed[i] != 0);
    kept_map[i] = kept ? 1 : 0;
    kept_p[i] = kept ? p[i] : Scalar(0);
}

}  // namespace

template <typename Scalar>
DroppedRouting apply_token_dropping(const Tensor& probs, const Tensor& routing_map,
                                    const MoEConfig& config) {
    const std::int64_t T = probs.dim(0), E = probs.dim(1);
    const std::int64_t capacity = get_capacity(config, T);
    const bool pad = config.moe_pad_expert_input_to_capacity;
    if (pad && capacity > T)
        reject(
            "moe_expert_capacity_factor", *config.moe_expert_capacity_factor,
            fmt::format("with moe_pad_expert_input_to_capacity the capacity ({}) must be "
                        "at most the number of tokens ({})",
                        capacity, T));

    // ④ each expert chooses among its tokens
    DroppedRouting kept{gpu::device_empty<Scalar>({T, E}),
                        gpu::device_empty<std::uint8_t>({T, E})};
    gpu::launch("apply_token_dropping_kernel", apply_token_dropping_kernel<Scalar>,
                gpu::one_thread_per(T * E), gpu::device_data<Scalar>(kept.probs),
                gpu::device_data<std::uint8_t>(kept.routing_map),
                gpu::device_data<Scalar>(probs),
                gpu::device_data<std::uint8_t>(routing_map), T, E, capacity,
                config.moe_token_drop_policy == "probs", pad);
    return kept;
}

namespace {

/// One thread per token and expert.
template <typename Scalar>
__global__ void apply_token_dropping_backward_kernel(Scalar* result, const Scalar* dprobs,
                                                     const std::uint8_t* kept,
                                                     std::int64_t count) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    result[i] = kept[i] != 0 ? dprobs[i] : Scalar(0);
}

}  // namespace

template <typename Scalar>
Tensor apply_token_dropping_backward(const Tensor& dprobs, const Tensor& kept_map) {
    Tensor result = gpu::device_empty<Scalar>(dprobs.shape());
    gpu::launch("apply_token_dropping_backward_kernel",
                apply_token_dropping_backward_kernel<Scalar>,
                gpu::one_thread_per(result.numel()), gpu::device_data<Scalar>(result),
                gpu::device_data<Scalar>(dprobs),
                gpu::device_data<std::uint8_t>(kept_map), result.numel());
    return result;
}
//! [token_dropping]

#define INSTANTIATE(Scalar)                                                            \
    template DroppedRouting apply_token_dropping<Scalar>(const Tensor&, const Tensor&, \
                                                         const MoEConfig&);            \
    template Tensor apply_token_dropping_backward<Scalar>(const Tensor&, const Tensor&);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::naive
