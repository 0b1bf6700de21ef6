// Ranks that have nothing, or everything: no tokens, one expert for all, all experts for
// each, experts over their capacity.

#include "cli/compare/closeness.h"
#include "cli/golden/golden.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/exchange_plan.h"
#include "distributed/flex_plan.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kHidden = 11, kExperts = 4, kBatch = 2;

// Every kind of exchange at once, with and without sequence parallelism, and replicas
const std::vector<Grid> kGrids = {{1, 1, 2, 2, 4}, {2, 1, 2, 2, 8}, {1, 1, 4, 1, 4}};

using DispatcherAndSupplier = std::tuple<std::string, ComponentSpec>;

class UnevenRanks : public testing::TestWithParam<DispatcherAndSupplier> {
  protected:
    static MoEConfig base_config() {
        MoEConfig config = small_config(kHidden, kExperts, 2, 6);
        config.moe_router_dtype = "fp64";
        config.moe_permute_fusion = true;
        return config;
    }
    const std::string& dispatcher() const { return std::get<0>(GetParam()); }
    const ComponentSpec& supplier() const { return std::get<1>(GetParam()); }
    MoEConfig config_of(const MoEConfig& config, const Grid& grid) const {
        return on_grid(config, grid, dispatcher());
    }
    static TensorMap parameters_of(const MoEConfig& config) {
        return random_parameters(distributed::single_rank_config(config), 17);
    }
    /// (S, B, H) of every rank.
    static std::vector<Tensor> tokens(const std::vector<std::int64_t>& seq_lengths,
                                      std::uint64_t seed) {
        std::vector<Tensor> result;
        for (std::int64_t length : seq_lengths)
            result.push_back(random_tensor({length, kBatch, kHidden}, ++seed));
        return result;
    }
    static std::vector<Tensor> tokens(const Grid& grid, std::int64_t seq_length,
                                      std::uint64_t seed) {
        return tokens(std::vector<std::int64_t>(grid.world, seq_length), seed);
    }
    /// Runs the ranks, and holds them against the whole; for tests that want more of it.
    /// @param doubts  false: the router's gradient is 1e-7, and in bf16 noise
    std::vector<RankRun> run(const MoEConfig& config, const TensorMap& parameters,
                             const std::vector<Tensor>& hidden,
                             const std::vector<Tensor>& doutput,
                             bool doubts = true) const {
        auto runs = run_on_ranks(config, supplier(), parameters, hidden, doutput);
        RankRun whole = run_each_alone(config, parameters, hidden, doutput);
        if (!doubts && supplier().dtype == DType::bf16) {
            whole.gradients.parameters.erase("router.weight");
            for (RankRun& rank : runs) rank.gradients.parameters.erase("router.weight");
        }
        expect_whole(config, runs, whole, bound());
        return runs;
    }
    /// Of gradients as well, which bf16 takes further away.
    double bound() const {
        return supplier().dtype == DType::bf16 ? 1e-2 : bound_of(supplier());
    }
};

TEST_P(UnevenRanks, HaveNoTokenAnywhere) {
    for (const Grid& grid : kGrids) {
        const MoEConfig config = config_of(base_config(), grid);
        const auto nothing = tokens(grid, 0, 1);
        for (const RankRun& rank : run(config, parameters_of(config), nothing, nothing)) {
            EXPECT_EQ(rank.output.shape(), (Shape{0, kBatch, kHidden}));
            EXPECT_EQ(rank.gradients.parameters.size(), 3u);
            EXPECT_EQ(rank.values.at("dispatched_hidden_states").shape(),
                      (Shape{0, kHidden}));
        }
    }
}

// Each rank as many tokens as it likes, one has none; its experts work for the others.
TEST_P(UnevenRanks, HaveOneWithoutTokens) {
    const Grid grid = {1, 1, 2, 2, 4};
    const MoEConfig config = config_of(base_config(), grid);
    const TensorMap parameters = parameters_of(config);
    const auto hidden = tokens({5, 0, 1, 9}, 100), doutput = tokens({5, 0, 1, 9}, 200);
    if (dispatcher() == "allgather") {  // gathers what is equal in size
        EXPECT_TRUE(Rejects(
            [&] { run_on_ranks(config, supplier(), parameters, hidden, doutput); },
            {"all_gather", "tp_ep", "differ in rows"}));
        return;
    }
    const auto runs = run(config, parameters, hidden, doutput);
    EXPECT_EQ(runs[1].values.at("sent_hidden_states").dim(0), 0);
    EXPECT_GT(runs[1].values.at("dispatched_hidden_states").dim(0), 0);
}

