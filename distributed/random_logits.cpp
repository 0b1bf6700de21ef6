#include "distributed/random_logits.h"

#include <cmath>

#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/process_groups.h"

namespace moe::distributed {
namespace {

constexpr std::uint64_t kLogitsSeed = 0x10617, kBiasSeed = 0xB1A5;

}  // namespace

RandomLogits::RandomLogits(const MoEConfig& config, const GroupsPtr& groups,
                           Placement placement)
    : config_(config), groups_(groups), placement_(placement) {}

const Tensor& RandomLogits::of(std::int64_t seq_len, std::int64_t micro_batch) {
    Tensor& drawn = drawn_[{seq_len, micro_batch}];
    if (drawn.defined()) return drawn;
    const std::int64_t E = config_.num_experts();
    // The sequence is cut over TP and CP, the batch over DP.
    const std::int64_t first_s = groups_ ? groups_->tp_cp->rank() * seq_len : 0;
    const std::int64_t first_b = groups_ ? groups_->dp->rank() * micro_batch : 0;
    const double std = std::abs(config_.moe_router_force_biased.value_or(0.0));
    const Rng bias(kBiasSeed);
    Tensor logits = Tensor::empty({seq_len * micro_batch, E}, DType::f32);
    float* logit = logits.data<float>();
    for (std::int64_t s = first_s; s < first_s + seq_len; ++s)
        for (std::int64_t b = first_b; b < first_b + micro_batch; ++b)
            for (std::int64_t e = 0; e < E; ++e)
                *logit++ =
                    float(Rng(kLogitsSeed, b).normal(s * E + e) + std * bias.normal(e));
    return drawn = transfer(logits, placement_);
}

}  // namespace moe::distributed
