#include "distributed/random_logits.h"

#include <cmath>

#include "core/rng.h"

namespace moe::distributed {
namespace {

constexpr std::uint64_t kLogitsSeed = 0x10617, kBiasSeed = 0xB1A5;

}  // namespace

RandomLogits::RandomLogits(const MoEConfig& config, const GroupsPtr& groups,
                           Placement placement)
    : RandomByToken(config.num_experts(), groups, placement),
      num_experts_(config.num_experts()),
      std_(std::abs(config.moe_router_force_biased.value_or(0.0))) {}

double RandomLogits::draw(std::int64_t s, std::int64_t b, std::int64_t e) const {
    return Rng(kLogitsSeed, b).normal(s * num_experts_ + e) +
           std_ * Rng(kBiasSeed).normal(e);
}

}  // namespace moe::distributed
