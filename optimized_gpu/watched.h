/// @file
/// What an observer costs: waits, and kernels beside those of the result. Without one,
/// the host launches and goes on.
#pragma once

#include "core/steps.h"
#include "gpu/launch.h"

namespace moe::optimized {

/// At the end of a step: its time is that of its kernels, not of their launches.
inline void synchronize_if_watched(const RunContext& context) {
    if (context.observer != nullptr) gpu::synchronize();
}

}  // namespace moe::optimized
