// lanes.cpp: lists of accesses, one for each thread of a block, and when they are read.

#include "observe/lanes.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

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

/// Blocks that run on this CPU thread: several, where they make a cluster.
thread_local std::vector<Lanes*> active;

}  // namespace

Unseen::Unseen() : lane_(std::exchange(running.lane, nullptr)) {}
Unseen::~Unseen() {
    // After a switch to another thread and back, this one has begun anew.
    if (running.lane == nullptr && running.next != nullptr) running.lane = lane_;
}

Lanes::Lanes() : finder_(profile().races) {}

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
    for (int t = 0; t < count_; ++t) {
        lanes_[t].end = lanes_[t].begin;
        lanes_[t].raced = 0;
    }
    running.races = profile().options.races;
    if (running.races) {
        const std::lock_guard lock(profile().mutex);
        finder_.begin_block(running_launch.operation, index, count_);
        if (!shared_) shared_ = std::make_unique<Shadow>(kMaxShared, false);
        shared_->set_written(0, launch.smem, false);
        std::erase_if(profile().races.objects,
                      [this](const auto& object) { return is_shared(object.first); });
    }
    active.push_back(this);
    if (active.size() > 1)
        for (Lanes* each : {active.front(), this})
            each->finder_.join_cluster(active.front()->finder_);
    std::tie(running.builtins_low, running.builtins_size) = builtins();
}

void Lanes::end() {
    running.lane = nullptr;
    running.block = nullptr;
    // The neighbours' as well: they may tell of this block's memory
    for (Lanes* each : active)
        for (int warp = 0; warp * kWarpSize < each->count_; ++warp)
            each->read(warp, each->lanes_of(warp));
    if (running.races) tell_unwritten(unwritten_);
    std::erase(active, this);
}

Lanes* Lanes::owner_of(std::uint64_t address) {
    if (is_shared(address)) return this;
    if (active.size() == 1) return nullptr;
    const auto found = std::find_if(active.begin(), active.end(), [=](const Lanes* each) {
        return each->is_shared(address);
    });
    return found == active.end() ? nullptr : *found;
}

void Lanes::run(int thread) {
    running.block = this;
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
    if (running.races) finder_.open_barrier();
}

void Lanes::meet(int warp, unsigned mask, bool orders_memory) {
    read(warp, mask);
    if (running.races && orders_memory) finder_.meet(warp, mask);
}

void Lanes::exit(int thread, unsigned live) {
    exited_[thread] = true;
    if (running.races) finder_.exit(thread);
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
        for (unsigned lanes = filled; running.races && lanes != 0; lanes &= lanes - 1)
            race(first + std::countr_zero(lanes));
        count_requests(*this, first, filled);
    }
    for (int lane = 0; lane < kWarpSize; ++lane)
        if (filled >> lane & 1) {
            lanes_[first + lane].end = lanes_[first + lane].begin;
            lanes_[first + lane].raced = 0;
        }
}

// --------------------------------------------------------------------------------- races
void Lanes::race(int thread) {
    Lane& lane = lanes_[thread];
    Profile& all = profile();
    const QuietReads quiet = finder_.quiet_reads(thread);
    for (const Record* at = lane.begin + lane.raced; at != lane.end; ++at) {
        const std::uint64_t offset = at->address() - arena_;
        if (offset < kMaxShared && offset + at->size() <= launch_->smem &&
            quiet.has(*at, *shared_, offset))
            continue;
        const std::uint32_t spot = all.spots.of(at->pc);
        const Region region = region_of(spot, at->address(), at->size());
        if (region.shadow != nullptr) finder_.access(thread, region, *at, spot);
    }
    lane.raced = std::size_t(lane.end - lane.begin);
}

