/// @file
/// The accesses of a block's threads, as the compiler's calls bring them: each thread
/// fills a list of its own, and when the lanes of a warp meet, their lists are read.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "block.h"
#include "observe/races.h"
#include "observe/record.h"

namespace cuda_on_cpu::observe {

/// What a thread did since its warp last met.
struct Lane {
    Record *begin = nullptr, *end = nullptr, *limit = nullptr;
    std::size_t raced = 0;  ///< so many of them have been looked at for races
};

/// Whose accesses come in on this CPU thread, and what of them is of no interest: the
/// thread's own stack, and threadIdx with its family.
struct Running {
    Lane* lane = nullptr;  ///< null outside kernels
    std::uint64_t stack_low = 0, stack_size = 0;
    std::uint64_t builtins_low = 0, builtins_size = 0;
    Lane arriving;  ///< always full: stands in for a lane whose stack is not known yet
    Lane* next = nullptr;
    Lanes* block = nullptr;
    bool races = false;
    const Record* first_half =
        nullptr;  ///< a relaxed load, perhaps of an atomic function
};
extern constinit thread_local Running running;

/// The lists of one block at a time, and who is whose neighbour.
class Lanes {
  public:
    Lanes();
    ~Lanes();
    void begin(Launch& launch, std::int64_t index, const std::byte* arena);
    void end();
    void run(int thread);
    void open_barrier();
    void meet(int warp, unsigned mask, bool orders_memory);
    void exit(int thread, unsigned live);
    /// The running thread's atomic access, a fence, and objects that stand for order.
    void order_others(std::uint64_t object, int order, bool reads, bool writes);
    void note_lane(int thread, std::uint64_t address, unsigned size, Kind kind,
                   Site site);
    void touch_async(std::uint64_t address, std::size_t bytes, Kind kind, Site site);
    void fence();
    void release(std::uint64_t object);
    void acquire(std::uint64_t object);

    Lane& lane(int thread) { return lanes_[thread]; }
    int running_thread() const { return int(running.next - lanes_.data()); }
    /// Twice the room, or the first.
    static void grow(Lane& lane);

    Launch& launch() const { return *launch_; }
    bool is_shared(std::uint64_t address) const { return address - arena_ < kMaxShared; }
    /// The block in whose shared memory the address lies: this one, or another of its
    /// cluster; null when in none.
    Lanes* owner_of(std::uint64_t address);
    std::uint64_t arena() const { return arena_; }
    /// The launch's arguments: constant memory on a GPU.
    bool is_argument(std::uint64_t address) const {
        const KernelCall& call = launch_->call;
        return address - reinterpret_cast<std::uint64_t>(call.arguments) <
               call.argument_bytes;
    }
    /// Ends the launch with this story, unless it has failed already.
    void fail(const std::string& story);
    /// The lanes that a warp of this block has.
    unsigned lanes_of(int warp) const;
    std::string name_of(int thread) const {
        return thread_name(launch_->grid, launch_->block, index_, thread);
    }
    std::string name() const { return block_name(launch_->grid, index_); }

  private:
    static constexpr std::uint64_t kMaxShared = kMaxSharedMemory;

    /// Reads the lists of these lanes, and empties them.
    void read(int warp, unsigned mask);
    /// Looks for races among what the thread has done since it was last asked.
    void race(int thread);
    /// Where these bytes lie; no shadow: not in one piece of the device's memory.
    Region region_of(std::uint32_t spot, std::uint64_t address, std::size_t bytes);

    std::array<Lane, kMaxThreads> lanes_;
    std::array<bool, kMaxThreads> exited_{};
    Launch* launch_ = nullptr;
    std::int64_t index_ = 0;
    std::uint64_t arena_ = 0;
    int count_ = 0;
    RaceFinder finder_;
    std::unique_ptr<Shadow> shared_;  ///< of the arena
    UnwrittenReads unwritten_;        ///< of the arena, by whichever block
};

}  // namespace cuda_on_cpu::observe
