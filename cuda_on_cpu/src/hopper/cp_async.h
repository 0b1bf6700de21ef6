/// @file
/// cp.async: a thread's copies of 4, 8 or 16 bytes from global to shared memory, in
/// groups. Rules: PTX ISA, "cp.async" and "cp.async.mbarrier.arrive".
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

class CpAsync {
  public:
    void begin(int threads) {
        bars_.clear();
        threads_.clear();
        threads_.resize(std::size_t(threads));
    }
    /// @param source_bytes  fewer than bytes: the rest becomes zero
    void copy(Block& block, void* target, const void* source, unsigned bytes,
              unsigned source_bytes, Site site);
    void commit(int thread);
    /// Until at most `groups` of the running thread's groups are on their way.
    void wait(Block& block, unsigned groups);
    /// All that the thread has issued until now; at the mbarrier when it has arrived.
    void arrive(Block& block, std::uint64_t* barrier, bool counted, Site site);
    /// A trace learns of the copies that not all lanes of a warp made together.
    void block_exits(const Block& block);

  private:
    struct Copy {
        void* target;
        const void* source;
        unsigned bytes, source_bytes;
        Site site;
        std::uint64_t issued;  ///< step, of a trace
    };
    struct Thread {
        std::deque<Copy> copies;  ///< issued, not yet done
        std::uint64_t first = 0;  ///< number of the first of them, since the launch
        std::deque<std::uint64_t> group_ends;
    };
    /// Of a trace: the copies that the lanes of a warp made by one instruction.
    struct Bar {
        std::uint64_t begin = 0, end = 0;
        int lanes = 0;
        unsigned bytes = 0;
        Site site;
        std::string on;
    };
    /// Warp; number of the copy in its thread; line of the source.
    using BarKey = std::tuple<int, std::uint64_t, int>;

    static void perform(const Copy& copy);
    /// @param on  the mbarrier that hears of it, "+0x40"; "" for none
    void perform_until(const Block& block, int index, std::uint64_t end,
                       const std::string& on);
    void note(const Block& block, int index, const Copy& copy, const std::string& on);
    static void write(const Block& block, int warp, const Bar& bar);

    std::vector<Thread> threads_;
    std::map<BarKey, Bar> bars_;  ///< that lack lanes
};

}  // namespace cuda_on_cpu
