/// @file
/// Named barriers 1 to 15 of a block, on which some of its warps wait and others only
/// arrive. Rules: PTX ISA, "bar, barrier". Barrier 0 is that of __syncthreads().
#pragma once

#include <array>
#include <bitset>
#include <string>

#include "block.h"

namespace cuda_on_cpu {

class NamedBarriers {
  public:
    void begin() { barriers_ = {}; }
    /// The running thread arrives; `sync`: and waits until `count` threads have.
    void arrive(Block& block, unsigned id, unsigned count, bool sync, Site site);
    std::string describe(std::uint64_t id) const;

  private:
    struct Barrier {
        unsigned expected = 0, arrived = 0;
        Site site;
        std::bitset<kMaxThreads> who;
    };
    void open(Block& block, unsigned id);

    std::array<Barrier, 16> barriers_;
};

}  // namespace cuda_on_cpu
