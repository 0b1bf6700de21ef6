// watch.cpp: what a block, and the functions that stand for instructions, tell the
// observer.

#include "cuda_on_cpu/observe_instructions.h"
#include "observe/lanes.h"
#include "observe/profile.h"

namespace cuda_on_cpu::observe {

// ------------------------------------------------------------------- what Block tells us
Watch::Watch() : lanes_(std::make_unique<Lanes>()) {}
Watch::~Watch() = default;

void Watch::block_begins(Launch& launch, std::int64_t index, const std::byte* arena) {
    is_on_ = running_launch.kernel != nullptr;
    if (is_on_) lanes_->begin(launch, index, arena);
}
void Watch::block_ends() {
    if (is_on_) lanes_->end();
    is_on_ = false;
}
void Watch::runs(int thread) {
    if (is_on_) lanes_->run(thread);
}
void Watch::barrier_opens() {
    const Unseen unseen;
    if (is_on_) lanes_->open_barrier();
}
void Watch::warp_meets(int warp, unsigned mask, bool orders_memory) {
    const Unseen unseen;
    if (is_on_) lanes_->meet(warp, mask, orders_memory);
}
void Watch::exits(int thread, unsigned live) {
    const Unseen unseen;
    if (is_on_) lanes_->exit(thread, live);
}
void Watch::pauses() {
    running.lane = running.next = nullptr;
}

// ---------------------------------------------------------- what instructions tell of
namespace {
bool sees_races() {
    return running.block != nullptr && running.races;
}
}  // namespace

void async_read(const void* address, std::size_t bytes, Site site) {
    if (running.block != nullptr && bytes > 0)
        running.block->touch_async(reinterpret_cast<std::uint64_t>(address), bytes,
                                   Kind::read, site);
}
void async_write(void* address, std::size_t bytes, Site site) {
    if (running.block != nullptr && bytes > 0)
        running.block->touch_async(reinterpret_cast<std::uint64_t>(address), bytes,
                                   Kind::write, site);
}

void lane_access(int thread, const void* address, unsigned bytes, bool writes,
                 Site site) {
    if (running.block != nullptr && bytes > 0)
        running.block->note_lane(thread, reinterpret_cast<std::uint64_t>(address), bytes,
                                 writes ? Kind::write : Kind::read, site);
}

void fence() {
    if (sees_races()) running.block->fence();
}
void release(const void* object) {
    if (sees_races()) running.block->release(reinterpret_cast<std::uint64_t>(object));
}
void acquire(const void* object) {
    if (sees_races()) running.block->acquire(reinterpret_cast<std::uint64_t>(object));
}

}  // namespace cuda_on_cpu::observe
