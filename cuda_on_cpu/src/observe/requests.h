/// @file
/// From what each lane did to what its warp asked of memory.
#pragma once

#include <array>

#include "observe/lanes.h"

namespace cuda_on_cpu::observe {

/// One instruction of a warp: the lanes of `mask` run it together.
struct Instruction {
    std::uint64_t pc = 0;
    unsigned mask = 0, size = 0;
    Kind kind = Kind::read;
    std::array<std::uint64_t, kWarpSize> addresses;  ///< of the lanes in the mask
};

/// Finds the warp instructions in the lists of these lanes, and counts them.
///
/// Lanes do not run in step, so they are matched afterwards: the n-th execution of an
/// instruction by each lane, since the warp last met, is one warp instruction. That is
/// exact where control flow is uniform; for loops of different lengths it assumes that
/// lanes come together again at each iteration, the best case on hardware.
/// @param first  thread of lane 0
void count_requests(Lanes& lanes, int first, unsigned mask);

}  // namespace cuda_on_cpu::observe
