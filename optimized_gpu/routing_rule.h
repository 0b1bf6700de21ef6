/// @file
/// How experts are chosen, as a struct for kernels. Source: transformer_config.py.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/config.h"

namespace moe::optimized {

inline constexpr std::int64_t kMostExperts = 1024;  ///< E: 32 in registers of each lane
inline constexpr std::int64_t kMostChoices = 32;    ///< K: one for each lane

/// moe_router_score_function.
enum class ScoreFunction { softmax, sigmoid, sqrtsoftplus };

/// How experts are chosen and weighted: the fields of MoEConfig that kernels need, which
/// take it by value.
struct RoutingRule {
    int num_experts = 0;  ///< E
    int topk = 0;         ///< K
    ScoreFunction function = ScoreFunction::softmax;
    bool pre_softmax = false;
    int num_groups = 0;  ///< 0: every expert may be chosen
    int group_topk = 0;
    int group_score_topk = 0;  ///< best experts that make a group's score
    bool norm_topk_prob = true;
    float scaling_factor = 1.0f;
    bool rounds = false;  ///< weights and gradients are those of a router of bf16

    bool operator==(const RoutingRule&) const = default;
    /// Softmax over all experts, of which the K largest are chosen.
    __host__ __device__ bool is_pre_softmax() const {
        return function == ScoreFunction::softmax && pre_softmax;
    }
    /// Softmax after top-k: the logits choose, and only the chosen share the softmax.
    __host__ __device__ bool is_post_softmax() const {
        return function == ScoreFunction::softmax && !pre_softmax;
    }
    /// A weight, or a gradient, as the router has it: core/router_rounding.h.
    __device__ float rounded(float value) const {
        return rounds ? __bfloat162float(__float2bfloat16(value)) : value;
    }
    /// Softmax before top-k stays as it is, and so does a single score.
    __host__ __device__ bool normalizes() const {
        return function != ScoreFunction::softmax && topk > 1 && norm_topk_prob;
    }
};

/// InputError for routers that no kernel of this tier holds: K > 32, E > 1024; naive_gpu
/// does.
void check_router_limits(const MoEConfig& config);

/// The rule of a finalized config, checked by the above.
RoutingRule make_routing_rule(const MoEConfig& config);

/// How many populations the statistics of the losses are kept for: 0 without a loss; B,
/// the sequences of the micro-batch, with a seq_aux_loss; else 1.
std::int64_t count_populations(const MoEConfig& config, std::int64_t micro_batch);

}  // namespace moe::optimized
