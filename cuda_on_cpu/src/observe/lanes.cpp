// lanes.cpp: lists of accesses, one for each thread of a block, and when they are read.

#include "observe/lanes.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>

#include "observe/profile.h"
#include "observe/requests.h"

namespace cuda_on_cpu::observe {

namespace {

/// Where threadIdx and its family lie on this CPU thread, and how far apart.
std::pair<std::uint64_t, std::uint64_t> builtins() {
    const auto from = [](const auto& object) {
        return reinterpret_cast<std::uint64_t>(&object);
    };
    const auto [low, high] =
        std::minmax({from(threadIdx), from(blockIdx), from(blockDim), from(gridDim)});
    return {low, high + sizeof(dim3) - low};
}

}  // namespace

Lanes::Lanes() = default;

Lanes::~Lanes() {
    for (const Lane& lane : lanes_) std::free(lane.begin);
}

void Lanes::grow(Lane& lane) {
    constexpr std::size_t kFirst = 256;
    const auto used = std::size_t(lane.end - lane.begin);
    const std::size_t room = std::max(kFirst, 2 * used);
    void* memory = std::realloc(lane.begin, room * sizeof(Record));
    if (memory == nullptr) throw std::bad_alloc();
    lane.begin = static_cast<Record*>(memory);
    lane.end = lane.begin + used;
    lane.limit = lane.begin + room;
}

// ---------------------------------------------------------------------------- the block
void Lanes::begin(Launch& launch, std::int64_t index, const std::byte* arena) {
    launch_ = &launch;
    index_ = index;
    arena_ = reinterpret_cast<std::uint64_t>(arena);
    count_ = int(launch.block.x * launch.block.y * launch.block.z);
    std::fill_n(exited_.begin(), count_, false);
    for (int t = 0; t < count_; ++t) lanes_[t].end = lanes_[t].begin;
    running.block = this;
    std::tie(running.builtins_low, running.builtins_size) = builtins();
}

void Lanes::end() {
    running.lane = nullptr;
    running.block = nullptr;
    for (int warp = 0; warp * kWarpSize < count_; ++warp) read(warp, lanes_of(warp));
}

void Lanes::run(int thread) {
    running.next = &lanes_[thread];
    running.lane = &running.arriving;
}

void Lanes::open_barrier() {
    for (int warp = 0; warp * kWarpSize < count_; ++warp) {
        read(warp, lanes_of(warp));
        const auto* exited = &exited_[std::size_t(warp) * kWarpSize];
        const int lanes = std::min(kWarpSize, count_ - warp * kWarpSize);
        running_launch.counters.barriers +=
            !std::all_of(exited, exited + lanes, std::identity());
    }
}

void Lanes::meet(int warp, unsigned mask) {
    read(warp, mask);
}

void Lanes::exit(int thread, unsigned live) {
    exited_[thread] = true;
    const int warp = thread / kWarpSize;
    if (live == 0) read(warp, lanes_of(warp));
}

unsigned Lanes::lanes_of(int warp) const {
    const int lanes = std::min(kWarpSize, count_ - warp * kWarpSize);
    return lanes == kWarpSize ? ~0u : (1u << lanes) - 1;
}

void Lanes::read(int warp, unsigned mask) {
    const int first = warp * kWarpSize;
    unsigned filled = 0;
    for (int lane = 0; lane < kWarpSize && first + lane < count_; ++lane)
        if (lanes_[first + lane].end != lanes_[first + lane].begin) filled |= 1u << lane;
    filled &= mask;
    if (filled == 0) return;
    {
        const std::lock_guard lock(profile().mutex);
        count_requests(*this, first, filled);
    }
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (filled >> lane & 1) lanes_[first + lane].end = lanes_[first + lane].begin;
}

// ------------------------------------------------------------------------------- stories
std::string Lanes::name_of(int thread) const {
    const auto triple = [](std::int64_t index, const dim3& shape) {
        return "(" + std::to_string(index % shape.x) + "," +
               std::to_string(index / shape.x % shape.y) + "," +
               std::to_string(index / shape.x / shape.y) + ")";
    };
    return "block " + triple(index_, launch_->grid) + ", thread " +
           triple(thread, launch_->block);
}

void Lanes::fail(const std::string& story) {
    if (launch_->failed.exchange(true)) return;
    launch_->error = cudaErrorIllegalAddress;
    launch_->report = story;
}

// ------------------------------------------------------------------- what Block tells us
Watch::Watch() : lanes_(std::make_unique<Lanes>()) {}
Watch::~Watch() = default;

void Watch::block_begins(Launch& launch, std::int64_t index, const std::byte* arena) {
    if (running_launch.kernel != nullptr) lanes_->begin(launch, index, arena);
}
void Watch::block_ends() {
    if (running.block != nullptr) lanes_->end();
}
void Watch::runs(int thread) {
    if (running.block != nullptr) lanes_->run(thread);
}
void Watch::barrier_opens() {
    if (running.block != nullptr) lanes_->open_barrier();
}
void Watch::warp_meets(int warp, unsigned mask, bool) {
    if (running.block != nullptr) lanes_->meet(warp, mask);
}
void Watch::exits(int thread, unsigned live) {
    if (running.block != nullptr) lanes_->exit(thread, live);
}
void Watch::pauses() {
    running.lane = nullptr;
}

}  // namespace cuda_on_cpu::observe
