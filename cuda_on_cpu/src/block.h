/// @file
/// One block at work: its threads, who waits for what, and who runs next. A CPU thread
/// has a few Block objects, those of a cluster (cluster.h), and runs one block of a grid
/// after another on them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda_on_cpu/builtins.h"
#include "cuda_on_cpu/runtime_api.h"
#include "fiber.h"
#include "observe/events.h"
#include "schedule.h"

namespace cuda_on_cpu {

inline constexpr int kMaxThreads = 1024, kWarpSize = 32;
inline constexpr std::size_t kMaxSharedMemory = 227 * 1024;

/// What is asked for, and all blocks have in common.
struct LaunchRequest {
    KernelCall call;
    std::string name;
    dim3 grid, block, cluster{1, 1, 1};
    std::size_t smem = 0;
    Schedule schedule;
    Asynchrony asynchrony;
};

/// One run of it.
struct Launch : LaunchRequest {
    explicit Launch(const LaunchRequest& request) : LaunchRequest(request) {}

    std::atomic<std::int64_t> next_cluster{0};

    /// The first fault ends the launch.
    std::atomic<bool> failed{false};
    cudaError_t error = cudaSuccess;
    std::string report;
    std::atomic<bool> warned{false};  ///< about threads that left before a barrier
};

/// What ends a launch, thrown by the executor's own functions and caught before they
/// return to the kernel: see kernel_call() in hopper/hopper.h.
struct Fault {
    std::string what;
    Site site{};  ///< null: that of the call
    cudaError_t error = cudaErrorLaunchFailure;
};

class Block;
class Cluster;
struct Hopper;

/// An instruction that all 32 lanes of a warp execute together.
struct Collective {
    const char* name;
    /// Whether what lanes did before it is seen by the others after it.
    bool orders_memory;
    /// Called once per warp, by the lane that came last. `operands` are what the lanes
    /// brought. May throw Fault.
    void (*complete)(Block& block, int warp, void* const* operands, Site site);
};

/// What a lane brought to a warp operation, and what it takes home.
struct LaneOperation {
    WarpOp op;
    unsigned mask;
    std::uint64_t value;
    int argument, width;
    std::uint64_t result = 0;
    const Collective* collective = nullptr;
};
/// The name of the CUDA function or instruction, for messages.
const char* name_of(const LaneOperation& operation);

class Block {
  public:
    explicit Block(Cluster& cluster);
    ~Block();
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    /// The block whose CUDA thread runs on the calling CPU thread; null outside kernels.
    static Block* running() { return running_; }

    /// Everything as a block finds it, `index` being its blockIdx.
    void begin(Launch& launch, const uint3& index, std::uint64_t salt);
    /// After the last of its threads exited, or a fault.
    void end();

    // What CUDA threads call, by way of the headers
    int barrier(Vote vote, int predicate, Site site);
    std::uint64_t warp_operation(const LaneOperation& operation, Site site);
    void yield();
    /// The block's other threads go on until each has had a turn.
    void let_others_run() { switch_on(); }
    void* shared_arena(std::size_t bytes, Site site);
    /// Notes a fault of the running CUDA thread; the first of a launch is told. Strings
    /// on a fiber's stack would leak when it is left for good: whoever noted a fault
    /// calls abandon() when its own are gone.
    void note_fault(cudaError_t error, const std::string& what, Site site);
    /// The same with the place in words.
    void note_fault(cudaError_t error, const std::string& what, const std::string& place);
    [[noreturn]] void abandon();
    const Fiber& running_fiber() const { return *threads_[current_].fiber; }
    bool is_guard(const void* address) const { return fibers_.is_guard(address); }
    void* landing_stack();

