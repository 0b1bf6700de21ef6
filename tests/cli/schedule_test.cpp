// What waits for what: schedules of logs that are written by hand, and what
// `moe compare --ranks` shows of a layer's.

#include "cli/ranks/schedule.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using gpu::LogEntry;
using testing::ElementsAre;

LogEntry kernel(const std::string& name, int stream) {
    LogEntry entry;
    entry.name = name;
    entry.stream = stream;
    return entry;
}

LogEntry exchange(const std::string& name, int stream, std::vector<int> members) {
    LogEntry entry = kernel(name, stream);
    entry.kind = LogEntry::Kind::exchange;
    entry.members = std::move(members);
    return entry;
}

LogEntry on_host(LogEntry entry) {
    entry.on_host = true;
    return entry;
}

LogEntry waits(int later, int earlier) {
    LogEntry entry = kernel("", later);
    entry.kind = LogEntry::Kind::wait_for_stream;
    entry.other = earlier;
    return entry;
}

LogEntry host_waits(int stream) {
    LogEntry entry = kernel("", stream);
    entry.kind = LogEntry::Kind::host_wait;
    return entry;
}

/// "a@0" in column 0, "a@0*" if it may run beside another stream; of one rank.
std::vector<std::string> in_words(const Schedule& schedule, int rank) {
    std::vector<std::string> words;
    for (const Slot& slot : schedule.slots)
        if (slot.rank == rank && slot.kind != Slot::Kind::host_wait)
            words.push_back(
                fmt::format("{}@{}{}", slot.name, slot.column, slot.beside ? "*" : ""));
    return words;
}

TEST(Schedule, StreamsRunAtOnceBetweenTheirEvents) {
    const Schedule found =
        schedule({{kernel("a", 0), waits(1, 0), kernel("b", 1), kernel("c", 0),
                   kernel("d", 0), waits(0, 1), kernel("e", 0)}});
    EXPECT_THAT(in_words(found, 0), ElementsAre("a@0", "b@1*", "c@1*", "d@2*", "e@3"));
    EXPECT_EQ(found.columns, 4);
    EXPECT_EQ(found.backward_from, 4);
    EXPECT_EQ(found.beside(), 1);
    EXPECT_EQ(found.with(), 2);
    EXPECT_THAT(found.streams, ElementsAre(2));
}

TEST(Schedule, AnEventIsRecordedWhereItStands) {
    // What stream 1 gets later is not waited for, though it stands further left
    const Schedule found =
        schedule({{kernel("a", 1), waits(0, 1), kernel("b", 1), kernel("c", 0)}});
    EXPECT_THAT(in_words(found, 0), ElementsAre("a@0", "b@1*", "c@1*"));
}

TEST(Schedule, AHostThatWaitsKeepsStreamsApart) {
    const Schedule found =
        schedule({{kernel("a", 0), host_waits(0), kernel("b", 1), kernel("c", 0),
                   host_waits(LogEntry::kAllStreams), kernel("d", 0)}});
    EXPECT_THAT(in_words(found, 0), ElementsAre("a@0", "b@1*", "c@1*", "d@2"));
    std::vector<std::pair<int, int>> stands;  // from, for how long
    for (const Slot& slot : found.slots)
        if (slot.kind == Slot::Kind::host_wait)
            stands.push_back({slot.column, slot.width});
    EXPECT_THAT(stands, ElementsAre(std::pair(0, 1), std::pair(1, 1)));
}

TEST(Schedule, AnExchangeBeginsWhenItsLastRankIsThere) {
    const Schedule found = schedule(
        {{kernel("a", 0), kernel("b", 0), exchange("x", 0, {0, 2}), kernel("c", 0)},
         {kernel("d", 0)},
         {exchange("x", 0, {0, 2}), kernel("e", 0)}});
    EXPECT_THAT(in_words(found, 0), ElementsAre("a@0", "b@1", "x@2", "c@3"));
    EXPECT_THAT(in_words(found, 1), ElementsAre("d@0"));
    EXPECT_THAT(in_words(found, 2), ElementsAre("x@2", "e@3"));
}

