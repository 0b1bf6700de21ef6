/// @file
/// The top-k router.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"
#include "distributed/input_jitter.h"
#include "distributed/random_logits.h"
#include "optimized_gpu/grouped_gemm/all_tokens.h"
#include "optimized_gpu/load_balancing.h"
#include "optimized_gpu/routing.h"

namespace moe::optimized {

/// Gating, scores, selection, weights, dropping and auxiliary losses, without a wait of
/// the host: losses and the word on the logits are read when somebody asks. It hands on K
/// choices of each token; dense maps only of experts padded to capacity, where a token
/// may have more. The gate works in fp32 or, by moe_router_dtype, in fp64, which also
/// hold the values of a router of bf16; scores are fp32 in any case. Source: router.py,
/// TopKRouter.
///
/// With sinkhorn the host waits in every round: the data decide how many there are. Token
/// ids, or experts to replay, are checked and copied by the host.
class TopKRouter : public Router {
  public:
    /// InputError for more experts, or more of them per token, than its kernels take.
    TopKRouter(const MoEConfig& config, DType dtype, const TensorMap& parameters,
               const GroupsPtr& groups);

    /// Tokens are converted as they are read.
    bool takes(DType dtype) const override { return is_floating(dtype); }
    Output forward(const Tensor& hidden, const Tensor& padding_mask,
                   const RunContext& context) override;
    void make_dense(Output& output) const override;
    Tensor make_dense_backward(const Tensor& dprobs, const Saved& saved) const override;
    void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                  const Saved& saved, const RunContext& context) override;
    Tensor update_expert_bias() override;
    Tensor update_qb_beta() override;
    void reset_global_aux_loss_tracker() override { reset_counts(global_counts_); }

  private:
    Tensor gate(const Tensor& hidden);
    Tensor rounded(const Tensor& values) const;
    void round(Tensor& values) const;
    /// Puts experts that are given into `ids`, (T, K) i32. @return whether there are any
    bool give_experts(Tensor& ids, const RunContext& context, std::int64_t S,
                      std::int64_t B) const;
    /// Quantile balancing's ids; in training its quantiles are added up.
    void choose_by_quantiles(struct RouterSaved& saved, bool training);
    void apply_capacity(Output& output, struct RouterSaved& saved) const;
    void count_for_expert_bias(const Output& output, const Tensor& padding_mask);

    MoEConfig config_;
    GroupsPtr groups_;  // null on one rank
    RoutingRule rule_;
    Tensor weight_, bias_;            // (E, H), (E) or undefined; fp32 or fp64
    Tensor bf16_weight_, bf16_bias_;  // (1, E, H), (1, E); defined where exact
    AllTokens all_tokens_;
    Tensor tid2eid_;                  // (V, K) i32, undefined without
                                      // moe_router_hash_vocab_size
    Tensor expert_bias_;              // (E) f32, undefined without
                                      // moe_router_enable_expert_bias
    Tensor local_tokens_per_expert_;  // (E) i64 since the last update
    Tensor qb_beta_;                  // (E) f32, undefined without quantile_balancing
    Tensor qb_sums_;                  // (E + 1) f32: quantiles, and of how many
                                      // micro-batches, since the last update
    Tensor global_counts_;            // (E + 1) f64, see auxiliary_losses()
    distributed::RandomLogits random_logits_;
    distributed::InputJitter input_jitter_;
};

}  // namespace moe::optimized
