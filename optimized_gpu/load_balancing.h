/// @file
/// What keeps experts evenly used: auxiliary losses, z-loss, the expert bias; all on the
/// device. What the losses sum up, route() has summed; their way
/// back to the logits is route_backward()'s. Source: router.py, TopKRouter; moe_utils.py,
/// switch_load_balancing_loss_func, z_loss_func, get_updated_expert_bias.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/tensor.h"
#include "gpu/stream.h"
#include "optimized_gpu/routing.h"

namespace moe::optimized {

/// Which losses there are, and how much each weighs: the fields of MoEConfig that kernels
/// need, which take it by value.
struct LossRule {
    int num_experts = 0;    ///< E
    int topk = 0;           ///< K
    int num_sequences = 1;  ///< B, at least 1
    double aux_loss_coeff = 0.0, seq_aux_loss_coeff = 0.0;
    double global_aux_loss_coeff = 0.0;  ///< as the two above, 0: there is no such loss
    bool has_z_loss = false;
    double z_loss_coeff = 0.0;  ///< 0 is shown, and has no gradient
    bool per_token = false;     ///< calculate_per_token_loss
    bool has_mask = false;      ///< there is a padding mask, if it pads nothing too
    int num_ranks = 1;          ///< of tp_cp, which share a sequence

    /// The factor by which an attached loss grows when losses are summed over tokens.
    __device__ double attach(double num_valid) const {
        return per_token ? num_valid * num_ranks : 1.0;
    }
    /// The same of a load-balancing loss. TUTORIAL: Megatron multiplies by the rank's own
    /// tokens. With a padding mask it takes them from counts over which the group's sum
    /// was written, so they are the group's. Source: moe_utils.py,
    /// get_tokens_per_expert_and_token_count; mappings.py, _reduce.
    __device__ double attach_balancing(double num_valid, double group_tokens) const {
        return attach(has_mask ? group_tokens : num_valid);
    }

    bool has_balancing() const {
        return aux_loss_coeff > 0.0 || seq_aux_loss_coeff > 0.0 ||
               global_aux_loss_coeff > 0.0;
    }
};

/// The losses of a finalized config. @param micro_batch  B, sequences
LossRule make_loss_rule(const MoEConfig& config, std::int64_t micro_batch,
                        int tp_cp_size = 1, bool has_mask = false);

/// The losses of one micro-batch.
struct AuxiliaryLosses {
    std::vector<std::string> names;  ///< as in naive_gpu's Losses
    /// (n) f64, in the order of names, before their coefficients; undefined without any.
    Tensor values;
    // For LossGradients
    Tensor dscores;  ///< (P, E) f32; undefined without a load-balancing loss
    Tensor z_scale;  ///< (1) f32; undefined without a z-loss
    /// (blocks, 4) f64, the sums of the kernel's blocks. TUTORIAL: kept, because
    /// cudaFree() would wait for the kernel.
    Tensor block_sums;
};

/// ⑤ in one launch; none when there is no loss. The same bits every time. Each
/// load-balancing loss is, over a population of N valid tokens with counts n_e,
///
///     loss = E / (K N²) * Σ_e n_e Σ_t scores[t, e]
///
/// | loss | population |
/// |---|---|
/// | load_balancing_loss | all tokens, of tp_cp |
/// | seq_load_balancing_loss | each sequence, of N / B tokens on average; their mean |
/// | global_load_balancing_loss | all, with n_e the mean over the micro-batches so far |
/// | z_loss | mean_t lse_t² over all tokens |
///
/// Without a valid token all are 0. Gradients are those of the loss times its
/// coefficient, and times N where the config sums losses over tokens.
/// @param statistics     of P populations: B with a seq_aux_loss, see count_populations()
/// @param global_counts  (E + 1) f64: tokens of each expert since reset_counts(), then
///                       how many micro-batches; this one is added. Left alone, and may
///                       be undefined, without a global_aux_loss
AuxiliaryLosses auxiliary_losses(const LossStatistics& statistics, Tensor& global_counts,
                                 const LossRule& rule,
                                 cudaStream_t stream = gpu::current_stream());

/// The losses' own scores, for who wants to see them: softmax over all E experts, or
/// σ / √softplus normalised over all E. Source: moe_utils.py,
/// compute_routing_scores_for_aux_loss.
/// @param logits (T, E) f32 @return (T, E) f32
Tensor compute_aux_scores(const Tensor& logits, const RoutingRule& rule,
                          cudaStream_t stream = gpu::current_stream());

/// bias_e + update_rate * sign(mean(n) - n_e), in fp32.
/// @param expert_bias (E) f32 @param tokens_per_expert (E) i64 @return (E) f32
Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate,
                               cudaStream_t stream = gpu::current_stream());

/// Counts start afresh, those of the expert bias or of the global loss.
void reset_counts(Tensor& counts, cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