TEST(Schedule, AnExchangeOnTheHostHoldsUpWhatIsLaunchedLater) {
    const Schedule found =
        schedule({{kernel("a", 0), host_waits(0), on_host(exchange("x", 0, {0, 1})),
                   kernel("b", 1)},
                  {on_host(exchange("x", 0, {0, 1})), kernel("c", 0)}});
    EXPECT_THAT(in_words(found, 0), ElementsAre("a@0", "x@1", "b@2"));
    EXPECT_THAT(in_words(found, 1), ElementsAre("x@1", "c@2"));
}

TEST(Schedule, OrderGoesThroughOtherRanks) {
    // Rank 0's streams never wait for each other: rank 1 puts x before y.
    const auto x = [](int stream) { return exchange("x", stream, {0, 1}); };
    const auto y = [](int stream) { return exchange("y", stream, {0, 1}); };
    const Schedule ordered =
        schedule({{kernel("a", 1), x(1), y(0), kernel("b", 0)}, {x(0), y(0)}});
    EXPECT_THAT(in_words(ordered, 0), ElementsAre("a@0", "x@1", "y@2", "b@3"));
    const Schedule free =
        schedule({{kernel("a", 1), x(1), y(0), kernel("b", 0)}, {x(1), y(0)}});
    EXPECT_THAT(in_words(free, 0), ElementsAre("a@0*", "x@1*", "y@0*", "b@1*"));
}

TEST(Schedule, TheBackwardBeginsWithItsFirstKernel) {
    std::vector<LogEntry> log = {kernel("a", 0), host_waits(0), kernel("b", 0)};
    log[1].backward = log[2].backward = true;
    EXPECT_EQ(schedule({log}).backward_from, 1);
}

TEST(Schedule, RanksThatNeverMeetAreAFault) {
    EXPECT_THROW(schedule({{exchange("x", 0, {0, 1})}, {}}), InternalError);
    EXPECT_THROW(schedule({{exchange("x", 0, {0, 1})}, {exchange("y", 0, {0, 1})}}),
                 InternalError);
}

class TimelineOfRanksTest : public CliTest {};

TEST_F(TimelineOfRanksTest, ShowsWhatMayRunAtOnce) {
    NEEDS_DEVICE();
    const std::string line =
        "compare --hidden-size 24 --moe-ffn-hidden-size 40 --scale 1 --seq-length 7 "
        "--micro-batch-size 2 --num-experts 6 --moe-router-topk 3 --ranks 2 "
        "--tier naive_gpu --tier optimized_gpu --dtype bf16 --golden none --report " +
        path("report");
    const std::string heading = "Kernels and exchanges that may run at once";
    const Output in_turn = moe(line);
    EXPECT_EQ(in_turn.code, kExitOk) << in_turn.err;
    EXPECT_FALSE(has(in_turn, heading));
    EXPECT_NE(read(path("report/index.html")).find("What waits for what"),
              std::string::npos);
    const Output beside = moe(line + " --overlap-dispatch-backward-with-experts-wgrad");
    EXPECT_EQ(beside.code, kExitOk) << beside.err;
    // Both products of the weights' gradient, beside the way back of the dispatch
    for (const char* words :
         {"optimized_gpu:bf16, allgather: 2 of a second stream beside ",
          "optimized_gpu:bf16, alltoall: 2 of a second stream beside ",
          "optimized_gpu:bf16, flex: 2 of a second stream beside "})
        EXPECT_TRUE(has(beside, words)) << beside.out;
    const std::string html = read(path("report/index.html"));
    EXPECT_NE(html.find("nothing orders it against another stream"), std::string::npos);
    EXPECT_NE(html.find("peer_barrier_kernel of ranks 0, 1"), std::string::npos);
}

}  // namespace
}  // namespace moe::test
