/// @file
/// One block at work: its threads, who waits for what, and who runs next. A CPU thread
/// has one Block object and runs one block of a grid after another on it.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda_on_cpu/builtins.h"
#include "cuda_on_cpu/runtime_api.h"
#include "fiber.h"
#include "schedule.h"

namespace cuda_on_cpu {

inline constexpr int kMaxThreads = 1024, kWarpSize = 32;
inline constexpr std::size_t kMaxSharedMemory = 227 * 1024;

/// What all blocks of a launch have in common.
struct Launch {
    KernelCall call;
    std::string name;
    dim3 grid, block;
    std::size_t smem = 0;
    Schedule schedule;
    std::atomic<std::int64_t> next_block{0};

    /// The first fault ends the launch.
    std::atomic<bool> failed{false};
    cudaError_t error = cudaSuccess;
    std::string report;
    std::atomic<bool> warned{false};  ///< about threads that left before a barrier
};

/// What a lane brought to a warp operation, and what it takes home.
struct LaneOperation {
    WarpOp op;
    unsigned mask;
    std::uint64_t value;
    int argument, width;
    std::uint64_t result;
};

class Block {
  public:
    Block();
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    /// The calling CPU thread's.
    static Block& mine();
    /// The block whose CUDA thread runs on the calling CPU thread; null outside kernels.
    static Block* running() { return running_; }

    /// Runs the block to its end, or to its first fault (then launch.failed).
    void run(Launch& launch, std::int64_t index);

    // What CUDA threads call, by way of the headers
    int barrier(Vote vote, int predicate, Site site);
    std::uint64_t warp_operation(const LaneOperation& operation, Site site);
    void yield();
    void* shared_arena(std::size_t bytes, Site site);
    /// Notes a fault of the running CUDA thread; the first of a launch is told. Strings
    /// on a fiber's stack would leak when it is left for good: whoever noted a fault
    /// calls abandon() when its own are gone.
    void note_fault(cudaError_t error, const std::string& what, Site site);
    /// The same with the place in words.
    void note_fault(cudaError_t error, const std::string& what, const std::string& place);
    [[noreturn]] void abandon();
    bool is_guard(const void* address) const { return fibers_.is_guard(address); }
    void* landing_stack();

  private:
    enum class State : std::uint8_t { unstarted, ready, barrier, warp, exited };
    struct Thread {
        uint3 index;
        Fiber* fiber;
        Site site;
    };
    struct Warp {
        unsigned live,
            waiting;  ///< lanes that have not exited; lanes at a warp operation
        LaneOperation lanes[kWarpSize];
    };

    static void fiber_body();
    void run_threads();
    void place_threads();
    void leave_current();
    int pick_next();
    void switch_to(int thread);
    void become(int thread);
    void wait(State state, Site site);
    void release(int thread);
    void open_barrier();
    [[gnu::cold]] void report_divergence(Site site);
    void try_warp(int warp);
    void complete_warp(Warp& warp, unsigned mask);
    void compute_lane(Warp& warp, int lane, unsigned mask);
    void check_mask(const Warp& warp, int lane, const LaneOperation& operation,
                    Site site);
    [[gnu::cold]] void report_deadlock();
    std::string where(int thread) const;

    Launch* launch_ = nullptr;
    FiberPool fibers_;
    Fiber main_;
    Turns turns_;
    int count_ = 0;    ///< threads of the block
    int current_ = 0;  ///< the one that runs
    std::uint64_t switches_ = 0;
    int live_ = 0;     ///< threads that have not exited
    int arrived_ = 0;  ///< threads at the barrier
    Vote vote_ = Vote::none;
    int votes_ = 0, vote_result_ = 0;
    Site barrier_site_{};
    std::vector<Thread> threads_;
    std::vector<State> states_;
    std::vector<std::uint8_t> may_run_;
    std::vector<Warp> warps_;
    dim3 placed_for_{0, 0, 0};  ///< block shape that threads_ is filled in for
    bool faulted_ = false;
    std::byte* arena_ = nullptr;

    static constinit thread_local Block* running_;
};

extern std::atomic<std::uint64_t> total_switches;

// TUTORIAL: a processor predicts where a function returns to from the calls before it. A
// switch makes these predictions wrong, one for each function that returns afterwards, so
// everything between a kernel's barrier and the switch is inlined into one function.
inline int Block::pick_next() {
    const int next = turns_.next(may_run_.data());
    if (next < 0) {
        report_deadlock();
        abandon();
    }
    return next;
}

inline void Block::become(int thread) {
    current_ = thread;
    threadIdx = threads_[thread].index;
}

inline void Block::switch_to(int thread) {
    if (thread == current_) return;
    Fiber& from = *threads_[current_].fiber;
    become(thread);
    if (threads_[thread].fiber == nullptr) threads_[thread].fiber = &fibers_.take();
    ++switches_;
    switch_fiber(from, *threads_[thread].fiber);
}

inline void Block::wait(State state, Site site) {
    states_[current_] = state;
    threads_[current_].site = site;
    may_run_[current_] = 0;
}

inline void Block::release(int thread) {
    states_[thread] = State::ready;
    may_run_[thread] = 1;
}

}  // namespace cuda_on_cpu
