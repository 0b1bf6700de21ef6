/// @file
/// Random numbers that belong to tokens, wherever these are.
#pragma once

#include <map>
#include <utility>

#include "core/tensor.h"
#include "core/tier.h"

namespace moe::distributed {

/// A row of random numbers for each token. They are ours: Megatron draws others at every
/// forward and on every rank. Here a number depends on nothing but its token's place in
/// the whole batch (sequence, position) and its own in the row, by Philox4x32-10: alike
/// in all tiers, however many ranks share the tokens, in every layer, at every forward,
/// and when a CUDA graph is replayed.
class RandomByToken {
  public:
    virtual ~RandomByToken() = default;

    /// (S B, width) for this rank's tokens, of which all ranks must have as many. Drawn
    /// on the host for the first forward of that shape, and kept.
    const Tensor& of(std::int64_t seq_len, std::int64_t micro_batch);

  protected:
    /// @param groups  of this rank, or null where there is only one
    /// @param placement  where the numbers go; they are drawn in fp32
    RandomByToken(std::int64_t width, const GroupsPtr& groups, Placement placement);

  private:
    /// Number i of the token at position s of sequence b.
    virtual double draw(std::int64_t s, std::int64_t b, std::int64_t i) const = 0;

    std::int64_t width_;
    GroupsPtr groups_;
    Placement placement_;
    std::map<std::pair<std::int64_t, std::int64_t>, Tensor> drawn_;
};

}  // namespace moe::distributed
