/// @file
/// Noise on what the router sees.
#pragma once

#include "core/config.h"
#include "distributed/random_by_token.h"

namespace moe::distributed {

/// Factors uniform within 1 - eps and 1 + eps, with moe_input_jitter_eps, by which the
/// router's input is multiplied, element by element; the experts see it as it was. In
/// evaluation, too. Source: router.py, TopKRouter.apply_input_jitter (Switch
/// Transformers, arXiv 2101.03961).
///
/// Factors are fp32, and the products are in the router's dtype; Megatron rounds both to
/// that of the hidden states, as a router of bf16 does here.
class InputJitter : public RandomByToken {
  public:
    /// of() is (S B, H).
    InputJitter(const MoEConfig& config, const GroupsPtr& groups, Placement placement);

  private:
    double draw(std::int64_t s, std::int64_t b, std::int64_t h) const override;

    std::int64_t hidden_size_;
    double eps_;
};

}  // namespace moe::distributed
