/// @file
/// Logits that no gating made, for benchmarks: they route alike whatever the weights.
#pragma once

#include <map>
#include <utility>

#include "core/config.h"
#include "core/tensor.h"
#include "core/tier.h"

namespace moe::distributed {

/// Logits of N(0, 1) in place of the gating's, with moe_router_force_load_balancing; with
/// moe_router_force_biased a number of N(0, |std|) is added for each expert, the same for
/// all tokens. The gradient passes straight through, to the gating's logits. Source:
/// moe_utils.py, apply_random_logits and apply_biased_logits.
///
/// The numbers are ours: Megatron draws others at every forward and on every expert
/// parallel rank, and keeps the bias only where std is negative. Here a logit depends on
/// nothing but its token's place in the whole batch (sequence, position) and its expert,
/// by Philox4x32-10: alike in all tiers, however many ranks share the tokens, in every
/// layer, at every forward, and when a CUDA graph is replayed. So the sign of std, which
/// says how long Megatron keeps the bias, changes nothing here.
class RandomLogits {
  public:
    /// @param groups  of this rank, or null where there is only one
    /// @param placement  where the logits go; they are drawn in fp32
    RandomLogits(const MoEConfig& config, const GroupsPtr& groups, Placement placement);

    /// (S B, E) for this rank's tokens, of which all ranks must have as many. Drawn on
    /// the host for the first forward of that shape, and kept.
    const Tensor& of(std::int64_t seq_len, std::int64_t micro_batch);

  private:
    MoEConfig config_;
    GroupsPtr groups_;
    Placement placement_;
    std::map<std::pair<std::int64_t, std::int64_t>, Tensor> drawn_;
};

}  // namespace moe::distributed
