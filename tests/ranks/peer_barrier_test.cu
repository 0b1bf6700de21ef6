// peer_barrier_test.cu: ranks whose devices wait for each other: what is seen after a
// meeting, and how it ends when somebody does not come.

#include "distributed/peer_memory/peer_barrier.h"

#include <chrono>
#include <thread>

#include "distributed/communicators/thread_communicator.h"
#include "gpu/launch.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "tests/support.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif

namespace moe::test {
namespace {

using distributed::BytesByPeer;
using distributed::Communicator;
using distributed::PeerBarrier;
using distributed::PeerTable;
using distributed::RowsMoved;
using distributed::run_ranks;
using std::chrono::milliseconds;

constexpr int kRounds = 12;

__device__ int* numbers_of(const PeerTable& table, int rank, int half) {
    return reinterpret_cast<int*>(table.base[rank]) + half * distributed::kMaxPeers;
}

/// A number of mine to every rank, into the half of this round.
__global__ void write_kernel(PeerTable table, int round) {
    const int peer = int(threadIdx.x);
    if (peer < table.size)
        numbers_of(table, peer, round % 2)[table.rank] = round * 100 + table.rank;
}

/// Those that are not what everybody wrote in this round.
__global__ void read_kernel(int* wrong, PeerTable table, int round) {
    const int peer = int(threadIdx.x);
    if (peer < table.size &&
        numbers_of(table, table.rank, round % 2)[peer] != round * 100 + peer)
        atomicAdd(wrong, 1);
}

void meet_again_and_again(int num_ranks, PeerBarrier::Way way) {
    gpu::register_device_memory();
    run_ranks(num_ranks, [&](Communicator& world) {
        const gpu::Stream stream;  // ranks do not wait for each other by it
        const gpu::StreamGuard guard(stream.get());
        const std::shared_ptr<Communicator> group =
            world.split("some", 0, -world.rank());  // not in the world's order
        const auto memory = group->peer_memory(2 * distributed::kMaxPeers * sizeof(int),
                                               MemorySpace::device);
        gpu::synchronize();  // it is zeroed in another stream
        const auto barrier = PeerBarrier::make(group, way);
        Tensor wrong = gpu::device_zeros<std::int32_t>({1});
        for (int round = 1; round <= kRounds; ++round) {
            if ((round + group->rank()) % 3 == 0)
                std::this_thread::sleep_for(milliseconds(2));
            gpu::launch("write_kernel", write_kernel, {1, distributed::kMaxPeers},
                        memory->table(), round);
            barrier->meet(Step::dispatch, {});
            gpu::launch("read_kernel", read_kernel, {1, distributed::kMaxPeers},
                        gpu::device_data<int>(wrong), memory->table(), round);
        }
        EXPECT_EQ(gpu::to_host<std::int32_t>(wrong)[0], 0) << "rank " << group->rank();
        group->barrier();
    });
}

/// Flags need kernels of several ranks at a time, which threads on a GPU may not get.
bool has_flags() {
    bool has = false;
    run_ranks(2, [&](Communicator& world) {
        if (world.rank() == 0)
            has = PeerBarrier::way_for(world) == PeerBarrier::Way::flags;
    });
    return has;
}
#define NEEDS_FLAGS() \
    NEEDS_DEVICE();   \
    if (!has_flags()) GTEST_SKIP() << "ranks of one GPU meet by events"

TEST(PeerBarrierFlags, ShowWhatWasWrittenBefore) {
    NEEDS_FLAGS();
    for (const int num_ranks : {1, 2, 3, 8})
        meet_again_and_again(num_ranks, PeerBarrier::Way::flags);
}

TEST(PeerBarrierEvents, ShowWhatWasWrittenBefore) {
    NEEDS_DEVICE();
    for (const int num_ranks : {1, 2, 3, 8})
        meet_again_and_again(num_ranks, PeerBarrier::Way::events);
}

#ifndef __CUDACC__
TEST(PeerBarrierEvents, OrderStreamsThatHoldTheirWorkBack) {
    for (const char* order : kStreamOrders) {
        SCOPED_TRACE(order);
        const HeldStreams held(order);
        EXPECT_FALSE(has_flags());
        meet_again_and_again(3, PeerBarrier::Way::events);
    }
}
#endif

TEST(PeerBarrier, BooksWhatMoved) {
    NEEDS_FLAGS();
    gpu::register_device_memory();
    for (const auto way : {PeerBarrier::Way::flags, PeerBarrier::Way::events})
        run_ranks(3, [&](Communicator& world) {
            const std::shared_ptr<Communicator> group =
                world.split("some", 0, -world.rank());  // rank r is 2 - r there
            auto barrier = PeerBarrier::make(group, way);
            world.ledger().reset_sent();  // making it is not what is asked
            const Tensor rows = gpu::to_device(std::vector<std::int32_t>{5, 7, 11});
            const RowsMoved moved = {gpu::device_data<std::int32_t>(rows), 1L << 40};
            barrier->meet(Step::combine, moved);
            barrier->meet(Step::dispatch, {});
            BytesByPeer expected;
            for (int r = 0; r < 3; ++r)
                if (r != group->rank())
                    expected[2 - r] = std::vector<std::int64_t>{5, 7, 11}[r] << 40;
            const auto sent = [&] { return world.ledger().sent(); };
            using distributed::Traffic;
            EXPECT_EQ(sent(), (Traffic{{"flex_combine", expected}}));
            world.ledger().reset_sent();
            EXPECT_EQ(sent(), Traffic());
            barrier->meet(Step::dispatch_backward, moved);
            barrier->meet(Step::dispatch_backward, moved);
            for (auto& [peer, bytes] : expected) bytes *= 2;
            barrier.reset();  // the books outlive it
            EXPECT_EQ(sent(), (Traffic{{"flex_dispatch_backward", expected}}));
        });
}

/// What each of three ranks says when rank 1 does `instead` of its second meeting.
std::vector<std::string> endings(milliseconds deadline,
                                 const std::function<void()>& instead) {
    gpu::register_device_memory();
    std::vector<std::string> lines(3);
    try {
        run_ranks(
            3,
            [&](Communicator& world) {
                const std::shared_ptr<Communicator> group =
                    world.split("some", 0, -world.rank());
                const auto barrier = PeerBarrier::make(group, PeerBarrier::Way::flags);
                try {
                    barrier->meet(Step::dispatch, {});
                    if (world.rank() == 1) return instead();
                    barrier->meet(Step::combine, {});
                } catch (const InputError& error) {
                    lines[world.rank()] = error.what();
                    throw;
                }
            },
            deadline);
    } catch (const InputError&) {
    }
    cudaGetLastError();
    return lines;
}

TEST(PeerBarrier, NamesWhoDoesNotCome) {
    NEEDS_FLAGS();
    const auto lines = endings(milliseconds(200), [] {});
    // Whoever notices first says it, and the other that somebody has
    const std::string said =
        "barrier in a kernel of ⑩ #5 on group some, 0 bytes failed: rank 1 did not come "
        "within 200 ms: its flag is at 1 of 2";
    int times = 0;
    for (const int r : {0, 2}) {
        EXPECT_NE(lines[r].find(fmt::format("rank {}: ", r)), std::string::npos);
        times += lines[r].find(said) != std::string::npos;
    }
    EXPECT_GE(times, 1) << lines[0] << "\n" << lines[2];
}

TEST(PeerBarrier, EndsWhenAnotherRankHasFailed) {
    NEEDS_FLAGS();
    const auto start = std::chrono::steady_clock::now();
    const auto lines = endings(std::chrono::seconds(50), [] {
        std::this_thread::sleep_for(milliseconds(50));  // the others wait already
        throw InputError("spoilt = yes: not today");
    });
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    for (const int r : {0, 2})
        EXPECT_NE(lines[r].find("spoilt = yes: not today"), std::string::npos)
            << lines[r];
}

}  // namespace
}  // namespace moe::test
