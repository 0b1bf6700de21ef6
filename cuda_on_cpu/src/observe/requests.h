/// @file
/// From what each lane did to what its warp asked of memory.
#pragma once

#include <algorithm>
#include <array>

#include "observe/lanes.h"

namespace cuda_on_cpu::observe {

/// One instruction of a warp: the lanes of `mask` run it together.
struct Instruction {
    std::uint64_t pc = 0;
    unsigned mask = 0, size = 0;
    Kind kind = Kind::read;
    std::array<std::uint64_t, kWarpSize> addresses;         ///< of the lanes in the mask
    std::uint64_t lowest = ~std::uint64_t{0}, highest = 0;  ///< of the addresses

    /// As no lane has run it yet; the lanes' places are left as they are.
    void start(const Record& record) {
        pc = record.pc;
        mask = 0;
        size = record.size();
        kind = record.kind();
        lowest = ~std::uint64_t{0};
        highest = 0;
    }
    void add(int lane, std::uint64_t address) {
        mask |= 1u << lane;
        addresses[lane] = address;
        lowest = std::min(lowest, address);
        highest = std::max(highest, address);
    }
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
