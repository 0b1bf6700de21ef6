// Ranks as processes: start-up, the suite of communicator_test.cpp over MPI, and what
// becomes of the others when one rank dies, hangs or disagrees. Judges by what each rank
// itself printed: a launcher's exit code alone may be 0 when a rank died.

#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "distributed/communicators/mpi_communicator.h"
#include "distributed/communicators/nccl_communicator.h"
#include "distributed/communicators/watchdog.h"
#include "distributed/launch/launch.h"
#include "tests/failures.h"
#include "tests/ranks/job.h"
#include "tests/ranks/rank_scenarios.h"

namespace moe::test {
namespace {

using namespace distributed;
using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

constexpr int kRanks = 3;

Outcome run_job(std::vector<std::string> arguments) {
    return Job(std::move(arguments)).finish();
}

Outcome run_mpi(int ranks, const std::string& scenario, int deadline_ms = 30000) {
    return run_job({"--spawn", std::to_string(ranks), "--deadline",
                    std::to_string(deadline_ms), scenario});
}

Outcome run_forked(int ranks, const std::string& scenario, int deadline_ms = 30000) {
    return run_job({"--spawn", std::to_string(ranks), "--fork", "--deadline",
                    std::to_string(deadline_ms), scenario});
}

// ---------------------------------------------------------------------- over MPI
class MpiConformance : public testing::TestWithParam<int> {};

TEST_P(MpiConformance, IsThatOfThreads) {
    NEEDS_MPI();
    const Outcome outcome = run_mpi(GetParam(), "conformance", 60000);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    for (int rank = 0; rank < GetParam(); ++rank)
        EXPECT_EQ(outcome.count(fmt::format("rank {}: PASS over MPI", rank)), 1)
            << outcome.output;
}

INSTANTIATE_TEST_SUITE_P(Ranks, MpiConformance, testing::Values(1, 2, 4));

class MpiFailure : public testing::TestWithParam<FailureScenario> {};

TEST_P(MpiFailure, EndsEveryRankWithOneLine) {
    NEEDS_MPI();
    const FailureScenario& scenario = GetParam();
    // Long enough to start under load; only one of the scenarios waits for it.
    const bool waits = scenario.name == "stays_away";
    const Outcome outcome = run_mpi(kRanks, scenario.name, waits ? 1000 : 30000);
    EXPECT_NE(outcome.code, 0) << outcome.output;
    EXPECT_LT(outcome.seconds, (waits ? 1.0 : 10.0) + 15.0);
    for (int rank = 0; rank < kRanks; ++rank) {
        if (rank == scenario.culprit) continue;
        const std::string line = outcome.line_of(rank);
        EXPECT_FALSE(line.empty()) << "rank " << rank << " in\n" << outcome.output;
        for (const std::string& fragment : scenario.fragments)
            EXPECT_NE(line.find(fragment), std::string::npos) << outcome.output;
    }
}

INSTANTIATE_TEST_SUITE_P(Processes, MpiFailure, testing::ValuesIn(failure_scenarios()),
                         [](const auto& info) { return info.param.name; });

/// What rank 1 does, and what the others say of it.
struct Fault {
    std::string name, words;
    double seconds;  // until all are gone, besides the time to start
};

class MpiFault : public testing::TestWithParam<Fault> {};

TEST_P(MpiFault, EndsAllRanks) {
    NEEDS_MPI();
    constexpr int kDeadline = 3000;
    const Outcome outcome = run_mpi(kRanks, GetParam().name, kDeadline);
    RecordProperty("seconds", std::to_string(outcome.seconds));
    EXPECT_NE(outcome.code, 0) << outcome.output;
    EXPECT_EQ(outcome.count("rank 0: PASS"), 0) << outcome.output;
    for (int rank : {0, 2}) {
        const std::string line = outcome.line_of(rank);
        EXPECT_NE(line.find("barrier #"), std::string::npos) << outcome.output;
        EXPECT_NE(line.find("on group world"), std::string::npos) << outcome.output;
        EXPECT_NE(line.find(GetParam().words), std::string::npos) << outcome.output;
    }
    EXPECT_LT(outcome.seconds, GetParam().seconds + 5.0) << outcome.output;
}

INSTANTIATE_TEST_SUITE_P(
    Processes, MpiFault,
    testing::Values(Fault{"killed", "rank 1 has died", 1.0},
                    Fault{"exits_0", "rank 1 has died", 1.0},
                    Fault{"stopped", "rank 1 did not come within 3000 ms", 4.0},
                    Fault{"sleeps", "rank 1 did not come within 3000 ms", 4.0}),
    [](const auto& info) { return info.param.name; });

TEST(MpiKernelFault, EndsAllRanks) {
    NEEDS_MPI();
    constexpr int kDeadline = 2000;
    for (const auto& [fault, words] :
         {std::pair("killed", "rank 1 has died"),
          {"stopped", "rank 1 did not come within 2000 ms: its flag is at 1 of 2"}}) {
        const Outcome outcome =
            run_mpi(kRanks, std::string(fault) + "_in_kernel", kDeadline);
        EXPECT_NE(outcome.code, 0) << outcome.output;
        for (const int rank : {0, 2}) {
            const std::string line = outcome.line_of(rank);
            // Who is slow to leave the first one ends in that
            EXPECT_NE(line.find("barrier in a kernel of "), std::string::npos)
                << outcome.output;
            EXPECT_NE(line.find("on group some"), std::string::npos) << outcome.output;
        }
        // Of two that wait, one may hear of it from the other
        EXPECT_NE((outcome.line_of(0) + outcome.line_of(2)).find(words),
                  std::string::npos)
            << outcome.output;
        EXPECT_LT(outcome.seconds, kDeadline / 1000.0 + 5.0) << outcome.output;
    }
}

/// True while a process with that id exists (and is no corpse).
bool is_alive(pid_t pid) {
    std::ifstream status(fmt::format("/proc/{}/stat", pid));
    std::string id, name, state;
    return bool(status >> id >> name >> state) && state != "Z";
}

/// Kills the launcher of ranks that would sleep for an hour.
void check_that_ranks_die_with_their_launcher(const std::vector<std::string>& arguments) {
    Job job(arguments);
    std::vector<pid_t> ranks;
    while (ranks.size() < std::size_t(kRanks)) {
        const std::string line = job.read_line();
        if (line.empty()) break;
        // An MPI's own warnings may stand between them.
        int rank = -1, pid = -1;
        if (std::sscanf(line.c_str(), "rank %d: pid %d", &rank, &pid) == 2)
            ranks.push_back(pid);
    }
    ASSERT_EQ(ranks.size(), std::size_t(kRanks));
    for (pid_t rank : ranks) EXPECT_TRUE(is_alive(rank));
    kill(job.pid(), SIGKILL);
    const auto start = Clock::now();
    const auto any = [&] { return std::any_of(ranks.begin(), ranks.end(), is_alive); };
    while (any() && Seconds(Clock::now() - start).count() < 5.0)
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    EXPECT_FALSE(any());
    for (pid_t rank : ranks)
        if (is_alive(rank)) kill(rank, SIGKILL);
    job.finish();
}

TEST(MpiFault, RanksDieWithTheirLauncher) {
    NEEDS_MPI();
    check_that_ranks_die_with_their_launcher(
        {"--spawn", std::to_string(kRanks), "waits"});
}

// -------------------------------------------------- over rendezvous and watchdog alone
TEST(Forked, MeetAndPart) {
    const Outcome outcome = run_forked(4, "control_good");
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    for (int rank = 0; rank < 4; ++rank)
        EXPECT_EQ(outcome.count(fmt::format("rank {}: PASS", rank)), 1) << outcome.output;
}

TEST(Forked, RanksDieWithTheirLauncher) {
    check_that_ranks_die_with_their_launcher(
        {"--spawn", std::to_string(kRanks), "--fork", "control_waits"});
}

TEST(Forked, DifferentConfigsStopAllWithTheSameLine) {
    const Outcome outcome = run_forked(kRanks, "control_differs");
    EXPECT_EQ(outcome.code, kExitRanksFailed) << outcome.output;
    for (int rank = 0; rank < kRanks; ++rank)
        EXPECT_EQ(outcome.line_of(rank),
                  fmt::format("moe: rank {}: start failed: ranks 0 and 2 differ in their "
                              "config: {{\"topk\": 2 and {{\"topk\": 3",
                              rank))
            << outcome.output;
}

TEST(Forked, ARankThatNeverStartsIsNamed) {
    const Outcome outcome = run_forked(kRanks, "control_absent", 1500);
    EXPECT_NE(outcome.code, 0) << outcome.output;
    for (int rank : {0, 2})
        EXPECT_EQ(outcome.line_of(rank),
                  fmt::format("moe: rank {}: start failed: rank 1 did not start within "
                              "1500 ms",
                              rank))
            << outcome.output;
    EXPECT_LT(outcome.seconds, 1.5 + 5.0);
}

TEST(Forked, ADeadRankEndsTheOthers) {
    for (const auto& [scenario, dead] :
         {std::pair{"control_killed", 1}, {"control_rank_0_killed", 0}}) {
        const Outcome outcome = run_forked(kRanks, scenario);
        EXPECT_EQ(outcome.code, 128 + SIGKILL) << outcome.output;
        EXPECT_NE(outcome.output.find(fmt::format("moe: rank {} was ended by a signal: "
                                                  "Killed",
                                                  dead)),
                  std::string::npos)
            << outcome.output;
        for (int rank = 0; rank < kRanks; ++rank) {
            if (rank == dead) continue;
            EXPECT_NE(outcome.line_of(rank).find(fmt::format("rank {} has died", dead)),
                      std::string::npos)
                << outcome.output;
        }
        EXPECT_LT(outcome.seconds, 5.0);
    }
}

TEST(Forked, ARankThatLeavesIsMissed) {
    const Outcome outcome = run_forked(kRanks, "control_leaves");
    EXPECT_NE(outcome.code, 0) << outcome.output;
    for (int rank : {0, 2})
        EXPECT_NE(outcome.line_of(rank).find(
                      "all_gather #1 on group world, 24 bytes failed: rank 1 has ended "
                      "without it"),
                  std::string::npos)
            << outcome.output;
    EXPECT_LT(outcome.seconds, 6.0);
}

TEST(Forked, AnOperationThatTakesTooLongEndsAll) {
    const Outcome outcome = run_forked(kRanks, "control_hangs", 1500);
    EXPECT_NE(outcome.code, 0) << outcome.output;
    for (int rank = 0; rank < kRanks; ++rank)
        EXPECT_NE(outcome.line_of(rank).find(
                      "all_gather #1 on group world, 24 bytes failed: not done within "
                      "1500 ms"),
                  std::string::npos)
            << outcome.output;
    EXPECT_LT(outcome.seconds, 1.5 + 5.0);
}

// --------------------------------------------------------------------- over NCCL
TEST(Nccl, ConformanceOfRanksThatShareAGpu) {
    if (const std::string missing = NcclSession::missing(); !missing.empty())
        GTEST_SKIP() << "NCCL " << missing;
    if (!std::filesystem::exists("/proc/driver/nvidia/gpus"))
        GTEST_SKIP() << "no GPU was found";
    setenv("MOE_RANKS_SHARE_GPU", "1", 1);
    for (int ranks : {1, 2, 4}) {
        const Outcome outcome = run_job({"--spawn", std::to_string(ranks), "--fork",
                                         "--gpus", "--deadline", "60000", "conformance"});
        EXPECT_EQ(outcome.code, 0) << outcome.output;
        for (int rank = 0; rank < ranks; ++rank)
            EXPECT_EQ(outcome.count(fmt::format("rank {}: PASS over NCCL", rank)), 1)
                << outcome.output;
    }
    unsetenv("MOE_RANKS_SHARE_GPU");
}

}  // namespace
}  // namespace moe::test

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    moe::test::report_failures(argv[0]);
    return RUN_ALL_TESTS();
}