Region Lanes::region_of(std::uint32_t spot, std::uint64_t address, std::size_t bytes) {
    if (Lanes* const owner = owner_of(address)) {
        if (address - owner->arena_ + bytes > launch_->smem) return {};
        return {owner->shared_.get(), owner->arena_, nullptr, &owner->unwritten_,
                owner->index_};
    }
    if (is_argument(address)) return {};
    Allocation* const allocation = profile().allocation_at(spot, address);
    if (allocation == nullptr || !allocation->contains(address + bytes - 1)) return {};
    return {&allocation->shadow(), allocation->base, allocation};
}

void Lanes::order_others(std::uint64_t object, int order, bool reads, bool writes) {
    const Unseen unseen;
    const std::lock_guard lock(profile().mutex);
    const int thread = running_thread();
    finder_.touch_atomically(thread, object, reads, writes);
    if (order == __ATOMIC_RELAXED) return;
    race(thread);
    if (reads && order != __ATOMIC_RELEASE) finder_.acquire(thread, object);
    if (writes && order != __ATOMIC_ACQUIRE && order != __ATOMIC_CONSUME)
        finder_.release(thread, object);
}

void Lanes::touch_async(std::uint64_t address, std::size_t bytes, Kind kind, Site site) {
    const Unseen unseen;
    Profile& all = profile();
    const std::lock_guard lock(all.mutex);
    const std::uint32_t spot = all.spots.of(site);
    Allocation* const allocation =
        owner_of(address) ? nullptr : all.allocation_at(spot, address);
    if (allocation != nullptr) {
        all.memory.touch(*allocation);
        SectorSet& touched = kind == Kind::read ? allocation->read : allocation->written;
        const std::uint64_t base = allocation->base / kSector;
        const std::uint64_t first = address / kSector;
        const std::uint64_t last = (address + bytes - 1) / kSector;
        for (std::uint64_t s = first; s <= last; ++s) touched.insert(s - base);
        running_launch.counters.async_sectors += last - first + 1;
        running_launch.kernel->at(spot).async_sectors += last - first + 1;
    }
    if (!running.races) return;
    const Region region = region_of(spot, address, bytes);
    if (region.shadow == nullptr) return;
    const int thread = running_thread();
    race(thread);
    for (std::size_t done = 0; done < bytes; done += 16)
        finder_.access(
            thread, region,
            Record::of(address + done, unsigned(std::min<std::size_t>(16, bytes - done)),
                       kind, 0),
            spot);
}

void Lanes::note_lane(int thread, std::uint64_t address, unsigned size, Kind kind,
                      Site site) {
    const Unseen unseen;
    Lane& lane = lanes_[thread];
    if (lane.end == lane.limit) grow(lane);
    const std::lock_guard lock(profile().mutex);
    *lane.end++ = Record::of(address, size, kind, profile().spots.pc_of(site));
}

void Lanes::fence() {
    const Unseen unseen;
    const std::lock_guard lock(profile().mutex);
    race(running_thread());
    finder_.fence(running_thread());
}
void Lanes::release(std::uint64_t object) {
    const Unseen unseen;
    const std::lock_guard lock(profile().mutex);
    race(running_thread());
    finder_.release(running_thread(), object);
}
void Lanes::acquire(std::uint64_t object) {
    const Unseen unseen;
    const std::lock_guard lock(profile().mutex);
    race(running_thread());
    finder_.acquire(running_thread(), object);
}

// ------------------------------------------------------------------------------- stories
namespace {
std::string triple(std::int64_t index, const dim3& shape) {
    return "(" + std::to_string(index % shape.x) + "," +
           std::to_string(index / shape.x % shape.y) + "," +
           std::to_string(index / shape.x / shape.y) + ")";
}
}  // namespace

std::string block_name(const dim3& grid, std::int64_t block_index) {
    return "block " + triple(block_index, grid);
}

std::string thread_name(const dim3& grid, const dim3& block, std::int64_t block_index,
                        int thread) {
    return block_name(grid, block_index) + ", thread " + triple(thread, block);
}

void Lanes::fail(const std::string& story) {
    if (launch_->failed.exchange(true)) return;
    launch_->error = cudaErrorIllegalAddress;
    launch_->report = story;
}

}  // namespace cuda_on_cpu::observe
