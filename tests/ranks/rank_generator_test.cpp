// Which ranks form which group: Megatron's examples, its definition, closed forms.

#include "distributed/rank_generator.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::parallel_sizes;
using distributed::ParallelSizes;
using distributed::RankGenerator;
using Groups = std::vector<std::vector<int>>;

ParallelSizes sizes(int world, int tp, int cp, int ep, int etp, int pp = 1) {
    ParallelSizes result;
    result.world = world;
    result.tensor = tp;
    result.context = cp;
    result.pipeline = pp;
    result.expert = ep;
    result.expert_tensor = etp;
    return result;
}

TEST(RankGenerator, ReproducesMegatronsExamplesOfEightRanks) {
    const ParallelSizes one = sizes(8, 2, 1, 4, 1);
    const RankGenerator dense = RankGenerator::dense(one);
    EXPECT_EQ(dense.get_ranks("tp"), (Groups{{0, 1}, {2, 3}, {4, 5}, {6, 7}}));
    EXPECT_EQ(dense.get_ranks("dp"), (Groups{{0, 2, 4, 6}, {1, 3, 5, 7}}));
    const RankGenerator experts = RankGenerator::experts(one);
    EXPECT_EQ(experts.get_ranks("ep"), (Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
    EXPECT_EQ(experts.get_ranks("dp"), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));

    const RankGenerator two = RankGenerator::experts(sizes(8, 2, 1, 2, 2));
    EXPECT_EQ(two.get_ranks("ep"), (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}}));
    EXPECT_EQ(two.get_ranks("tp-ep"), (Groups{{0, 1, 2, 3}, {4, 5, 6, 7}}));
    EXPECT_EQ(two.get_ranks("dp"), (Groups{{0, 4}, {1, 5}, {2, 6}, {3, 7}}));
}

/// The documentation of Megatron's initialize_model_parallel: sixteen GPUs, TP 2, PP 4.
TEST(RankGenerator, ReproducesMegatronsExampleOfSixteenRanks) {
    const RankGenerator grid = RankGenerator::dense(sizes(16, 2, 1, 1, 2, 4));
    EXPECT_EQ(
        grid.get_ranks("dp"),
        (Groups{{0, 2}, {1, 3}, {4, 6}, {5, 7}, {8, 10}, {9, 11}, {12, 14}, {13, 15}}));
    EXPECT_EQ(grid.get_ranks("pp"),
              (Groups{{0, 4, 8, 12}, {1, 5, 9, 13}, {2, 6, 10, 14}, {3, 7, 11, 15}}));
}

/// The definition, by counting: lay the ranks out with nested loops, slowest axis first;
/// a group is all ranks whose coordinates outside the token agree.
Groups groups_by_counting(const std::vector<std::pair<std::string, int>>& axes,
                          const std::set<std::string>& token) {
    // Coordinates of every rank, by counting up like an odometer.
    std::vector<std::map<std::string, int>> coordinates;
    std::map<std::string, int> now;
    for (const auto& [name, size] : axes) now[name] = 0;
    for (bool more = true; more;) {
        coordinates.push_back(now);
        more = false;
        for (const auto& [name, size] : axes) {
            if (++now[name] < size) {
                more = true;
                break;
            }
            now[name] = 0;
        }
    }
    // Groups in the order of their coordinates outside, members in that of those inside;
    // in both the first axis of `axes` counts least.
    std::map<std::vector<int>, std::map<std::vector<int>, int>> sorted;
    for (std::size_t rank = 0; rank < coordinates.size(); ++rank) {
        std::vector<int> inside, outside;
        for (auto axis = axes.rbegin(); axis != axes.rend(); ++axis)
            (token.count(axis->first) ? inside : outside)
                .push_back(coordinates[rank][axis->first]);
        sorted[outside][inside] = int(rank);
    }
    Groups groups;
    for (const auto& [_, members] : sorted) {
        groups.emplace_back();
        for (const auto& [__, rank] : members) groups.back().push_back(rank);
    }
    return groups;
}

TEST(RankGenerator, IsTheMixedRadixDefinitionForManyShapes) {
    const std::vector<std::vector<std::string>> orders = {{"tp", "cp", "ep", "dp", "pp"},
                                                          {"tp", "ep", "dp", "pp", "cp"},
                                                          {"pp", "dp", "cp", "tp", "ep"}};
    const std::vector<std::set<std::string>> tokens = {{"tp"},
                                                       {"ep"},
                                                       {"dp"},
                                                       {"pp"},
                                                       {"cp"},
                                                       {"tp", "ep"},
                                                       {"tp", "cp"},
                                                       {"dp", "cp"},
                                                       {"tp", "pp"},
                                                       {"tp", "dp", "cp"},
                                                       {"tp", "cp", "ep", "dp", "pp"}};
    int checked = 0;
    for (int tp : {1, 2, 3})
        for (int ep : {1, 2, 4})
            for (int dp : {1, 2, 3})
                for (int pp : {1, 2})
                    for (int cp : {1, 2})
                        for (const auto& order : orders)
                            for (const auto& token : tokens) {
                                const std::map<std::string, int> size = {{"tp", tp},
                                                                         {"ep", ep},
                                                                         {"dp", dp},
                                                                         {"pp", pp},
                                                                         {"cp", cp}};
                                std::vector<std::pair<std::string, int>> axes;
                                for (const auto& axis : order)
                                    axes.emplace_back(axis, size.at(axis));
                                const RankGenerator grid(
                                    tp, ep, dp, pp, cp,
                                    fmt::format("{}", fmt::join(order, "-")));
                                const Groups expected = groups_by_counting(axes, token);
                                const std::string name =
                                    fmt::format("{}", fmt::join(token, "-"));
                                ASSERT_EQ(grid.get_ranks(name), expected)
                                    << tp << ep << dp << pp << cp << " " << name;
                                ASSERT_EQ(grid.group_size(name), int(expected[0].size()));
                                ++checked;
                            }
    EXPECT_EQ(checked, 3 * 3 * 3 * 2 * 2 * 3 * 11);
}

