/// @file
/// cp.async: a thread's copies of 4, 8 or 16 bytes from global to shared memory, in
/// groups. Rules: PTX ISA, "cp.async" and "cp.async.mbarrier.arrive".
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

class CpAsync {
  public:
    void begin(int threads) {
        threads_.clear();
        threads_.resize(std::size_t(threads));
    }
    /// @param source_bytes  fewer than bytes: the rest becomes zero
    void copy(Block& block, void* target, const void* source, unsigned bytes,
              unsigned source_bytes, Site site);
    void commit(int thread);
    /// Until at most `groups` of the thread's groups are on their way.
    void wait(int thread, unsigned groups);
    /// All that the thread has issued until now; at the mbarrier when it has arrived.
    void arrive(Block& block, std::uint64_t* barrier, bool counted, Site site);

  private:
    struct Copy {
        void* target;
        const void* source;
        unsigned bytes, source_bytes;
    };
    struct Thread {
        std::deque<Copy> copies;  ///< issued, not yet done
        std::uint64_t first = 0;  ///< number of the first of them, since the launch
        std::deque<std::uint64_t> group_ends;
    };
    static void perform(const Copy& copy);
    static void perform_until(Thread& thread, std::uint64_t end);

    std::vector<Thread> threads_;
};

}  // namespace cuda_on_cpu
