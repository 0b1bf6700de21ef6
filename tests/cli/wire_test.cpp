// `moe wire`: its rows and bytes against runs over ranks that are counted, its tables
// against numbers from elsewhere, and docs/wire.md against both.

#include <cmath>

#include "cli/places.h"
#include "cli/ranks/routes.h"
#include "cli/ranks/run.h"
#include "cli/terminal.h"
#include "cli/wire/view.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using distributed::ParallelSizes;

const char* const kDispatchers[] = {"allgather", "alltoall", "flex"};

MoEConfig wire_config(std::int64_t E, std::int64_t K, std::int64_t EP,
                      const std::string& dispatcher) {
    MoEConfig config = small_config(24, E, K, 8);
    config.expert_model_parallel_size = EP;
    config.moe_token_dispatcher_type = dispatcher;
    config.finalize();
    return config;
}

// Rows per token of balanced routing, from a table that others computed.
TEST(WireModel, HasTheRowsOfTheTable) {
    struct Case {
        std::int64_t E, K, ranks;
        double allgather, alltoall, flex;
    };
    for (const Case& c : {Case{8, 2, 2, 1, 1.00, 0.79},
                          {8, 2, 4, 3, 1.50, 1.39},
                          {8, 2, 8, 7, 1.75, 1.75},
                          {64, 8, 2, 1, 4.0, 1.00},
                          {64, 8, 4, 3, 6.0, 2.74},
                          {64, 8, 8, 7, 7.0, 4.75},
                          {256, 8, 8, 7, 7.0, 4.63},
                          {256, 8, 16, 15, 7.5, 6.12},
                          {256, 8, 64, 63, 7.88, 7.56}}) {
        const auto rows = [&](const char* dispatcher) {
            return wire::estimate(wire_config(c.E, c.K, c.ranks, dispatcher), 1, {}).rows;
        };
        EXPECT_EQ(rows("allgather"), c.allgather);
        EXPECT_NEAR(rows("alltoall"), c.alltoall, 0.006);
        EXPECT_NEAR(rows("flex"), c.flex, 0.006) << c.E << " " << c.K << " " << c.ranks;
    }
}

// T = 32768 over 8 ranks, one direction at 340 GB/s: what others computed for Flex's rows
// alone; a row brings some bytes along.
TEST(WireModel, HasTheTimesOfTheTable) {
    struct Case {
        const char* preset;
        double ms;
    };
    for (const Case& c : {Case{"mixtral_8x7b", 1.38},
                          {"qwen3_30b_a3b", 1.84},
                          {"olmoe", 1.88},
                          {"gpt_oss_20b", 1.67}}) {
        const wire::Outlook outlook =
            wire::look_ahead(c.preset, preset(c.preset, 1), {"flex"}, 32768, {});
        const auto eight =
            std::ranges::find(outlook.estimates, 8, &wire::Estimate::ranks);
        ASSERT_NE(eight, outlook.estimates.end());
        EXPECT_NEAR(1e3 * eight->steps[1].seconds, c.ms, 0.02 * c.ms) << c.preset;
        EXPECT_NEAR(1e3 * eight->steps[0].seconds, c.ms, 0.04 * c.ms) << c.preset;
    }
}

TEST(WireModel, TakesAlphaForEveryRoundAndBothLinksAtOnce) {
    wire::Machine machine;
    machine.gpus_per_node = 4;
    machine.nvlink = {1e-6, 100e9};
    machine.network = {10e-6, 10e9};
    // Two nodes of four; K = 4 of E = 16, H = 24: half a row of a token for each peer
    const wire::Estimate estimate =
        wire::estimate(wire_config(16, 4, 8, "alltoall"), 1000, machine);
    EXPECT_DOUBLE_EQ(estimate.rows, 3.5);
    EXPECT_DOUBLE_EQ(estimate.network_rows, 2.0);
    // ⑥: a row of 48 bytes, 4 of its probability; 64 of counts on each link
    const wire::Sent& dispatch = estimate.steps[0];
    EXPECT_DOUBLE_EQ(dispatch.nvlink_bytes, 3 * (500 * 52 + 64));
    EXPECT_DOUBLE_EQ(dispatch.network_bytes, 4 * (500 * 52 + 64));
    EXPECT_DOUBLE_EQ(dispatch.seconds, 3 * 10e-6 + 4 * (500 * 52 + 64) / 10e9);
    machine.nvlink.alpha = 1.0;
    EXPECT_DOUBLE_EQ(
        wire::estimate(wire_config(16, 4, 8, "alltoall"), 1000, machine).steps[1].seconds,
        1.0 + 3 * 500 * 48 / 100e9);
    // One node: nothing crosses the network, and its α is not paid
    machine.gpus_per_node = 8;
    const wire::Estimate near =
        wire::estimate(wire_config(16, 4, 8, "alltoall"), 1000, machine);
    EXPECT_EQ(near.network_bytes(), 0.0);
    EXPECT_DOUBLE_EQ(near.steps[1].seconds, 1.0 + 7 * 500 * 48 / 100e9);
}