TEST(RankGenerator, HasClosedForms) {
    for (int TP : {1, 2, 4})
        for (int EP : {1, 2, 3})
            for (int ETP : {1, 2, 4}) {
                const int W = 24;
                if (W % TP != 0 || W % (EP * ETP) != 0) continue;
                const ParallelSizes all = sizes(W, TP, 1, EP, ETP);
                const RankGenerator dense = RankGenerator::dense(all);
                const RankGenerator experts = RankGenerator::experts(all);
                EXPECT_EQ(dense.world_size(), W);
                EXPECT_EQ(experts.world_size(), W);
                for (int r = 0; r < W; ++r) {
                    const auto check = [&](const RankGenerator& grid, const char* token,
                                           int color, int key) {
                        EXPECT_EQ(grid.color(r, token), color) << token << " of " << r;
                        EXPECT_EQ(grid.key(r, token), key) << token << " of " << r;
                    };
                    check(dense, "tp", r / TP, r % TP);
                    check(dense, "dp", r % TP, r / TP);
                    check(experts, "tp", r / ETP, r % ETP);
                    check(experts, "ep", r % ETP + ETP * (r / (ETP * EP)), r / ETP % EP);
                    check(experts, "tp-ep", r / (ETP * EP), r % (ETP * EP));
                    check(experts, "dp", r % (ETP * EP), r / (ETP * EP));
                    // rank of tp_ep = etp + ETP * ep
                    EXPECT_EQ(experts.key(r, "tp-ep"),
                              experts.key(r, "tp") + ETP * experts.key(r, "ep"));
                }
            }
}

TEST(RankGenerator, RejectsGridsThatCannotBe) {
    EXPECT_TRUE(Rejects([] { RankGenerator(0, 1, 1, 1, 1); }, {"tp = 0", "positive"}));
    EXPECT_TRUE(Rejects([] { RankGenerator(1, 1, -2, 1, 1); }, {"dp = -2", "positive"}));
    for (const char* order :
         {"tp-cp-ep-dp", "tp-cp-ep-dp-pp-tp", "tp-tp-ep-dp-pp", "tp-cp-ep-dp-xx", ""})
        EXPECT_TRUE(Rejects([&] { RankGenerator(1, 1, 1, 1, 1, order); },
                            {fmt::format("order = {}", order), "once each"}))
            << order;
}

MoEConfig config_of(std::int64_t tp, std::int64_t cp, std::int64_t ep, std::int64_t etp) {
    MoEConfig config = small_config(16, 12, 2, 16);
    config.moe_token_dispatcher_type = "alltoall";
    config.tensor_model_parallel_size = tp;
    config.context_parallel_size = cp;
    config.expert_model_parallel_size = ep;
    config.expert_tensor_parallel_size = etp;
    config.sequence_parallel = tp > 1;
    config.finalize();
    return config;
}

TEST(ParallelSizes, DivideTheWorld) {
    const ParallelSizes all = parallel_sizes(config_of(2, 2, 3, 2), 24);
    EXPECT_EQ(all.world, 24);
    EXPECT_EQ(all.tensor, 2);
    EXPECT_EQ(all.context, 2);
    EXPECT_EQ(all.expert, 3);
    EXPECT_EQ(all.expert_tensor, 2);
    EXPECT_EQ(all.data(), 6);
    EXPECT_EQ(all.expert_data(), 4);
}

TEST(ParallelSizes, RejectWhatDoesNotDivideTheWorld) {
    const auto sizes_of = [](std::int64_t tp, std::int64_t cp, std::int64_t ep,
                             std::int64_t etp, int world) {
        return [=] { parallel_sizes(config_of(tp, cp, ep, etp), world); };
    };
    EXPECT_TRUE(Rejects(sizes_of(2, 1, 1, 1, 3),
                        {"tensor_model_parallel_size = 2", "divide the 3 ranks"}));
    EXPECT_TRUE(Rejects(sizes_of(2, 2, 1, 1, 6),
                        {"tensor_model_parallel_size * context_parallel_size = 4",
                         "divide the 6 ranks"}));
    EXPECT_TRUE(Rejects(sizes_of(1, 1, 1, 2, 3),
                        {"expert_tensor_parallel_size = 2", "divide the 3 ranks"}));
    EXPECT_TRUE(Rejects(sizes_of(1, 1, 3, 2, 8),
                        {"expert_tensor_parallel_size * expert_model_parallel_size = 6",
                         "divide the 8 ranks"}));
    EXPECT_TRUE(Rejects(sizes_of(1, 1, 4, 1, 1), {"= 4", "divide the 1 ranks"}));
}

}  // namespace
}  // namespace moe::test