TEST_P(UnevenRanks, SendAllToOneExpert) {
    MoEConfig any = base_config();
    any.moe_router_topk = 1;
    any.moe_router_pre_softmax = true;
    for (const Grid& grid : kGrids)
        for (std::int64_t chosen : {0, 3}) {
            const MoEConfig config = config_of(any, grid);
            TensorMap parameters = parameters_of(config);
            parameters["router.weight"].data<float>()[chosen * kHidden] = 16.0f;
            auto hidden = tokens(grid, 3, 300);
            for (Tensor& mine : hidden)
                for (std::int64_t t = 0; t < 3 * kBatch; ++t)
                    mine.data<float>()[t * kHidden] = 1.0f;
            const auto runs =
                run(config, parameters, hidden, tokens(grid, 3, 400), false);
            const std::int64_t L = config.num_local_experts();
            for (const RankRun& rank : runs) {
                const auto fc1 =
                    to_doubles(rank.gradients.parameters.at("experts.linear_fc1.weight"));
                const auto counts = to_doubles(rank.values.at("tokens_per_expert"));
                const std::int64_t size = std::int64_t(fc1.size()) / L;
                for (std::int64_t l = 0; l < L; ++l) {
                    const bool mine = rank.groups->ep->rank() * L + l == chosen;
                    EXPECT_EQ(counts[l], mine ? 3.0 * kBatch * grid.ep * grid.etp : 0.0);
                    const bool has_gradient =
                        std::any_of(&fc1[l * size], &fc1[l * size] + size,
                                    [](double value) { return value != 0.0; });
                    EXPECT_EQ(has_gradient, mine);
                }
            }
        }
}

TEST_P(UnevenRanks, SendEachTokenToAllExperts) {
    MoEConfig any = base_config();
    any.moe_router_topk = kExperts;
    for (const Grid& grid : kGrids) {
        const MoEConfig config = config_of(any, grid);
        const auto runs = run(config, parameters_of(config), tokens(grid, 3, 500),
                              tokens(grid, 3, 600));
        for (const RankRun& rank : runs)
            for (double count : to_doubles(rank.values.at("tokens_per_expert")))
                EXPECT_EQ(count, 3.0 * kBatch * grid.ep * grid.etp);
    }
}

TEST_P(UnevenRanks, TurnAwayTheirOwnTokens) {
    MoEConfig any = base_config();
    any.moe_expert_capacity_factor = 0.6;
    bool all_dropped_somewhere = false;
    for (const Grid& grid : kGrids)
        for (const char* policy : {"probs", "position"}) {
            any.moe_token_drop_policy = policy;
            const MoEConfig config = config_of(any, grid);
            const auto runs = run(config, parameters_of(config), tokens(grid, 5, 700),
                                  tokens(grid, 5, 800));
            const double capacity = double(get_capacity(config, 5 * kBatch));
            for (const RankRun& rank : runs) {
                for (double count : to_doubles(rank.values.at("tokens_per_expert")))
                    EXPECT_LE(count, capacity * grid.ep * grid.etp);
                const auto map = to_doubles(rank.values.at("routing_map"));
                const auto output = to_doubles(rank.output);
                for (std::int64_t t = 0; t < 5 * kBatch; ++t) {
                    if (std::count(&map[t * kExperts], &map[t * kExperts] + kExperts,
                                   0.0) < kExperts)
                        continue;
                    all_dropped_somewhere = true;
                    EXPECT_EQ(std::count(&output[t * kHidden],
                                         &output[t * kHidden] + kHidden, 0.0),
                              kHidden);
                }
            }
        }
    EXPECT_TRUE(all_dropped_somewhere) << "the case is not in the data";
}

TEST_P(UnevenRanks, PadToCapacityWithoutChangingAnything) {
    MoEConfig any = base_config();
    any.moe_expert_capacity_factor = 0.6;
    for (const Grid& grid : kGrids) {
        const MoEConfig drop = config_of(any, grid);
        MoEConfig padded = any;
        padded.moe_pad_expert_input_to_capacity = true;
        if (dispatcher() == "flex") {
            EXPECT_TRUE(Rejects([&] { config_of(padded, grid); }, {"flex"}));
            continue;
        }
        const MoEConfig pad = config_of(padded, grid);
        const TensorMap parameters = parameters_of(drop);
        const auto hidden = tokens(grid, 5, 900), doutput = tokens(grid, 5, 950);
        const auto runs = run_on_ranks(pad, supplier(), parameters, hidden, doutput);
        // Held against ranks that drop only
        expect_whole(pad, runs, run_each_alone(drop, parameters, hidden, doutput),
                     bound());
        const double capacity = double(get_capacity(pad, 5 * kBatch));
        for (const RankRun& rank : runs)
            for (double count : to_doubles(rank.values.at("tokens_per_expert")))
                EXPECT_EQ(count, capacity * grid.ep * grid.etp);
    }
}

