// Communicators: one suite over all back-ends. Here over threads; over processes in
// processes_test.cpp.

#include "distributed/communicators/communicator.h"

#include <algorithm>
#include <mutex>

#include "distributed/communicators/thread_communicator.h"
#include "tests/ranks/rank_scenarios.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::run_ranks;

struct Case {
    int ranks;
    MemorySpace space;
    Scenario scenario;
};

std::vector<Case> all_runs() {
    available_suppliers();  // makes device memory known
    std::vector<Case> runs;
    for (const Scenario& scenario : conformance_scenarios())
        for (MemorySpace space : {MemorySpace::host, MemorySpace::device})
            for (int ranks : {1, 2, 3, 4, 8}) runs.push_back({ranks, space, scenario});
    return runs;
}

class CommunicatorTest : public testing::TestWithParam<Case> {};

TEST_P(CommunicatorTest, OverThreads) {
    const Case& run = GetParam();
    if (run.space == MemorySpace::device) NEEDS_DEVICE();
    try {
        run_ranks(run.ranks,
                  [&](Communicator& world) { run.scenario.run(world, run.space); });
    } catch (const std::exception& error) {
        FAIL() << error.what();
    }
}

INSTANTIATE_TEST_SUITE_P(Conformance, CommunicatorTest, testing::ValuesIn(all_runs()),
                         [](const auto& info) {
                             const Case& run = info.param;
                             return fmt::format(
                                 "{}_{}_{}", run.scenario.name, run.ranks,
                                 run.space == MemorySpace::host ? "host" : "device");
                         });

// ----------------------------------------------------------------------- failures
class CommunicatorFailure : public testing::TestWithParam<FailureScenario> {};

TEST_P(CommunicatorFailure, EndsEveryRankWithOneLine) {
    const FailureScenario& scenario = GetParam();
    constexpr int kRanks = 4;
    std::vector<std::string> lines(kRanks);
    const auto program = [&](Communicator& world) {
        try {
            scenario.run(world);
        } catch (const std::exception& error) {
            lines[world.rank()] = error.what();
            throw;
        }
    };
    EXPECT_ANY_THROW(run_ranks(kRanks, program, std::chrono::milliseconds(200)));
    for (int rank = 0; rank < kRanks; ++rank) {
        if (rank == scenario.culprit) continue;
        EXPECT_EQ(lines[rank].rfind(fmt::format("rank {}: ", rank), 0), 0u)
            << lines[rank];
        EXPECT_EQ(lines[rank], one_line(lines[rank]));
        for (const std::string& fragment : scenario.fragments)
            EXPECT_NE(lines[rank].find(fragment), std::string::npos)
                << "rank " << rank << ": " << lines[rank];
    }
}

INSTANTIATE_TEST_SUITE_P(Threads, CommunicatorFailure,
                         testing::ValuesIn(failure_scenarios()),
                         [](const auto& info) { return info.param.name; });

TEST(RunRanks, GivesEachRankItsPlace) {
    std::mutex mutex;
    std::vector<int> ranks;
    run_ranks(5, [&](Communicator& world) {
        EXPECT_EQ(world.size(), 5);
        EXPECT_EQ(world.name(), "world");
        EXPECT_EQ(world.backend(), "threads");
        const std::lock_guard lock(mutex);
        ranks.push_back(world.rank());
    });
    std::sort(ranks.begin(), ranks.end());
    EXPECT_EQ(ranks, (std::vector<int>{0, 1, 2, 3, 4}));
}

TEST(RunRanks, ThrowsTheFirstRanksException) {
    EXPECT_TRUE(Rejects(
        [] {
            run_ranks(3, [](Communicator& world) {
                if (world.rank() == 2) reject("topk", 9, "must be at most 8");
                world.barrier();
            });
        },
        {"topk = 9: must be at most 8"}));
}

/// A group of one rank never waits, whatever the others do.
TEST(LocalCommunicator, CopiesAndNeedsNobody) {
    const auto alone = distributed::local_communicator(
        "alone", 3, std::make_shared<distributed::OpLedger>());
    EXPECT_EQ(alone->members(), std::vector<int>{3});
    for (const Scenario& scenario : conformance_scenarios()) {
        if (scenario.name == "split") continue;  // of a world, whose ranks count from 0
        EXPECT_NO_THROW(scenario.run(
            *distributed::local_communicator("world", 0, alone->ledger_ptr()),
            MemorySpace::host))
            << scenario.name;
    }
}

TEST(Communicator, PeerMemoryHasAtMostSixtyFourRanks) {
    EXPECT_TRUE(Rejects(
        [] {
            run_ranks(distributed::kMaxPeers + 1, [](Communicator& world) {
                world.peer_memory(8, MemorySpace::host);
            });
        },
        {"peer memory: ranks of group world = 65", "at most 64"}));
}

}  // namespace
}  // namespace moe::test