/// Four times the standard deviation of the mean over `tokens` of a token's rows to other
/// ranks: whether a rank gets one is a matter of chance p, the ranks of a token are no
/// more than independent, and so is where AlltoAll's K rows go.
double sampling_bound(const MoEConfig& config, std::int64_t tokens) {
    const double EP = double(config.expert_model_parallel_size);
    const bool flex = config.moe_token_dispatcher_type == "flex";
    const double p = flex ? balanced_hit(config) / EP : 1.0 / EP;
    const double variance = (flex ? EP : double(config.moe_router_topk)) * p * (1.0 - p);
    return 4.0 * std::sqrt(variance / double(tokens));
}

/// A layer whose logits are its first E hidden values, drawn one by one: even routing.
RankJob evenly_routed(const MoEConfig& config, const ModuleSpec& spec,
                      std::int64_t tokens) {
    RankJob job;
    job.config = config;
    job.spec = spec;
    job.parameters = random_parameters(distributed::single_rank_config(config), 5);
    const std::int64_t E = config.num_experts(), H = config.hidden_size;
    const Tensor gate = Tensor::zeros({E, H}, DType::f32);
    for (std::int64_t e = 0; e < E; ++e) gate.view().data<float>()[e * H + e] = 1.0f;
    job.parameters["router.weight"] = gate;
    job.hidden = random_tensor({tokens, H}, 6);
    job.doutput = random_tensor({tokens, H}, 7);
    return job;
}

/// Counted bytes of all four exchanges against the model's formula, link by link.
void expect_bytes_as_modelled(std::int64_t E, std::int64_t K, int ranks,
                              const char* dispatcher, const ModuleSpec& spec) {
    SCOPED_TRACE(fmt::format("{} experts, {} ranks, {}, {}", E, ranks, dispatcher,
                             to_string(spec)));
    const MoEConfig config = wire_config(E, K, ranks, dispatcher);
    const ParallelSizes sizes = distributed::parallel_sizes(config, ranks);
    const std::int64_t per_rank = 37, tokens = per_rank * ranks;
    const RankTokens split = split_tokens(sizes, per_rank, ranks);
    RankJob job = evenly_routed(config, spec, tokens);
    const auto records = run_on_ranks(job, split);
    job.spec = ModuleSpec::uniform({"reference_cpu", DType::f64});
    const Tensor map = run_whole(job, split).routing_map;
    const Links rows = dispatched_rows(config, sizes, split, map);
    for (const Step step : kExchangeSteps) {
        const Links expected = exchanged_bytes(
            config, sizes, rows, step, sending_of(spec.dispatcher, records[0].dense));
        for (int from = 0; from < ranks; ++from)
            for (int to = 0; to < ranks; ++to) {
                const auto& sent = records[from].sent.at(step);
                const auto found = sent.find(to);
                EXPECT_EQ(found == sent.end() ? 0 : found->second, expected[from][to])
                    << title(step) << " " << from << " to " << to;
            }
    }
    EXPECT_NEAR(double(total(rows)) / double(tokens), balanced_rows_per_token(config),
                sampling_bound(config, tokens));
    EXPECT_NEAR(counted_hit(config, map), balanced_hit(config),
                sampling_bound(wire_config(E, K, ranks, "flex"), tokens));
}

TEST(WireModel, CountsTheBytesOfRealRuns) {
    const ModuleSpec reference = ModuleSpec::uniform({"reference_cpu", DType::f32});
    for (const char* dispatcher : kDispatchers) {
        expect_bytes_as_modelled(15, 4, 5, dispatcher, reference);
        for (const int ranks : {2, 8})
            expect_bytes_as_modelled(16, 3, ranks, dispatcher, reference);
    }
}

TEST(WireModel, CountsTheBytesOfTheGpuTiers) {
    NEEDS_DEVICE();
    available_tiers();
    for (const char* dispatcher : kDispatchers)
        for (const char* tier : {"naive_gpu", "optimized_gpu"})
            expect_bytes_as_modelled(12, 3, 4, dispatcher,
                                     ModuleSpec::uniform({tier, DType::bf16}));
}

