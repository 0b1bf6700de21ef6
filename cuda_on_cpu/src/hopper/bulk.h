/// @file
/// Bulk copies by the Tensor Memory Accelerator: of lines of bytes and of boxes of a
/// tensor; into shared memory, where they complete on an mbarrier, and out of it, where a
/// thread waits for groups of them. Rules: PTX ISA, "cp.async.bulk", "cp.reduce.async
/// .bulk", "cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor".
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <vector>

#include "block.h"
#include "cuda_on_cpu/hopper.h"

namespace cuda_on_cpu {

/// A thread's copies out of shared memory, in groups.
class BulkGroups {
  public:
    void begin(int threads) {
        threads_.clear();
        threads_.resize(std::size_t(threads));
    }
    /// `store` reads shared memory and writes global memory: now, or at the wait.
    void issue(Block& block, Site site, std::function<void()> store);
    void commit(int thread);
    /// Until at most `groups` of the thread's groups are on their way.
    void wait(int thread, unsigned groups);
    /// A Fault when something is on its way that nobody waited for.
    void check_exit(int thread) const;

  private:
    struct Store {
        Site site;
        std::function<void()> run;  ///< empty: done
    };
    struct Thread {
        std::vector<Store> open;
        std::deque<std::vector<Store>> groups;
    };
    std::vector<Thread> threads_;
};

// Into shared memory
void load_bytes(Block& block, void* target, const void* source, std::uint32_t bytes,
                std::uint64_t* barrier, std::uint32_t blocks, Site site);
void load_box(Block& block, void* target, const void* tensor_map, const int* corner,
              int rank, std::uint64_t* barrier, std::uint32_t blocks, Site site);
// Out of it
void store_bytes(Block& block, void* target, const void* source, std::uint32_t bytes,
                 BulkOp op, Site site);
void store_box(Block& block, const void* tensor_map, const int* corner, int rank,
               const void* source, BulkOp op, Site site);

}  // namespace cuda_on_cpu
