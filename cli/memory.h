/// @file
/// Whether a run fits into memory, asked before it starts: a process that the system
/// kills half-way cannot say why.
#pragma once

#include <cstdint>

#include "core/config.h"

namespace moe {

/// Bytes that `moe compare` or `moe trace` needs at most, roughly: the weights, their
/// gradients and every intermediate value, in fp64 and once more for the tier under test.
double estimate_memory(const MoEConfig& config, std::int64_t num_tokens);

/// An estimate over this means work of many seconds on a CPU.
inline constexpr double kMuchMemory = 1e9;

/// InputError when the estimate exceeds the memory that is available now. Where the
/// system does not tell (other than Linux), nothing is checked.
void require_memory(const MoEConfig& config, std::int64_t num_tokens);

}  // namespace moe
