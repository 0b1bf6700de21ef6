// token_dropping.cpp: capacity, drop policies, padding to capacity.

#include "reference_cpu/token_dropping.h"

#include <algorithm>
#include <numeric>

#include "reference_cpu/eigen.h"

namespace moe::cpu {
namespace {

/// All tokens, best first, as one expert sees them. Stable: equal tokens in index order.
template <typename Scalar>
std::vector<std::int64_t> rank_tokens(const Tensor& probs, const Tensor& routing_map,
                                      std::int64_t e, bool by_probs) {
    const std::int64_t T = probs.dim(0), E = probs.dim(1);
    const Scalar* p = probs.data<Scalar>();
    const std::uint8_t* routed = routing_map.data<std::uint8_t>();
    std::vector<std::int64_t> tokens(T);
    std::iota(tokens.begin(), tokens.end(), 0);
    std::stable_sort(tokens.begin(), tokens.end(), [&](std::int64_t a, std::int64_t b) {
        return by_probs ? p[a * E + e] > p[b * E + e]
                        : routed[a * E + e] > routed[b * E + e];
    });
    return tokens;
}

}  // namespace

//! [token_dropping]
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

    DroppedRouting kept{Tensor::zeros({T, E}, dtype_of<Scalar>),
                        Tensor::zeros({T, E}, DType::u8)};
    const Scalar* p = probs.data<Scalar>();
    const std::uint8_t* routed = routing_map.data<std::uint8_t>();
    Scalar* kept_p = kept.probs.data<Scalar>();
    std::uint8_t* kept_map = kept.routing_map.data<std::uint8_t>();

    // ④ each expert chooses among its tokens
#pragma omp parallel for schedule(static)
    for (std::int64_t e = 0; e < E; ++e) {
        const auto tokens = rank_tokens<Scalar>(probs, routing_map, e,
                                                config.moe_token_drop_policy == "probs");
        for (std::int64_t i = 0; i < std::min(capacity, T); ++i) {
            const std::int64_t at = tokens[i] * E + e;
            if (!pad && !routed[at]) continue;
            kept_map[at] = 1;
            kept_p[at] = p[at];
        }
    }
    return kept;
}

template <typename Scalar>
Tensor apply_token_dropping_backward(const Tensor& dprobs, const Tensor& kept_map) {
    Tensor result = dprobs.clone();
    const std::uint8_t* kept = kept_map.data<std::uint8_t>();
    for (std::int64_t i = 0; i < result.numel(); ++i)
        if (!kept[i]) result.data<Scalar>()[i] = 0;
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

}  // namespace moe::cpu