// AlltoAll pads what each rank sends to an expert, flex what a rank has received for it.
TEST_P(UnevenRanks, PadForQuantizationWithoutChangingAnything) {
    MoEConfig padding = base_config();
    padding.moe_router_padding_for_quantization = true;
    if (dispatcher() == "allgather") {
        EXPECT_TRUE(
            Rejects([&] { config_of(padding, kGrids[0]); }, {"alltoall or flex"}));
        return;
    }
    for (const Grid& grid : kGrids)
        for (const std::int64_t seq_length : {20, 1}) {
            const MoEConfig pad = config_of(padding, grid);
            const MoEConfig plain = config_of(base_config(), grid);
            const TensorMap parameters = parameters_of(plain);
            const auto hidden = tokens(grid, seq_length, 300);
            const auto doutput = tokens(grid, seq_length, 350);
            const auto runs = run_on_ranks(pad, supplier(), parameters, hidden, doutput);
            expect_whole(pad, runs, run_each_alone(plain, parameters, hidden, doutput),
                         bound());
            // All that a single local expert's rank received is its own already
            const bool can_pad =
                dispatcher() == "alltoall" || pad.num_local_experts() > 1;
            const std::int64_t sources = grid.ep * grid.etp;
            for (const RankRun& rank : runs)
                for (double count : to_doubles(rank.values.at("tokens_per_expert"))) {
                    const auto rows = std::int64_t(count);
                    if (seq_length == 20) {
                        if (can_pad) {
                            EXPECT_EQ(rows % 16, 0);
                        }
                        EXPECT_GT(rows, 0);
                    } else if (dispatcher() == "flex") {
                        EXPECT_LE(rows, kBatch * sources) << "too few tokens: no padding";
                    } else {
                        EXPECT_EQ(rows % kBatch, 0) << "all tokens of a rank, or none";
                    }
                }
        }
}

TEST(FlexPadding, NeedsATokenForEachRowOfEveryExpert) {
    using distributed::enough_tokens_to_pad;
    EXPECT_TRUE(enough_tokens_to_pad({16, 1, 0}, 16, 16));
    EXPECT_FALSE(enough_tokens_to_pad({16, 1, 0}, 15, 16));
    EXPECT_FALSE(enough_tokens_to_pad({1, 17}, 31, 16));
    EXPECT_TRUE(enough_tokens_to_pad({1, 17}, 32, 16));
    EXPECT_TRUE(enough_tokens_to_pad({0, 0}, 0, 32));
}

// Where rows are T K, only the exchange has to know who gets how many.
TEST(AlltoAllWaits, AreAsEarlyAsRowsAreNotKnown) {
    const Grid grid = {1, 1, 2, 1, 2};
    MoEConfig config = on_grid(small_config(), grid, "alltoall");
    distributed::run_ranks(2, [&](distributed::Communicator& world) {
        const auto groups = distributed::make_process_groups(world, config);
        const auto point = [&](bool padding, std::optional<double> capacity, bool pad) {
            MoEConfig changed = config;
            changed.moe_router_padding_for_quantization = padding;
            changed.moe_expert_capacity_factor = capacity;
            changed.moe_pad_expert_input_to_capacity = pad;
            return distributed::cuda_sync_point(changed, *groups);
        };
        EXPECT_EQ(point(false, {}, false), "before_ep_alltoall");
        EXPECT_EQ(point(true, {}, false), "before_permutation_1");
        EXPECT_EQ(point(false, 1.0, false), "before_permutation_1");
        EXPECT_EQ(point(false, 1.0, true), "no_sync");
    });
}

std::string case_name(const testing::TestParamInfo<DispatcherAndSupplier>& info) {
    const auto& [dispatcher, supplier] = info.param;
    return dispatcher + "_" + supplier.tier + "_" + to_string(supplier.dtype);
}

std::vector<DispatcherAndSupplier> uneven_cases() {
    std::vector<DispatcherAndSupplier> cases;
    for (const char* dispatcher : kDispatcherTypes)
        for (const ComponentSpec& supplier : grid_suppliers(dispatcher))
            cases.emplace_back(dispatcher, supplier);
    return cases;
}

INSTANTIATE_TEST_SUITE_P(Dispatchers, UnevenRanks, testing::ValuesIn(uneven_cases()),
                         case_name);

}  // namespace
}  // namespace moe::test
