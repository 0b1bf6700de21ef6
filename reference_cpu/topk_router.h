/// @file
/// The top-k router.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "core/router_rounding.h"
#include "core/tier.h"
#include "distributed/input_jitter.h"
#include "distributed/random_logits.h"
#include "reference_cpu/load_balancing.h"

namespace moe::cpu {

/// Gating, scores, selection, weights, dropping and auxiliary losses.
/// Scalar is the router dtype (moe_router_dtype), or what holds the values of one of
/// bf16; scores are fp32 in any case.
/// Source: router.py, TopKRouter.
template <typename Scalar>
class TopKRouter : public Router {
  public:
    TopKRouter(const MoEConfig& config, const TensorMap& parameters,
               const GroupsPtr& groups, DType dtype = dtype_of<Scalar>);

    Output forward(const Tensor& hidden, const Tensor& padding_mask,
                   const RunContext& context) override;
    void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                  const Saved& saved, const RunContext& context) override;
    Tensor update_expert_bias() override;
    Tensor update_qb_beta() override;
    void reset_global_aux_loss_tracker() override { global_counts_ = {}; }

  private:
    /// (T, K) i64: a target to replay, or by the tokens' ids; undefined without either.
    Tensor given_experts(const RunContext& context, std::int64_t S, std::int64_t B) const;
    /// Quantile balancing's choice (T, K) i64; in training adds up its quantiles (E).
    Tensor choose_by_quantiles(Tensor& quantiles, const Tensor& logits, bool training);

    MoEConfig config_;
    GroupsPtr groups_;
    RouterRounding rounding_;
    Tensor weight_;       // (1, E, H)
    Tensor bias_;         // (1, E), undefined without add_bias_linear
    Tensor tid2eid_;      // (V, K) i64, undefined without moe_router_hash_vocab_size
    Tensor expert_bias_;  // (E) f32, undefined without moe_router_enable_expert_bias
    Tensor local_tokens_per_expert_;  // (E) i64 since the last update
    Tensor qb_beta_;                  // (E) f32, undefined without quantile_balancing
    Tensor qb_beta_accum_;            // (E) f32, of qb_beta_count_ micro-batches
    std::int64_t qb_beta_count_ = 0;  // since the last update
    GlobalTokenCounts global_counts_;
    distributed::RandomLogits random_logits_;
    distributed::InputJitter input_jitter_;
};

}  // namespace moe::cpu
