/// @file
/// mbarriers: barriers in shared memory that count arrivals, and bytes that asynchronous
/// copies move. Rules: PTX ISA, "Parallel Synchronization and Communication Instructions:
/// mbarrier".
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "block.h"

namespace cuda_on_cpu {

/// TUTORIAL: a phase completes when all expected threads have arrived and all announced
/// bytes have come. The barrier then begins the next phase by itself; who waits names the
/// phase by its parity, 0 for the first.
struct Mbarrier {
    std::uint32_t position = 0;  ///< in the block's shared memory
    bool alive = false;
    bool visible = false;  ///< to the asynchronous proxy: a fence followed the init
    int initialised_by = 0;
    std::int64_t expected = 0, pending = 0;
    std::int64_t bytes = 0;                 ///< announced minus moved, of this phase
    std::int64_t announced = 0, moved = 0;  ///< of this phase, for reports
    std::uint64_t phases = 0;               ///< completed
    Site site;                              ///< of the init
};

class Mbarriers {
  public:
    void begin() { barriers_.clear(); }

    void init(Block& block, std::uint64_t* word, std::uint32_t count, Site site);
    void invalidate(Block& block, std::uint64_t* word, Site site);
    void arrive(Block& block, std::uint64_t* word, std::uint32_t count, Site site);
    void expect_bytes(Block& block, std::uint64_t* word, std::uint32_t bytes, Site site);
    /// An asynchronous copy has moved so many bytes.
    void complete_bytes(Block& block, std::uint64_t* word, std::uint32_t bytes,
                        Site site);
    /// One more arrival is needed in this phase: cp.async.mbarrier.arrive without .noinc.
    void expect_one_more(Block& block, std::uint64_t* word, Site site);
    /// True when the phase of that parity has completed.
    bool test(Block& block, std::uint64_t* word, std::uint32_t parity, Site site);
    /// The running thread, of this block, waits for that.
    void wait(Block& block, std::uint64_t* word, std::uint32_t parity, Site site);
    /// For a copy that is to complete on it; Fault when a fence is missing.
    void check_visible(Block& block, std::uint64_t* word, Site site);
    /// What the running thread has initialised is visible to the asynchronous proxy.
    void fence(int thread);

    void check_exit(const Block& block) const;
    std::string describe(std::uint64_t index, std::uint64_t phase) const;

  private:
    Mbarrier& find(Block& block, std::uint64_t* word, const char* function, Site site);
    void complete_if_due(Block& block, Mbarrier& barrier);

    std::vector<Mbarrier> barriers_;
};

}  // namespace cuda_on_cpu
