/// @file
/// Losses over ranks: which a layer has, and where one rank can have the same.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "cli/ranks/run.h"
#include "core/config.h"
#include "distributed/rank_generator.h"

namespace moe {

/// The losses that a config asks for: "aux_loss, z_loss"; "" for none.
std::string losses_of(const MoEConfig& config);

/// Whether it asks for one that looks at the sequences of a replica.
bool has_losses_of_replica(const MoEConfig& config);

/// The same layer without them.
MoEConfig without_losses(MoEConfig config);

/// Capacity and sinkhorn look at all tokens of a rank at once: what one rank makes of
/// them is what it makes of each rank's tokens by themselves.
bool depends_on_rank(const MoEConfig& config);

/// Why run_whole() cannot have the losses of these ranks; "" where it can.
std::string why_no_losses(const MoEConfig& config,
                          const distributed::ParallelSizes& sizes);

/// What each rank has of a loss, by its definition (docs/definitions.md) from the whole's
/// logits and scores, in plain loops: the populations' counts with its own tokens'
/// scores, or, of the z-loss, the mean over its own tokens. @return by world rank
/// @param whole  of the micro-batches so far, the last of which has the losses: counts of
///               the global loss are means over them
std::vector<double> losses_by_rank(const std::string& name,
                                   std::span<const WholeRecord> whole,
                                   const MoEConfig& config, const RankTokens& tokens,
                                   const distributed::ParallelSizes& sizes);

}  // namespace moe
