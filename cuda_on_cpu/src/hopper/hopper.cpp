// hopper.cpp: what a block knows of Hopper's instructions, and what the headers call.

#include "hopper/hopper.h"

#include <cstdio>
#include <cstring>

#include "cuda_on_cpu/observe_instructions.h"
#include "memory.h"

namespace cuda_on_cpu {

void Hopper::begin(Block& block) {
    mbarriers.begin();
    named_barriers.begin();
    proxy.begin(block);
    cp_async.begin(block.count());
    bulk_groups.begin(block.count());
    const int warps = (block.count() + kWarpSize - 1) / kWarpSize;
    wgmma.begin(warps);
    registers.assign(std::size_t(warps), 0);
    cluster_phase.assign(std::size_t(block.count()), 0);
    flights.clear();
    polls = 0;
}

bool Hopper::land_one(SplitMix& random) {
    if (flights.empty()) return false;
    const auto index = std::ptrdiff_t(random.below(flights.size()));
    const Flight flight = std::move(flights[std::size_t(index)]);
    flights.erase(flights.begin() + index);
    flight.land();
    return true;
}

void Hopper::thread_exits(Block& block, int thread) {
    bulk_groups.check_exit(thread);
    if (block.live_lanes(thread / kWarpSize) == 0) wgmma.check_exit(thread / kWarpSize);
}

void Hopper::block_exits(Block& block) {
    if (!flights.empty())
        throw Fault{
            "the block exits before a load into its shared memory has arrived: "
            "somebody must wait for its mbarrier",
            flights.front().site};
    mbarriers.check_exit(block);
    cp_async.block_exits(block);
    // A peer that still reads this block's shared memory finds NaN.
    if (block.cluster().size() > 1) std::memset(block.arena(), 0xFF, block.launch().smem);
}

void Hopper::poll(Block& block, Site site) {
    constexpr std::int64_t kPatience = 10'000'000;
    // While somebody polls, no scheduler sees that nobody can go on.
    if (++polls % 1024 == 0) block.cluster().land_one();
    if (polls == kPatience)
        throw Fault{
            "mbarrier_test_wait: polled 10 million times, and no mbarrier of the "
            "block has moved: a deadlock",
            site};
    block.yield();
}

std::string Hopper::describe_wait(const Block& block, int thread) const {
    const std::uint64_t object = block.waits_for(thread);
    if (block.state(thread) == Block::State::named_barrier)
        return named_barriers.describe(object);
    return mbarriers.describe(object >> 32, object & 0xffffffffu);
}

std::string place(Site site) {
    return std::string(site.file) + ":" + std::to_string(site.line);
}

std::string shared_offset(const Block& block, const void* address) {
    char text[32];
    std::snprintf(text, sizeof text, "+0x%zx",
                  std::size_t(static_cast<const std::byte*>(address) - block.arena()));
    return text;
}

std::size_t shared_position(const Block& block, const char* what, const void* address,
                            std::size_t bytes, std::size_t alignment) {
    const auto* byte = static_cast<const std::byte*>(address);
    const std::size_t smem = block.launch().smem;
    if (byte < block.arena() || byte > block.arena() + smem)
        throw Fault{std::string(what) +
                    ": the address is not in the block's shared "
                    "memory"};
    const auto position = std::size_t(byte - block.arena());
    if (bytes > smem - position)
        throw Fault{std::string(what) + ": " + std::to_string(bytes) +
                    " bytes at shared memory " + shared_offset(block, address) +
                    " end past the " + std::to_string(smem) + " bytes of the launch"};
    if (position % alignment != 0)
        throw Fault{std::string(what) + ": the address in shared memory, " +
                    shared_offset(block, address) + ", must be aligned to " +
                    std::to_string(alignment) + " bytes"};
    return position;
}

void check_global(const char* what, const void* address, std::size_t bytes) {
    const std::string wrong = describe_outside(address, bytes);
    if (!wrong.empty())
        throw Fault{std::string(what) + ": " + wrong, {}, cudaErrorIllegalAddress};
}

// ---------------------------------------------------------------------------- mbarrier
void mbarrier_init(std::uint64_t* barrier, std::uint32_t count, Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().mbarriers.init(block, barrier, count, site);
    });
}
void mbarrier_invalidate(std::uint64_t* barrier, Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().mbarriers.invalidate(block, barrier, site);
    });
}
void mbarrier_arrive(std::uint64_t* barrier, std::uint32_t count, Site site) {
    kernel_call(site, [&](Block& block) {
        observe::release(barrier);
        block.hopper().mbarriers.arrive(block, barrier, count, site);
    });
}
void mbarrier_expect_tx(std::uint64_t* barrier, std::uint32_t bytes, Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().mbarriers.expect_bytes(block, barrier, bytes, site);
    });
}
bool mbarrier_test_wait(std::uint64_t* barrier, std::uint32_t parity, Site site) {
    return kernel_call(site, [&](Block& block) {
        if (block.hopper().mbarriers.test(block, barrier, parity, site)) {
            observe::acquire(barrier);
            return true;
        }
        block.hopper().poll(block, site);
        return false;
    });
}
void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity, Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().mbarriers.wait(block, barrier, parity, site);
        observe::acquire(barrier);
    });
}
void mbarrier_arrive_remote(std::uint64_t* barrier, std::uint32_t rank, Site site) {
    kernel_call(site, [&](Block& block) {
        shared_position(block, "mbarrier_arrive_remote", barrier, 8, 8);
        auto* theirs = static_cast<std::uint64_t*>(map_shared_rank(barrier, rank, site));
        observe::release(theirs);
        Block& owner = block.cluster().block(int(rank));
        owner.hopper().mbarriers.arrive(owner, theirs, 1, site);
    });
}