/// Operations on a rank's groups, step by step.
class OperationCounter : public Observer {
  public:
    explicit OperationCounter(distributed::OpLedger& ledger) : ledger_(ledger) { next(); }
    void on_time(const Steps& steps, double) override { counts[steps.first] += next(); }
    std::map<Step, std::int64_t> counts;

  private:
    /// How many there were since the last call.
    std::int64_t next() {
        const std::int64_t sequence = ledger_.begin("counting", "", 0).sequence;
        ledger_.end();
        return sequence - std::exchange(last_, sequence) - 1;
    }
    distributed::OpLedger& ledger_;
    std::int64_t last_ = 0;
};

TEST(WireModel, HasTheRoundsOfRealRuns) {
    NEEDS_DEVICE();
    available_tiers();
    for (const std::string dispatcher : kDispatchers) {
        MoEConfig config = wire_config(6, 2, 2, dispatcher);
        const bool flex = dispatcher == "flex";
        if (flex) config.moe_flex_max_tokens_per_rank = 5;
        const ComponentSpec tier = flex ? ComponentSpec{"optimized_gpu", DType::bf16}
                                        : ComponentSpec{"reference_cpu", DType::f32};
        const RankJob job = evenly_routed(config, ModuleSpec::uniform(tier), 10);
        distributed::run_ranks(2, [&](distributed::Communicator& world) {
            const auto groups = distributed::make_process_groups(world, config);
            MoELayer layer(config, job.spec,
                           distributed::shard_parameters(config, job.parameters, *groups),
                           groups);
            const Tensor mine =
                take_rows(job.hidden, {0, 1, 2, 3, 4}).reshaped({5, 1, 24});
            layer.forward(mine, {}, {});  // makes room in the heaps
            OperationCounter observer(world.ledger());
            const RunContext context{.observer = &observer};
            const auto forward = layer.forward(mine, {}, context);
            layer.backward(mine, forward.saved, context);
            for (const Step step : kExchangeSteps) {
                // Pushes and pulls are no operation of a group
                const int one_sided = !flex ? 0 : step == Step::dispatch_backward ? 2 : 1;
                EXPECT_EQ(observer.counts[step],
                          wire::rounds_of(dispatcher, step) - one_sided)
                    << dispatcher << " " << title(step);
            }
        });
    }
}

// Maps of many tokens, of widths as the presets have them.
TEST(WireModel, ExpectsWhatManyTokensDo) {
    struct Case {
        std::int64_t E, K;
        int ranks;
    };
    for (const Case& c : {Case{128, 8, 8}, {60, 4, 6}, {256, 8, 64}}) {
        const std::int64_t per_rank = c.ranks == 64 ? 60 : 500,
                           tokens = c.ranks * per_rank;
        const Tensor map = Tensor::zeros({tokens, c.E}, DType::u8);
        const Rng rng(c.E);
        std::uint64_t draw = 0;
        for (std::int64_t t = 0; t < tokens; ++t)
            for (std::int64_t k = 0; k < c.K;) {
                std::uint8_t& chosen =
                    map.view()
                        .data<std::uint8_t>()[t * c.E +
                                              rng.below(draw++, std::uint32_t(c.E))];
                k += chosen == 0;
                chosen = 1;
            }
        for (const char* dispatcher : kDispatchers) {
            const MoEConfig config = wire_config(c.E, c.K, c.ranks, dispatcher);
            const ParallelSizes sizes = distributed::parallel_sizes(config, c.ranks);
            const Links rows = dispatched_rows(
                config, sizes, split_tokens(sizes, per_rank, c.ranks), map);
            EXPECT_NEAR(double(total(rows)) / double(tokens),
                        wire::estimate(config, per_rank, {}).rows,
                        sampling_bound(config, tokens))
                << dispatcher << " " << c.ranks;
        }
    }
}

