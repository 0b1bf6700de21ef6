/// @file
/// Logits that no gating made, for benchmarks: they route alike whatever the weights.
#pragma once

#include "core/config.h"
#include "distributed/random_by_token.h"

namespace moe::distributed {

/// Logits of N(0, 1) in place of the gating's, with moe_router_force_load_balancing; with
/// moe_router_force_biased a number of N(0, |std|) is added for each expert, the same for
/// all tokens. The gradient passes straight through, to the gating's logits. Source:
/// moe_utils.py, apply_random_logits and apply_biased_logits.
///
/// Megatron keeps the bias only where std is negative; here it is always the same, so
/// that the sign of std changes nothing.
class RandomLogits : public RandomByToken {
  public:
    /// of() is (S B, E).
    RandomLogits(const MoEConfig& config, const GroupsPtr& groups, Placement placement);

  private:
    double draw(std::int64_t s, std::int64_t b, std::int64_t e) const override;

    std::int64_t num_experts_;
    double std_;
};

}  // namespace moe::distributed
