// block.cpp: who runs, who waits, and what ends a wait.

#include "block.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cluster.h"
#include "hopper/hopper.h"
#include "trace.h"

namespace cuda_on_cpu {

std::atomic<std::uint64_t> total_switches{0};
constinit thread_local Block* Block::running_ = nullptr;

namespace {

constexpr std::size_t kArenaAlignment = 1024;

}  // namespace

Block::Block(Cluster& cluster) : cluster_(cluster), fibers_(fiber_body) {
    arena_ = static_cast<std::byte*>(std::aligned_alloc(
        kArenaAlignment, (kMaxSharedMemory / kArenaAlignment + 1) * kArenaAlignment));
    threads_.resize(kMaxThreads);
    states_.resize(kMaxThreads);
    may_run_.resize(kMaxThreads);
    warps_.resize(kMaxThreads / kWarpSize);
}

Block::~Block() {
    std::free(arena_);
}

// ----------------------------------------------------------------------------- a block
void Block::begin(Launch& launch, const uint3& index, std::uint64_t salt) {
    launch_ = &launch;
    index_ = index;
    const dim3& shape = launch.block;
    count_ = live_ = int(shape.x * shape.y * shape.z);
    arrived_ = 0;
    hopper_used_ = false;
    place_threads();
    turns_.start(launch.schedule, count_, salt);

    // Shared memory starts as NaN and -1, so that a read before the first write shows.
    std::memset(arena_, 0xFF, launch.smem);
#ifdef CUDA_ON_CPU_ASAN
    ASAN_POISON_MEMORY_REGION(arena_ + launch.smem, kMaxSharedMemory - launch.smem);
#endif
    traced_ = trace::is_on();
    if (traced_) {
        arrivals_.assign(std::size_t(count_), 0);
        trace::block_begins(*this);
    }
    const dim3& grid = launch.grid;
    watch_.block_begins(
        launch, index.x + std::int64_t(grid.x) * (index.y + grid.y * index.z), arena_);
}

void Block::end() {
    watch_.block_ends();
#ifdef CUDA_ON_CPU_ASAN
    ASAN_UNPOISON_MEMORY_REGION(arena_, kMaxSharedMemory);
#endif
    faulted_ = false;
    total_switches += switches_;
    switches_ = 0;
}

void Block::place_threads() {
    const dim3& shape = launch_->block;
    if (placed_for_.x != shape.x || placed_for_.y != shape.y ||
        placed_for_.z != shape.z) {
        for (int t = 0; t < count_; ++t)
            threads_[t].index = {t % shape.x, t / shape.x % shape.y,
                                 t / shape.x / shape.y};
        placed_for_ = shape;
    }
    for (int t = 0; t < count_; ++t) {
        threads_[t].fiber = nullptr;
        states_[t] = State::unstarted;
        threads_[t].site = {nullptr, 0};
    }
    std::memset(may_run_.data(), 1, count_);
    for (int warp = 0; warp * kWarpSize < count_; ++warp) {
        const int lanes = std::min(kWarpSize, count_ - warp * kWarpSize);
        warps_[warp].live = lanes == 32 ? 0xffffffffu : (1u << lanes) - 1;
        warps_[warp].waiting = 0;
    }
}

// ----------------------------------------------------------------------------- turns
void Block::fiber_body() {
    running_->run_threads();
}

/// The life of a fiber: it runs a CUDA thread to its end, then the next one that has not
/// started. So a kernel without barriers needs one fiber and no switch at all.
void Block::run_threads() {
    for (;;) {
        launch_->call.invoke(launch_->call.arguments);

        Fiber& self = *threads_[current_].fiber;
        leave_current();
        if (faulted_) abandon();
        const int next = turns_.next(may_run_.data());
        if (next < 0) {
            // The block has ended, or all its threads wait.
            const Cluster::Turn turn = cluster_.next_turn(*this);
            if (turn.block != this) {
                fibers_.give_back(self);
                cluster_.switch_to(turn, self);
                continue;  // taken again, for another thread or block
            }
            become(turn.thread);
        } else {
            become(next);
        }
        Fiber*& fiber = threads_[current_].fiber;
        if (fiber == nullptr) {
            fiber = &self;
            continue;
        }
        fibers_.give_back(self);
        ++switches_;
        switch_fiber(self, *fiber);
    }
}

/// The running thread exits; that may be what others wait for.
void Block::leave_current() {
    states_[current_] = State::exited;
    may_run_[current_] = 0;
    --live_;
    Warp& warp = warps_[current_ / kWarpSize];
    warp.live &= ~(1u << current_ % kWarpSize);
    watch_.exits(current_, warp.live);
    if (warp.waiting) try_warp(current_ / kWarpSize);
    if (arrived_ > 0 && arrived_ == live_) open_barrier();
    cluster_.thread_exits(*this);
}

void Block::switch_elsewhere() {
    const Cluster::Turn turn = cluster_.next_turn(*this);
    if (turn.block == this)
        switch_to(turn.thread);
    else
        cluster_.switch_to(turn, *threads_[current_].fiber);
}

void Block::yield() {
    // A loop that waits for another block of the cluster must let it run.
    if (cluster_.size() > 1)
        switch_elsewhere();
    else
        switch_on();
}

void Block::wait_for(State state, Site site, std::uint64_t object) {
    const int thread = current_;
    threads_[thread].object = object;
    const bool told = traced_ && !warp_waits(thread, state, object);
    const std::uint64_t begin = told ? trace::now(*this) : 0;
    wait(state, site);
    if (!told) {
        switch_on();
        return;
    }
    const std::string what = words_of_wait(thread);
    switch_on();
    const observe::Unseen unseen;
    trace::lasted(*this, {trace::Row::warp, thread / kWarpSize, what, begin, site});
}

Hopper& Block::hopper() {
    if (!hopper_used_) {
        if (!hopper_) hopper_ = std::make_unique<Hopper>();
        hopper_->begin(*this);
        hopper_used_ = true;
    }
    return *hopper_;
}

// ----------------------------------------------------------------------------- barrier
inline int Block::barrier(Vote vote, int predicate, Site site) {
    if (arrived_ == 0) {
        barrier_site_ = site;
        // In a trace the others take the longer way: without one they pay nothing.
        expected_site_ = traced_ ? Site{} : site;
        vote_ = vote;
        votes_ = 0;
        if (traced_) note_arrival();
    } else if (vote != vote_ || !(site == expected_site_)) {
        arrives_with_care(vote, site);
    }
    wait(State::barrier, site);
    votes_ += predicate != 0;
    if (++arrived_ >= live_) open_barrier();
    switch_on();
    return vote_result_;
}

/// Not where the first waits, or in a trace.
void Block::arrives_with_care(Vote vote, Site site) {
    if (vote != vote_ || !(site == barrier_site_)) {
        report_divergence(site);
        abandon();
    }
    note_arrival();
}

/// All threads that have not exited are there.
void Block::open_barrier() {
    if (live_ < count_ && !launch_->warned.exchange(true))
        std::fprintf(stderr,
                     "cuda_on_cpu: warning: kernel %s: %d of %d threads of a block left "
                     "before the barrier at %s:%d\n",
                     launch_->name.c_str(), count_ - live_, count_, barrier_site_.file,
                     barrier_site_.line);
    if (traced_) trace_barrier();
    vote_result_ = vote_ == Vote::count ? votes_
                   : vote_ == Vote::all ? votes_ == arrived_
                                        : votes_ > 0;
    arrived_ = 0;
    watch_.barrier_opens();
    for (int t = 0; t < count_; ++t)
        if (states_[t] == State::barrier) release(t);
}

// ----------------------------------------------------------------------- shared memory
void* Block::shared_arena(std::size_t bytes, Site site) {
    if (bytes > launch_->smem) {
        note_fault(cudaErrorIllegalAddress,
                   "the kernel uses " + std::to_string(bytes) +
                       " bytes of shared memory, but its launch gave " +
                       std::to_string(launch_->smem),
                   site);
        abandon();
    }
    return arena_;
}

// ------------------------------------------------------------------------------- faults
std::string Block::where(int thread) const {
    const auto triple = [](const uint3& i) {
        return "(" + std::to_string(i.x) + "," + std::to_string(i.y) + "," +
               std::to_string(i.z) + ")";
    };
    return "kernel " + launch_->name + ", block " + triple(index_) + ", thread " +
           triple(threads_[thread].index) + ", schedule " + to_string(launch_->schedule) +
           (launch_->asynchrony.deferred ? ", " + to_string(launch_->asynchrony) : "");
}

void Block::note_fault(cudaError_t error, const std::string& what, Site site) {
    note_fault(error, what, std::string(site.file) + ":" + std::to_string(site.line));
}

void Block::note_fault(cudaError_t error, const std::string& what,
                       const std::string& place) {
    faulted_ = true;
    watch_.pauses();
    if (launch_->failed.exchange(true)) return;
    launch_->error = error;
    launch_->report = what + ", at " + place + ", in " + where(current_);
}

void Block::report_divergence(Site site) {
    note_fault(cudaErrorLaunchFailure,
               std::string("divergent barrier: other threads wait at ") +
                   barrier_site_.file + ":" + std::to_string(barrier_site_.line),
               site);
}

/// Leaves the block as it stands. Its fibers are started anew for the next one.
void Block::abandon() {
    cluster_.abandon(*threads_[current_].fiber);
    std::abort();  // not reached: nobody resumes an abandoned fiber
}

void* Block::landing_stack() {
    Fiber& fiber = *threads_[current_].fiber;
    return fiber.stack + fiber.size - 4096;
}

int block_barrier(Vote vote, int predicate, Site site) {
    return Block::running()->barrier(vote, predicate, site);
}

}  // namespace cuda_on_cpu