// DeepSeek-V3: 4 of 8 groups. Over 8 ranks, a group for each, it visits at most 4.
TEST(WireModel, VisitsNoMoreGroupsThanAreChosen) {
    MoEConfig config = preset("deepseek_v3", 64);
    config.moe_token_dispatcher_type = "flex";
    config.expert_model_parallel_size = 8;
    config.finalize();
    EXPECT_GT(balanced_hit(config), 3.6);  // 8 experts spread over 4 groups at random
    EXPECT_LE(balanced_hit(config), 4.0);
    const double by_two = balanced_hit(config);
    config.moe_router_group_score_topk = 2;  // as K = 8 of 4 groups says it
    EXPECT_EQ(balanced_hit(config), by_two);
    config.moe_router_group_score_topk = 1;
    EXPECT_GT(balanced_hit(config), by_two);  // who opened a group is mostly chosen
    config.moe_router_group_score_topk.reset();
    config.moe_router_num_groups.reset();
    config.moe_router_group_topk.reset();
    EXPECT_NEAR(balanced_hit(config), 5.29, 0.005);
}

class WireTest : public CliTest {};

TEST_F(WireTest, ShowsALayer) {
    const std::string json = path("wire.json");
    const Output output = moe("wire --preset olmoe --seq-length 1000 --json " + json);
    EXPECT_EQ(output.code, kExitOk) << output.err;
    for (const char* words :
         {"no measurement", "olmoe: H=2048 E=64 K=8 F=1024", "2,000 a rank",
          "\n 8  flex           4.75        -", "\n64  alltoall       7.88     7.00"})
        EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
    for (std::istringstream lines(output.out); !lines.eof();) {
        std::string line;
        std::getline(lines, line);
        EXPECT_FALSE(line.starts_with(" ") && columns_of(line) > 80) << line;
    }
    EXPECT_NE(read(json).find("\"model_not_measured\": true"), std::string::npos);
    const Output one = moe("wire --moe-token-dispatcher-type alltoall --num-experts 12");
    EXPECT_FALSE(has(one, "flex"));
    EXPECT_TRUE(has(one, "\n 4  alltoall"));
    EXPECT_FALSE(has(one, "\n 8  "));  // does not divide 12
    const Output one_expert_each =
        moe("wire --num-experts 4 --gpus-per-node 3 --moe-router-topk 2");
    EXPECT_TRUE(has(one_expert_each, "\n 2  "));
    EXPECT_FALSE(has(one_expert_each, "\n 4  "));  // fills no node
}

TEST_F(WireTest, NamesWhatItCannotModel) {
    EXPECT_TRUE(IsBadInput("wire --gpus-per-node 0", {"--gpus-per-node = 0", "from 1"}));
    EXPECT_TRUE(IsBadInput("wire --nvlink 0", {"--nvlink = 0", "more than 0"}));
    EXPECT_TRUE(IsBadInput("wire --network nan", {"--network = nan"}));
    EXPECT_TRUE(IsBadInput("wire --network-us -1", {"--network-us = -1", "from 0"}));
    EXPECT_TRUE(IsBadInput("wire --seq-length 0", {"--seq-length", "from 1"}));
    EXPECT_TRUE(IsBadInput("wire --num-experts 9", {"num_moe_experts = 9", "even"}));
    EXPECT_TRUE(IsBadInput("wire --moe-expert-capacity-factor 1",
                           {"moe_expert_capacity_factor = 1", "none"}));
    EXPECT_TRUE(IsBadInput("wire --expert-model-parallel-size 4",
                           {"expert_model_parallel_size = 4", "left out"}));
    EXPECT_TRUE(IsBadInput("wire --json " + write("file", "") + "/x", {"--json"}));
    EXPECT_TRUE(IsBadInput("wire --page " + write("page.md", "no markers\n"),
                           {"page.md", "must stand in the page"}));
}

// As `moe wire --page docs/wire.md --pictures docs/wire` writes them.
TEST(WirePage, ThePageAndItsPicturesAreUpToDate) {
    const auto text_of = [](const std::string& path) {
        std::ifstream file(path, std::ios::binary);
        return std::string{std::istreambuf_iterator<char>(file), {}};
    };
    const std::string docs = project_root() + "/docs/";
    const std::string page = text_of(docs + "wire.md");
    if (page.empty()) GTEST_SKIP() << "needs the source tree";
    const wire::Machine machine;
    const std::vector<wire::Outlook> presets = wire::presets(4096 * 2, machine);
    EXPECT_EQ(with_regions("docs/wire.md", page, page_regions(presets, machine), "wire"),
              page);
    for (const wire::Outlook& each : presets) {
        EXPECT_TRUE(text_of(docs + "wire/" + each.model + ".svg") ==
                    picture(each, machine))
            << each.model << ": run moe wire --page docs/wire.md --pictures docs/wire";
        EXPECT_NE(page.find("(wire/" + each.model + ".svg)"), std::string::npos);
    }
}

}  // namespace
}  // namespace moe::test