// ------------------------------------------------------------------------------- copies
void cp_async(void* target, const void* source, unsigned bytes, unsigned source_bytes,
              Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().cp_async.copy(block, target, source, bytes, source_bytes, site);
    });
}
void cp_async_commit() {
    kernel_call({},
                [&](Block& block) { block.hopper().cp_async.commit(block.current()); });
}
void cp_async_wait(unsigned groups) {
    kernel_call({}, [&](Block& block) { block.hopper().cp_async.wait(block, groups); });
}
void cp_async_mbarrier_arrive(std::uint64_t* barrier, bool counted, Site site) {
    kernel_call(site, [&](Block& block) {
        block.hopper().cp_async.arrive(block, barrier, counted, site);
    });
}
void bulk_load(void* target, const void* source, std::uint32_t bytes,
               std::uint64_t* barrier, std::uint32_t blocks, Site site) {
    kernel_call(site, [&](Block& block) {
        load_bytes(block, target, source, bytes, barrier, blocks, site);
    });
}
void bulk_store(void* target, const void* source, std::uint32_t bytes, BulkOp op,
                Site site) {
    kernel_call(
        site, [&](Block& block) { store_bytes(block, target, source, bytes, op, site); });
}
void tensor_load(void* target, const void* tensor_map, const int* corner, int rank,
                 std::uint64_t* barrier, std::uint32_t blocks, Site site) {
    kernel_call(site, [&](Block& block) {
        load_box(block, target, tensor_map, corner, rank, barrier, blocks, site);
    });
}
void tensor_store(const void* tensor_map, const int* corner, int rank, const void* source,
                  BulkOp op, Site site) {
    kernel_call(site, [&](Block& block) {
        store_box(block, tensor_map, corner, rank, source, op, site);
    });
}
void bulk_commit() {
    kernel_call(
        {}, [&](Block& block) { block.hopper().bulk_groups.commit(block.current()); });
}
void bulk_wait(unsigned groups) {
    kernel_call({}, [&](Block& block) {
        block.hopper().bulk_groups.wait(block.current(), groups);
    });
}

// --------------------------------------------------------------- waits, fences, clusters
void named_barrier(unsigned id, unsigned count, bool sync, Site site) {
    kernel_call(site, [&](Block& block) {
        // To the observer an object is an address of the block's shared memory: here
        // one past all that a launch may have.
        const std::byte* object = block.arena() + kMaxSharedMemory - 16 + id % 16;
        observe::release(object);
        block.hopper().named_barriers.arrive(block, id, count, sync, site);
        if (sync) observe::acquire(object);
    });
}

void fence_proxy_async() {
    kernel_call({}, [](Block& block) {
        block.hopper().mbarriers.fence(block.current());
        block.hopper().proxy.fence([&] { block.let_others_run(); });
    });
}
void fence_mbarrier_init() {
    kernel_call({},
                [](Block& block) { block.hopper().mbarriers.fence(block.current()); });
}

void cluster_arrive(Site site) {
    kernel_call(site, [&](Block& block) { block.cluster().arrive(block, site); });
}
void cluster_wait(Site site) {
    kernel_call(site, [&](Block& block) { block.cluster().wait(block, site); });
}
unsigned cluster_rank() {
    const Block& block = *Block::running();
    return unsigned(block.cluster().rank_of(block));
}
unsigned cluster_size() {
    return unsigned(Block::running()->cluster().size());
}
void* map_shared_rank(const void* pointer, unsigned rank, Site site) {
    return kernel_call(site, [&](Block& block) -> void* {
        Cluster& cluster = block.cluster();
        if (rank >= unsigned(cluster.size()))
            throw Fault{"map_shared_rank: rank = " + std::to_string(rank) +
                        ": the cluster has " + std::to_string(cluster.size()) +
                        (cluster.size() == 1 ? " block" : " blocks")};
        const std::size_t position =
            shared_position(block, "map_shared_rank", pointer, 0, 1);
        Block& peer = cluster.block(int(rank));
        if (peer.live() == 0)
            throw Fault{"map_shared_rank: block " + std::to_string(rank) +
                        " of the cluster has exited, and its shared memory with it"};
        return peer.arena() + position;
    });
}

}  // namespace cuda_on_cpu
