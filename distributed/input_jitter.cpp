#include "distributed/input_jitter.h"

#include "core/rng.h"

namespace moe::distributed {
namespace {

constexpr std::uint64_t kJitterSeed = 0x71773;

}  // namespace

InputJitter::InputJitter(const MoEConfig& config, const GroupsPtr& groups,
                         Placement placement)
    : RandomByToken(config.hidden_size, groups, placement),
      hidden_size_(config.hidden_size),
      eps_(config.moe_input_jitter_eps.value_or(0.0)) {}

double InputJitter::draw(std::int64_t s, std::int64_t b, std::int64_t h) const {
    const double u = Rng(kJitterSeed, b).uniform(s * hidden_size_ + h);
    return 1.0 + eps_ * (2.0 * u - 1.0);
}

}  // namespace moe::distributed
