/// @file
/// What a rank asks of its device in a layer that nobody watches: an observer makes the
/// tiers wait, and launch what it wants to see.
#pragma once

#include <array>
#include <string>

#include "cli/ranks/run.h"
#include "core/tier.h"
#include "gpu/thread_counters.h"

namespace moe {

/// What is counted.
inline constexpr std::array kCountsAsked = {
    &gpu::ThreadCounters::launches, &gpu::ThreadCounters::host_waits,
    &gpu::ThreadCounters::exchange_launches, &gpu::ThreadCounters::exchange_waits};

/// The layer with experts, shared ones too, less than 256 wide (a shard of them) in place
/// of wide ones, as far beyond a multiple of 64 as they were. What it launches depends on
/// tokens, H, experts, alignment, and whether F takes more than one tile; and the CPU
/// executor takes its time for every column.
MoEConfig narrowed(const MoEConfig& config);

/// Of the calling rank in one forward and backward of the narrowed layer on its tokens,
/// once another has made what the layer keeps. What goes in lies in the dispatcher's
/// memory. All ranks of the groups call it.
Asked count_asked(const RankJob& job, const RankTokens& tokens, const GroupsPtr& groups);

}  // namespace moe
