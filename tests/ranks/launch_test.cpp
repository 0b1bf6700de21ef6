// Who am I, and where are the others: launchers' variables, the rendezvous' port.

#include "distributed/launch/launch.h"

#include <map>
#include <thread>

#include "distributed/launch/rendezvous.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using namespace distributed;
using Variables = std::map<std::string, std::string>;

Environment environment_of(const Variables& variables) {
    return [variables](const char* name) -> const char* {
        const auto found = variables.find(name);
        // Of the copy in this function object, which outlives the answer.
        return found == variables.end() ? nullptr : found->second.c_str();
    };
}

RankIdentity identity_of(const Variables& variables) {
    const auto environment = environment_of(variables);
    return identify_rank({}, {}, environment).value();
}

TEST(IdentifyRank, KnowsEveryLauncher) {
    const std::vector<std::pair<std::string, Variables>> launchers = {
        {"torchrun", {{"RANK", "5"}, {"WORLD_SIZE", "8"}, {"LOCAL_RANK", "1"}}},
        {"Open MPI",
         {{"OMPI_COMM_WORLD_RANK", "5"},
          {"OMPI_COMM_WORLD_SIZE", "8"},
          {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}}},
        {"PMI", {{"PMI_RANK", "5"}, {"PMI_SIZE", "8"}, {"MPI_LOCALRANKID", "1"}}},
        {"Slurm",
         {{"SLURM_PROCID", "5"}, {"SLURM_NTASKS", "8"}, {"SLURM_LOCALID", "1"}}}};
    Variables all;
    for (auto launcher = launchers.rbegin(); launcher != launchers.rend(); ++launcher) {
        const RankIdentity alone = identity_of(launcher->second);
        EXPECT_EQ(alone.source, launcher->first);
        EXPECT_EQ(alone.rank, 5);
        EXPECT_EQ(alone.world_size, 8);
        EXPECT_EQ(alone.local_rank, 1);
        // The earlier in the list wins.
        all.insert(launcher->second.begin(), launcher->second.end());
        EXPECT_EQ(identity_of(all).source, launcher->first);
    }
    const RankIdentity flags = identify_rank(2, 4, environment_of(all)).value();
    EXPECT_EQ(flags.source, "flags");
    EXPECT_EQ(flags.rank, 2);
    EXPECT_EQ(flags.world_size, 4);
    EXPECT_FALSE(identify_rank({}, {}, environment_of({})));
    EXPECT_FALSE(identify_rank({}, {}, environment_of({{"RANK", ""}})));
}

TEST(IdentifyRank, RejectsHalfAndWrongIdentities) {
    const auto rejects = [](const Variables& variables,
                            const std::vector<std::string>& fragments) {
        return Rejects([&] { identity_of(variables); }, fragments);
    };
    EXPECT_TRUE(rejects({{"RANK", "0"}}, {"WORLD_SIZE = missing", "go together"}));
    EXPECT_TRUE(rejects({{"PMI_SIZE", "2"}}, {"PMI_RANK = missing", "go together"}));
    EXPECT_TRUE(
        rejects({{"RANK", "two"}, {"WORLD_SIZE", "4"}}, {"RANK = two", "number"}));
    EXPECT_TRUE(rejects({{"RANK", "-1"}, {"WORLD_SIZE", "4"}}, {"RANK = -1", "number"}));
    EXPECT_TRUE(rejects({{"RANK", "1x"}, {"WORLD_SIZE", "4"}}, {"RANK = 1x", "number"}));
    EXPECT_TRUE(rejects({{"RANK", "4"}, {"WORLD_SIZE", "4"}},
                        {"RANK = 4", "from 0 to 3", "WORLD_SIZE is 4"}));
    EXPECT_TRUE(rejects({{"RANK", "0"}, {"WORLD_SIZE", "0"}}, {"WORLD_SIZE = 0"}));
    EXPECT_TRUE(Rejects([] { identify_rank(1, {}, environment_of({})); },
                        {"--world-size = missing"}));
    EXPECT_TRUE(
        Rejects([] { identify_rank({}, 2, environment_of({})); }, {"--rank = missing"}));
    EXPECT_TRUE(Rejects([] { identify_rank(2, 2, environment_of({})); }, {"--rank = 2"}));
}

TEST(MasterAddress, TakesItsOwnPortBeforeTorchruns) {
    const auto port_of = [](const Variables& variables) {
        return master_address(environment_of(variables)).port;
    };
    Variables variables = {{"MASTER_ADDR", "node7"}, {"MASTER_PORT", "29500"}};
    EXPECT_EQ(master_address(environment_of(variables)).host, "node7");
    EXPECT_EQ(port_of(variables), 29500);
    variables["TORCHELASTIC_RUN_ID"] = "none";
    EXPECT_EQ(port_of(variables), 29501);
    variables["MOE_PORT"] = "4000";
    EXPECT_EQ(port_of(variables), 4000);
    EXPECT_TRUE(Rejects(
        [] {
            master_address(environment_of({{"MASTER_PORT", "1"}}));
        },
        {"MASTER_ADDR = missing"}));
    EXPECT_TRUE(Rejects(
        [] {
            master_address(environment_of({{"MASTER_ADDR", "a"}}));
        },
        {"MASTER_PORT = missing", "MOE_PORT"}));
}

TEST(Rendezvous, SaysWhenThePortIsTaken) {
    const RendezvousServer first(0, 1, std::chrono::seconds(5));
    EXPECT_TRUE(
        Rejects([&] { RendezvousServer(first.port(), 1, std::chrono::seconds(5)); },
                {fmt::format("port = {}", first.port()), "in use", "MOE_PORT"}));
}

