/// @file
/// How fast a GPU could be at the most, from what was counted: a model with perfect
/// overlap, and never a time, a speed-up or a result.
#pragma once

#include <cstdint>
#include <string>

#include "cuda_on_cpu/observe.h"

namespace moe::profile {

/// What a GPU can do at the most, per second.
struct GpuModel {
    const char* name;
    double hbm, l2, l1;  ///< bytes; of L1, all multiprocessors together
    double wavefronts;   ///< of shared memory, all multiprocessors together
    double mma_flops;    ///< dense bf16
    double launch;       ///< seconds that a launch takes at the least
};

/// H100 SXM. Memory, multiprocessors, clock and FLOP/s: NVIDIA's data sheet; L1: 128
/// bytes per clock and multiprocessor; L2 and launches: the best that others have
/// measured.
inline constexpr GpuModel kH100 = {"H100",       3.35e12,  7.0e12, 128 * 132 * 1.83e9,
                                   132 * 1.83e9, 989.5e12, 2.0e-6};

/// The terms of the bound, in seconds.
struct Bound {
    // A load may hit in L1, so only stores, atomics and asynchronous copies are sure to
    // reach L2; what loads must bring from there, HBM's term has.
    double hbm = 0.0, l2 = 0.0, l1 = 0.0, shared = 0.0, tensor = 0.0, launch = 0.0;

    /// The largest: nothing that does all this is faster.
    double seconds() const;
    /// "HBM", "L2", "L1", "shared", "tensor": the largest but for launches.
    std::string resource() const;
    /// The same, or "launch" where that is larger.
    std::string limit() const;
};

Bound bound_of(const cuda_on_cpu::observe::Counters& counters, std::int64_t launches,
               const GpuModel& gpu);

}  // namespace moe::profile