    // For the instructions of hopper/
    enum class State : std::uint8_t {
        unstarted,
        ready,
        barrier,
        warp,
        mbarrier,
        named_barrier,
        cluster,
        exited
    };
    observe::Watch& watch() { return watch_; }
    Launch& launch() const { return *launch_; }
    Cluster& cluster() const { return cluster_; }
    std::byte* arena() const { return arena_; }
    int count() const { return count_; }
    int live() const { return live_; }
    int current() const { return current_; }
    unsigned live_lanes(int warp) const { return warps_[warp].live; }
    const uint3& index() const { return index_; }
    State state(int thread) const { return states_[thread]; }
    /// Its part of the state, made when first asked for.
    Hopper& hopper();
    /// The same, null when no thread of the block has asked for it.
    Hopper* hopper_if_used() const { return hopper_used_ ? hopper_.get() : nullptr; }
    /// The running thread waits until somebody release()s it. `object` says for what.
    void wait_for(State state, Site site, std::uint64_t object);
    std::uint64_t waits_for(int thread) const { return threads_[thread].object; }
    void release(int thread);
    /// The running thread, its warp's other 31 lanes and what each brings.
    void collective(const Collective& what, void* operands, Site site);
    /// The launch has failed, and its place is known.
    void note_fault(const Fault& fault, Site otherwise) {
        note_fault(fault.error, fault.what, fault.site.file ? fault.site : otherwise);
    }

  private:
    friend class Cluster;
    struct Thread {
        uint3 index;
        Fiber* fiber;
        Site site;
        std::uint64_t object;
    };
    struct Warp {
        unsigned live,
            waiting;  ///< lanes that have not exited; lanes at a warp operation
        bool alike;   ///< those wait at one place for one operation with one mask
        LaneOperation lanes[kWarpSize];
    };

    static void fiber_body();
    void run_threads();
    void place_threads();
    void leave_current();
    void switch_on();
    void switch_to(int thread);
    [[gnu::noinline]] void switch_elsewhere();
    void become(int thread);
    void wait(State state, Site site);
    void open_barrier();
    [[gnu::cold]] void arrives_with_care(Vote vote, Site site);
    [[gnu::cold]] void report_divergence(Site site);
    void try_warp(int warp);
    void complete_warp(Warp& warp, unsigned mask);
    void compute_lane(Warp& warp, int lane, unsigned mask);
    void complete_collective(Warp& warp, unsigned mask);
    bool is_alike(const Warp& warp, const LaneOperation& operation, Site site) const;
    void check_mask(const Warp& warp, int lane, const LaneOperation& operation,
                    Site site);
    /// One entry per warp, state and place: where its threads are.
    std::string waiting_list() const;
    std::string waiting_at(int thread) const;
    std::string waiting_for(int thread) const;
    bool warp_waits(int thread, State state, std::uint64_t object) const;
    // Of a trace
    void note_arrival();
    std::string words_of_wait(int thread) const;
    void trace_wait(int warp, unsigned lanes, const char* what, Site site) const;
    void trace_barrier() const;
    std::string where(int thread) const;

    Cluster& cluster_;
    Launch* launch_ = nullptr;
    FiberPool fibers_;
    uint3 index_{0, 0, 0};
    Turns turns_;
    int count_ = 0;    ///< threads of the block
    int current_ = 0;  ///< the one that runs
    std::uint64_t switches_ = 0;
    int live_ = 0;     ///< threads that have not exited
    int arrived_ = 0;  ///< threads at the barrier
    Vote vote_ = Vote::none;
    int votes_ = 0, vote_result_ = 0;
    Site barrier_site_{};
    Site expected_site_{};  ///< the same, but nobody's in a trace
    std::vector<Thread> threads_;
    std::vector<State> states_;
    std::vector<std::uint8_t> may_run_;
    std::vector<Warp> warps_;
    dim3 placed_for_{0, 0, 0};  ///< block shape that threads_ is filled in for
    bool faulted_ = false;
    bool traced_ = false;
    std::vector<std::uint64_t> arrivals_;  ///< of threads that wait, in a trace: steps
    std::byte* arena_ = nullptr;
    std::unique_ptr<Hopper> hopper_;
    bool hopper_used_ = false;
    [[no_unique_address]] observe::Watch watch_;

    static constinit thread_local Block* running_;
};

extern std::atomic<std::uint64_t> total_switches;

// TUTORIAL: a processor predicts where a function returns to from the calls before it. A
// switch makes these predictions wrong, one for each function that returns afterwards, so
// everything between a kernel's barrier and the switch is inlined into one function.
/// Whoever comes next goes on: of this block if one can.
inline void Block::switch_on() {
    const int next = turns_.next(may_run_.data());
    if (next >= 0)
        switch_to(next);
    else
        switch_elsewhere();
}

inline void Block::become(int thread) {
    current_ = thread;
    threadIdx = threads_[thread].index;
    watch_.runs(thread);
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