TEST(Rendezvous, SaysWhenRankZeroIsNotThere) {
    const int free_port = [] {
        return RendezvousServer(0, 1, std::chrono::seconds(5)).port();
    }();
    EXPECT_TRUE(Rejects(
        [&] {
            ControlConnection("127.0.0.1", free_port, 1, 2, "",
                              std::chrono::milliseconds(60));
        },
        {fmt::format("rank 0 = 127.0.0.1:{}", free_port), "within 60 ms"}));
}

/// Every rank in a thread; what each was refused with, or "".
std::vector<std::string> meet(const std::vector<std::pair<int, int>>& ranks_and_sizes,
                              int world_size) {
    const RendezvousServer server(0, world_size, std::chrono::seconds(5));
    std::vector<std::string> lines(ranks_and_sizes.size());
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < lines.size(); ++i)
        threads.emplace_back([&, i] {
            try {
                ControlConnection("127.0.0.1", server.port(), ranks_and_sizes[i].first,
                                  ranks_and_sizes[i].second, "", std::chrono::seconds(5));
            } catch (const CommunicatorError& error) {
                lines[i] = error.what();
            }
        });
    for (std::thread& thread : threads) thread.join();
    return lines;
}

TEST(Rendezvous, RefusesRanksThatDisagree) {
    EXPECT_EQ(meet({{0, 2}, {1, 2}}, 2), (std::vector<std::string>{"", ""}));
    for (const std::string& line : meet({{0, 2}, {1, 3}}, 2))
        EXPECT_NE(line.find("rank 1 was started as one of 3 ranks, rank 0 as one of 2"),
                  std::string::npos)
            << line;
    for (const std::string& line : meet({{1, 3}, {1, 3}}, 3))
        EXPECT_NE(line.find("two processes were started as rank 1"), std::string::npos)
            << line;
}

/// Whoever knocks by mistake (a browser, a scanner) disturbs nobody.
TEST(Rendezvous, IgnoresStrangers) {
    const RendezvousServer server(0, 1, std::chrono::seconds(5));
    ControlConnection rank("127.0.0.1", server.port(), 0, 1, "", std::chrono::seconds(5));
    const Socket stranger =
        connect_to("127.0.0.1", server.port(), std::chrono::seconds(5));
    send_frame(stranger, {'P', "GET / HTTP/1.1"});
    send_frame(stranger, {'H', "hello there"});
    rank.set("key", "value");
    EXPECT_EQ(rank.get("key"), "value");
    EXPECT_EQ(rank.wait(std::chrono::milliseconds(150)).kind,
              ControlConnection::News::Kind::none);
}

/// A rank that leaves while another waits for a value is not forgotten.
TEST(Rendezvous, KeepsTheNewsThatComesBeforeAValue) {
    using News = ControlConnection::News;
    const auto deadline = std::chrono::seconds(5);
    const RendezvousServer server(0, 3, deadline);
    std::thread leaving([&] {
        ControlConnection rank("127.0.0.1", server.port(), 1, 3, "", deadline);
        rank.leave();
        rank.wait(deadline);  // its own good-bye
    });
    std::thread answering([&] {
        ControlConnection rank("127.0.0.1", server.port(), 0, 3, "", deadline);
        EXPECT_EQ(rank.wait(deadline).kind, News::Kind::left);
        rank.set("key", "value");
        rank.wait(deadline);  // rank 2's good-bye
    });
    ControlConnection rank("127.0.0.1", server.port(), 2, 3, "", deadline);
    EXPECT_EQ(rank.get("key"), "value");
    const News news = rank.wait(deadline);
    EXPECT_EQ(news.kind, News::Kind::left);
    EXPECT_EQ(news.rank, 1);
    rank.leave();
    leaving.join();
    answering.join();
}

TEST(MpirunFlags, AreThoseOfTheMpiThatIsThere) {
    using Words = std::vector<std::string>;
    const std::string ending =
        "\n\nReport bugs to https://www.open-mpi.org/community/help/\n";
    for (const char* version : {"4.1.4", "4.1.6"}) {
        const std::string text = fmt::format("mpirun (Open MPI) {}{}", version, ending);
        EXPECT_EQ(mpirun_flags(text, false),
                  (Words{"--map-by", ":OVERSUBSCRIBE", "--quiet"}));
        EXPECT_EQ(mpirun_flags(text, true), (Words{"--map-by", ":OVERSUBSCRIBE",
                                                   "--allow-run-as-root", "--quiet"}));
    }
    for (const char* version : {"5.0.7", "10.0.0"}) {
        const std::string text = fmt::format("mpirun (Open MPI) {}{}", version, ending);
        EXPECT_EQ(mpirun_flags(text, false), (Words{"--map-by", ":OVERSUBSCRIBE"}));
        EXPECT_EQ(mpirun_flags(text, true),
                  (Words{"--map-by", ":OVERSUBSCRIBE", "--allow-run-as-root"}));
    }
    for (const char* text :
         {"HYDRA build details:\n    Version:                                 4.2.1\n",
          "Intel(R) MPI Library for Linux* OS, Version 2021.13\n", "mpirun 5\n", ""})
        for (const bool as_root : {false, true})
            EXPECT_EQ(mpirun_flags(text, as_root), Words{}) << text;
}

}  // namespace
}  // namespace moe::test
