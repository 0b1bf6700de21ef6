/// @file
/// What one warp instruction costs: sectors of global memory, turns of the banks of
/// shared memory. Source: CUDA C++ Programming Guide, "Maximize Memory Throughput";
/// Nsight Compute, "Kernel Profiling Guide".
#pragma once

#include "observe/profile.h"
#include "observe/requests.h"

namespace cuda_on_cpu::observe {

/// Turns that the banks need for these lanes, and the most that one bank needs at once.
struct BankTurns {
    unsigned turns = 0, ideal = 0, ways = 0;
};
BankTurns bank_turns(const Instruction& instruction, unsigned mask);

/// Sectors that these lanes touch, in ascending order, and those that the same bytes
/// would need, packed.
class Sectors {
  public:
    Sectors(const Instruction& instruction, unsigned mask);
    unsigned count() const { return count_; }
    unsigned ideal() const { return ideal_; }
    const std::uint64_t* begin() const { return sectors_.data(); }
    const std::uint64_t* end() const { return sectors_.data() + count_; }

  private:
    std::array<std::uint64_t, 2 * kWarpSize> sectors_;  // an access may lie across two
    unsigned count_ = 0, ideal_ = 0;
};

/// Counts the instructions of one warp.
class WarpCounter {
  public:
    WarpCounter(Lanes& lanes, int first);
    void count(const Instruction& instruction);

  private:
    /// The first instruction of its kind in this kernel.
    [[gnu::cold]] void keep_sample(std::uint32_t spot, const Instruction& instruction,
                                   unsigned mask, bool is_shared, std::uint64_t base);
    /// Those of the lanes that stay inside; of the others it is told.
    unsigned check_shared(const Instruction& instruction, unsigned mask,
                          const Lanes& owner);
    unsigned check_global(const Instruction& instruction, unsigned mask,
                          const Allocation& allocation);
    void count_shared(const Instruction& instruction, unsigned mask, Counters& line);
    void count_global(const Instruction& instruction, unsigned mask,
                      Allocation& allocation, Counters& line);
    void count_degree(const Instruction& instruction, unsigned mask, Counters& line);
    [[gnu::cold]] void tell_of_fault(const Instruction& instruction, int lane,
                                     const std::string& where);

    Lanes& lanes_;
    Profile& profile_;
    Counters& sum_;
    int first_;
    unsigned present_;  ///< the lanes that the warp has
};

}  // namespace cuda_on_cpu::observe
