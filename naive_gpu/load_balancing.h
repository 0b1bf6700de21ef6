/// @file
/// What keeps experts evenly used: auxiliary losses, z-loss, the expert bias.
/// Source: router.py, TopKRouter; moe_utils.py, switch_load_balancing_loss_func,
/// z_loss_func, get_updated_expert_bias.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"

namespace moe::naive {

/// Tokens of one forward, as the losses see them: token t = s B + b. Kernels take it by
/// value.
struct TokenGrid {
    std::int64_t seq_len = 0, micro_batch = 0;   ///< S, B
    const std::uint8_t* padding_mask = nullptr;  ///< (S B) on the device, 1 = padding; or
                                                 ///< null
    std::int64_t num_valid = 0;

    std::int64_t num_tokens() const { return seq_len * micro_batch; }
    __device__ bool is_padding(std::int64_t t) const {
        return padding_mask != nullptr && padding_mask[t] != 0;
    }
};

/// @param padding_mask  (S, B) u8 or undefined; must outlive the grid
TokenGrid make_token_grid(std::int64_t seq_len, std::int64_t micro_batch,
                          const Tensor& padding_mask);

/// Counts of the micro-batches since the last optimizer step, for the global loss.
struct GlobalTokenCounts {
    std::vector<double> tokens_per_expert;  ///< (E)
    std::int64_t num_steps = 0;
};

/// What the backward of the losses needs.
struct AuxiliaryLossesSaved {
    Tensor scores;         ///< (T, E) f32, see AuxiliaryLosses
    Tensor raw_scores;     ///< (T, E) f32, before normalisation over all experts
    Tensor dscores;        ///< (B, E) f32, dL/dscores of every valid token of sequence b
    Tensor log_sum_exp;    ///< (T), of the logits; undefined without a z-loss
    double z_scale = 0.0;  ///< gradient of the z-loss by lse_t² of a valid token
};

/// Computes all losses that the config asks for and puts them, before their coefficients,
/// into `losses`.
///
/// The load-balancing losses look at scores of their own: softmax over all E experts, or
/// σ / √softplus normalised over all E, with a plain top-K map, whatever bias, groups,
/// scaling or dropping did to the routing. Each is, over a population of N tokens with
/// counts n_e,
///
///     loss = coeff * E / (K N²) * Σ_e n_e Σ_t scores[t, e]
///
/// aux_loss: all tokens. seq_aux_loss: each sequence by itself, averaged.
/// global_aux_loss: n_e is the mean over the micro-batches since the last optimizer step.
/// z-loss: coeff * mean_t (log Σ_e exp logits[t, e])². A population without a valid token
/// has loss 0.
///
/// With ranks a population spans a group: tp_cp, which holds the micro-batch's sequences,
/// or tp_dp_cp for global_aux_loss. n_e and N are the group's, the scores this rank's, so
/// that the ranks' losses add up to the population's. z-loss is this rank's mean, with
/// coeff / |tp_cp|. `losses` gets this rank's share, not summed over any group.
/// As in Megatron, DDP afterwards averages the gradients over data-parallel replicas,
/// and leaves global_aux_loss, whose population spans them already, with coeff / DP.
/// @param logits (T, E) @param groups every rank of them calls this, also one without
/// tokens
template <typename Scalar>
AuxiliaryLossesSaved auxiliary_losses_forward(Losses& losses, GlobalTokenCounts& counts,
                                              const Tensor& logits, const TokenGrid& grid,
                                              const MoEConfig& config,
                                              const distributed::ProcessGroups& groups,
                                              const RunContext& context);

/// dlogits (T, E) of the losses alone, times the context's main_loss_backward_scale. The
/// gradient of the main loss plays no part in it.
template <typename Scalar>
Tensor auxiliary_losses_backward(const AuxiliaryLossesSaved& saved, const Tensor& logits,
                                 const TokenGrid& grid, const MoEConfig& config,
                                 double main_loss_backward_scale);

/// bias_e += rate * sign(mean(n) - n_e), in fp32.
/// @param expert_bias (E) f32 @param tokens_per_expert (E) i64, of all ranks of tp_dp_cp
Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate);

}  // namespace moe::naive
