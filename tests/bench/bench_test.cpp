// What `moe bench` stands on: floors, workloads, samples, and parts held against the
// reference.

#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <set>

#include "bench/parts.h"
#include "bench/roofline.h"
#include "bench/run.h"
#include "bench/timing.h"
#include "bench/workload.h"
#include "core/transfer.h"
#include "gpu/tensor.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using namespace moe::bench;

// --------------------------------------------------------------------------- roofline

MoEConfig finalized(const std::string& name) {
    MoEConfig config = preset(name, 1);
    config.finalize();
    return config;
}

/// Gigabytes of the experts' kernels within the layer, without the router's, and of
/// these only activations and weights.
double layer_gigabytes(const MoEConfig& config, std::int64_t tokens,
                       const std::string& pass) {
    const StepSizes sizes{tokens, tokens * config.moe_router_topk};
    double bytes = 0.0;
    for (const KernelCost& kernel : kernels_of("layer", pass, config, sizes, DType::bf16))
        if (!kernel.name.starts_with("gate") && !kernel.name.starts_with("top-k"))
            bytes += kernel.bytes;
    // Forward: the map and probs, two row maps, the counts. Backward: p, dp twice,
    // dprobs, four row maps, the counts.
    const double T = double(tokens), N = double(sizes.num_rows);
    const double E = double(config.num_experts());
    const double left_out = pass == "forward"
                                ? 5 * T * E + 2 * 8 * (N + E) + 8 * E
                                : 3 * 4 * N + 4 * T * E + 4 * 8 * (N + E) + 8 * E;
    return 1e-9 * (bytes - left_out);
}

// The table of whole layers that the project's targets were made from, in gigabytes
TEST(Roofline, MovesWhatThePublishedScheduleMoves) {
    const auto check = [](const char* name, std::int64_t tokens, double forward,
                          double backward) {
        EXPECT_NEAR(layer_gigabytes(finalized(name), tokens, "forward"), forward, 0.006);
        EXPECT_NEAR(layer_gigabytes(finalized(name), tokens, "backward"), backward,
                    0.006);
    };
    check("mixtral_8x7b", 8192, 5.10, 10.87);
    check("qwen3_30b_a3b", 4096, 1.71, 3.25);
    check("qwen3_30b_a3b", 32768, 5.23, 9.13);
    check("olmoe", 16384, 3.09, 5.64);
    check("gpt_oss_20b", 4096, 2.21, 4.41);
}

TEST(Roofline, CountsTheArithmeticOfTheLayer) {
    const MoEConfig config = finalized("qwen3_30b_a3b");
    const StepSizes sizes{4096, 4096 * 8};
    const auto flops = [&](const char* subject, const char* pass) {
        return total_flops(kernels_of(subject, pass, config, sizes, DType::bf16));
    };
    EXPECT_EQ(flops("experts", "forward"), 6.0 * 4096 * 8 * 2048 * 768);
    EXPECT_EQ(flops("experts", "backward"), 12.0 * 4096 * 8 * 2048 * 768);
    EXPECT_EQ(flops("dispatcher", "both"), 0.0);
    EXPECT_EQ(flops("router", "forward"), 2.0 * 4096 * 128 * 2048);
    EXPECT_EQ(flops("layer", "both"),
              flops("layer", "forward") + flops("layer", "backward"));
}

// Rows of ℓ for the experts, and two products of T x ℓ x H around them
TEST(Roofline, CountsTheLatentProjections) {
    MoEConfig config = finalized("qwen3_30b_a3b");
    const StepSizes sizes{4096, 4096 * 8};
    const auto flops = [&](const char* subject, const char* pass) {
        return total_flops(kernels_of(subject, pass, config, sizes, DType::bf16));
    };
    const double router = flops("router", "forward");
    config.moe_latent_size = 512;
    EXPECT_EQ(flops("router", "forward"), router);
    EXPECT_EQ(flops("experts", "forward"), 6.0 * 4096 * 8 * 512 * 768);
    EXPECT_EQ(flops("dispatcher", "both"), 0.0);
    const double projections = 2 * 2.0 * 4096 * 512 * 2048;
    EXPECT_EQ(flops("layer", "forward"),
              router + flops("experts", "forward") + projections);
    EXPECT_EQ(flops("layer", "backward"), 2 * flops("layer", "forward"));
    const auto bytes = [&](const char* subject) {
        return total_bytes(kernels_of(subject, "forward", config, sizes, DType::bf16));
    };
    // A row of the dispatcher, read or written four times, has 512 numbers of 2 bytes
    const double rows = bytes("dispatcher");
    config.moe_latent_size = 1024;
    EXPECT_EQ(bytes("dispatcher") - rows, 2.0 * 512 * 2 * (4096 + 8 * 4096));
}

// The longer of arithmetic and bytes, kernel by kernel; milliseconds by hand
TEST(Roofline, FloorIsTheLongerOfBoth) {
    const std::vector<KernelCost> kernels = {{"computes", 4e12, 1e9},
                                             {"moves", 0.0, 3e9}};
    EXPECT_DOUBLE_EQ(floor_ms(kernels, {1000.0, 800.0}), 5.0 + 3.0);
    EXPECT_DOUBLE_EQ(floor_ms(kernels, {100.0, 800.0}), 10.0 + 30.0);
    EXPECT_DOUBLE_EQ(floor_ms(kernels, {1000.0, std::nullopt}), 1.0 + 3.0);
}

// --------------------------------------------------------------------------- workload

MoEConfig bench_config() {
    MoEConfig config = small_config(22, 10, 3, 7);
    config.moe_shared_expert_intermediate_size = 9;
    config.moe_router_load_balancing_type = {"aux_loss"};
    config.moe_aux_loss_coeff = {0.01};
    config.moe_router_enable_expert_bias = true;
    config.moe_router_score_function = "sigmoid";
    config.finalize();
    return config;
}

std::vector<std::int64_t> rows_of_experts(const std::string& routing,
                                          std::int64_t tokens) {
    const MoEConfig config = bench_config();
    const Reference reference = run_reference(
        config,
        make_inputs(config, parse_routing("--routing", routing, config), tokens, 5),
        DType::f64);
    const Tensor& counts = reference.at("tokens_per_expert");
    return {counts.data<std::int32_t>(), counts.data<std::int32_t>() + counts.numel()};
}

TEST(Workload, RoutesAsAskedFor) {
    EXPECT_EQ(rows_of_experts("balanced", 70), std::vector<std::int64_t>(10, 21));
    const auto hot = rows_of_experts("hot:4", 61);
    EXPECT_EQ(std::accumulate(hot.begin(), hot.begin() + 4, std::int64_t{0}), 183);
    EXPECT_EQ(*std::max_element(hot.begin() + 4, hot.end()), 0);
    for (std::int64_t rows : rows_of_experts("hot:3", 61)) EXPECT_EQ(rows % 61, 0);
    const auto uniform = rows_of_experts("uniform", 1001);
    EXPECT_NEAR(*std::min_element(uniform.begin(), uniform.end()), 300, 50);
    EXPECT_NEAR(*std::max_element(uniform.begin(), uniform.end()), 300, 50);
    const auto skewed = rows_of_experts("skewed", 1001);
    EXPECT_GT(*std::max_element(skewed.begin(), skewed.end()),
              4 * *std::min_element(skewed.begin(), skewed.end()));
}

// Routing is made by the order of N(0, 1) values, not by other values.
TEST(Workload, KeepsItsTokensNormal) {
    const MoEConfig config = bench_config();
    const auto tokens = [&](const char* routing) {
        const Tensor hidden =
            make_inputs(config, parse_routing("", routing, config), 4001, 5).hidden;
        EXPECT_EQ(hidden.shape(), (Shape{4001, 1, 22}));
        return to_doubles(hidden);
    };
    const std::vector<double> hot = tokens("hot:3"), uniform = tokens("uniform");
    double sum = 0.0, squares = 0.0;
    for (double value : hot) sum += value, squares += value * value;
    const double count = double(hot.size());
    EXPECT_NEAR(sum / count, 0.0, 0.02);
    EXPECT_NEAR(squares / count, 1.0, 0.02);
    // Token for token the same values, but for a tie broken here or there
    std::int64_t changed = 0;
    for (std::size_t t = 0; t < 4001; ++t) {
        std::multiset<double> a(&hot[22 * t], &hot[22 * t] + 22);
        const std::multiset<double> b(&uniform[22 * t], &uniform[22 * t] + 22);
        changed += a != b;
    }
    EXPECT_LT(changed, 200);
    for (double value : hot)
        ASSERT_EQ(value, double(static_cast<float>(BFloat16(float(value)))));
}

TEST(Workload, RefusesWhatItCannotRoute) {
    const MoEConfig config = bench_config();
    for (const char* text : {"", "even", "hot", "hot:", "hot:2", "hot:11", "hot:3x"})
        EXPECT_TRUE(Rejects([&] { parse_routing("--routing", text, config); },
                            {std::string("--routing = ") + text, "hot"}))
            << text;
    MoEConfig narrow = small_config(9, 10, 3, 7);
    narrow.finalize();
    EXPECT_TRUE(Rejects([&] { make_inputs(narrow, {}, 5, 1); },
                        {"hidden_size = 9", "num_moe_experts = 10"}));
}

// ----------------------------------------------------------------------------- timing

TEST(BenchTiming, SummarizesSamples) {
    const Timing one = summarize({3.0});
    EXPECT_EQ(one.median, 3.0);
    EXPECT_EQ(one.count, 1);
    std::vector<double> samples(100);
    std::iota(samples.begin(), samples.end(), 0.0);
    std::reverse(samples.begin(), samples.end());
    const Timing many = summarize(samples);
    EXPECT_EQ(many.median, 49.5);
    EXPECT_EQ(many.p10, 10.0);
    EXPECT_EQ(many.p90, 90.0);
}

/// Takes no time, and says that each piece took as long as it was told.
class FakeStopwatch : public Stopwatch {
  public:
    double time(const std::function<void()>& work) override {
        work();
        return last;
    }
    double last = 0.0;
};

TEST(BenchTiming, TakesTurnsInShuffledOrder) {
    FakeStopwatch stopwatch;
    std::string calls;
    int prepared = 0;
    const auto work = [&](char name, double milliseconds) {
        return TimedWork{std::string(1, name), &stopwatch, [&] { ++prepared; },
                         [&calls, &stopwatch, name, milliseconds] {
                             calls += name;
                             stopwatch.last = milliseconds;
                         }};
    };
    TimingPlan plan;
    plan.seconds = 0.6;  // a round of 60 ms: ten of them
    const auto timings =
        time_interleaved({work('a', 10), work('b', 20), work('c', 30)}, plan);
    EXPECT_EQ(calls.substr(0, 6), "aabbcc") << "warm-up";
    ASSERT_EQ(calls.size(), 6u + 30u);
    EXPECT_EQ(prepared, 36);
    std::set<std::string> orders;
    for (int round = 0; round < 10; ++round) {
        std::string order = calls.substr(std::size_t(6 + 3 * round), 3);
        orders.insert(order);
        std::sort(order.begin(), order.end());
        EXPECT_EQ(order, "abc") << "each once a round";
    }
    EXPECT_GT(orders.size(), 2u);
    EXPECT_EQ(timings[1].median, 20.0);
    EXPECT_EQ(timings[2].count, 10);

    plan.seconds = 1e-3;
    EXPECT_EQ(time_interleaved({work('a', 10)}, plan)[0].count, plan.least_rounds);
    plan.seconds = 1e3;
    EXPECT_EQ(time_interleaved({work('a', 10)}, plan)[0].count, plan.most_rounds);
}

// ------------------------------------------------------------------------------ parts

class BenchParts : public testing::TestWithParam<ComponentSpec> {};

TEST_P(BenchParts, AreHeldAgainstTheReference) {
    const MoEConfig config = bench_config();
    Reference reference =
        run_reference(config, make_inputs(config, {}, 37, 5), DType::f64);
    const ModuleSpec spec = ModuleSpec::uniform(GetParam());
    for (const std::string& name : part_names(config)) {
        const auto part = make_part(name, spec, reference);
        part->release_backward();
        for (int repeat = 0; repeat < 2; ++repeat) {
            part->forward();
            EXPECT_TRUE(part->forward_deviation().ok())
                << name << ": " << part->forward_deviation().detail;
            part->backward();
            EXPECT_TRUE(part->backward_deviation().ok())
                << name << ": " << part->backward_deviation().detail;
            EXPECT_LE(part->backward_deviation().error, part->backward_deviation().bound);
            part->release_backward();
        }
    }
}

// Had the reference said anything else, each part would be found wrong.
TEST_P(BenchParts, AreFoundWrong) {
    const MoEConfig config = bench_config();
    const Reference reference =
        run_reference(config, make_inputs(config, {}, 37, 5), DType::f64);
    const std::map<std::string, std::pair<const char*, const char*>> outputs = {
        {"router", {"probs", "d_hidden_states_router"}},
        {"dispatcher", {"dispatched_hidden_states", "d_expert_output"}},
        {"experts", {"expert_output", "d_dispatched_probs"}},
        {"shared_experts", {"shared_output", "d_hidden_states"}},
        {"layer", {"output", "d_hidden_states"}}};
    for (const auto& [name, values] : outputs) {
        Reference other = reference;
        const auto part = make_part(name, ModuleSpec::uniform(GetParam()), other);
        part->release_backward();
        part->forward();
        part->backward();
        for (const char* value : {values.first, values.second}) {
            Tensor changed = reference.at(value).clone();
            changed.data<double>()[changed.numel() / 2] += 100.0;
            other.values[value] = changed;
        }
        EXPECT_NE(part->forward_deviation().detail, "") << name;
        EXPECT_NE(part->backward_deviation().detail, "") << name;
    }
}

INSTANTIATE_TEST_SUITE_P(Suppliers, BenchParts, testing::ValuesIn(available_suppliers()),
                         instance_name);

TEST(Waterfall, ExchangesOneComponentAfterAnother) {
    const ComponentSpec cpu{"reference_cpu", DType::f32}, naive{"naive_gpu", DType::bf16},
        third{"optimized_gpu", DType::bf16};
    const auto specs = waterfall_specs({cpu, naive, third});
    ASSERT_EQ(specs.size(), 6u);
    EXPECT_EQ(specs[0], ModuleSpec::uniform(cpu));
    EXPECT_EQ(specs[1], ModuleSpec::uniform(naive));
    EXPECT_EQ(specs[2], (ModuleSpec{third, naive, naive, naive}));
    EXPECT_EQ(specs[4], (ModuleSpec{third, third, third, naive}));
    EXPECT_EQ(specs[5], ModuleSpec::uniform(third));
}

// ------------------------------------------------------------------------ the command

const std::string kNarrow =
    "bench --preset deepseek_v3 --scale 112 --num-experts 32 --pass both --tokens 9 "
    "--report none ";
const std::string kSmall =
    "bench --preset deepseek_v3 --scale 28 --tokens 9 --report none ";

TEST_F(CliTest, BenchCountsWhatItDoesNotTime) {
    const Output output = moe(kNarrow + "--seconds 0.01 --json " + path("result.json"));
    ASSERT_EQ(output.code, kExitOk) << output.err;
    EXPECT_NE(output.out.find("✓ every part gives what reference_cpu:fp64 gives"),
              std::string::npos);
    const Result result =
        result_from_json(nlohmann::json::parse(read(path("result.json"))), "result");
    ASSERT_EQ(result.runs.size(), 1u);
    const bench::Run& run = result.runs[0];
    EXPECT_EQ(run.workload.rows, 9 * 8);
    std::set<std::string> subjects;
    for (const Measurement& m : run.measurements) {
        subjects.insert(m.subject);
        EXPECT_LE(m.error, m.bound) << m.subject << " " << m.spec;
        if (m.emulated) {
            EXPECT_FALSE(m.ms.has_value()) << "the executor's times mean nothing";
            EXPECT_GT(m.launches, 0) << m.subject;
            const bool waits = m.spec.find("optimized_gpu") == std::string::npos;
            EXPECT_EQ(m.host_waits > 0, waits) << m.subject << " " << m.spec;
            EXPECT_GT(m.peak_device_bytes, 0) << m.subject;
        } else {
            ASSERT_TRUE(m.ms.has_value()) << m.subject << " " << m.spec;
            EXPECT_GT(m.ms->median, 0.0);
            EXPECT_GE(m.ms->count, 3);
        }
    }
    EXPECT_EQ(subjects.size(), 5u);
    // A result is never written over.
    EXPECT_TRUE(IsBadInput(kNarrow + "--json " + path("result.json"),
                           {"--json = ", "is there already"}));
}

// Nothing is timed where nothing can be, not even Eigen's products.
TEST_F(CliTest, BenchTimesNothingOfTheExecutor) {
    if (!gpu::is_emulated()) GTEST_SKIP() << "kernels do not run on the executor here";
    const Output output = moe(
        kNarrow + "--tier naive_gpu --routing uniform,hot:8 --json " + path("r.json"));
    ASSERT_EQ(output.code, kExitOk) << output.err;
    EXPECT_EQ(output.out.find("Ceilings"), std::string::npos);
    EXPECT_EQ(output.out.find(" ms"), std::string::npos);
    const Result result =
        result_from_json(nlohmann::json::parse(read(path("r.json"))), "result");
    ASSERT_EQ(result.runs.size(), 2u);
    EXPECT_EQ(result.runs[1].workload.routing, "hot:8");
    for (const bench::Run& run : result.runs) {
        EXPECT_FALSE(run.before.has_value());
        for (const Measurement& m : run.measurements) EXPECT_FALSE(m.ms.has_value());
    }
}

TEST_F(CliTest, BenchHoldsPartsOfLatentAndInterleavedLayers) {
    const Output output =
        moe(kNarrow +
            "--seconds 0.01 --dtype fp32 bf16 --no-waterfall --moe-latent-size 24 "
            "--moe-mlp-glu-interleave-size 2 --moe-shared-expert-glu-interleave-size 3 "
            "--json " +
            path("result.json"));
    ASSERT_EQ(output.code, kExitOk) << output.out << output.err;
    EXPECT_NE(output.out.find("✓ every part gives what reference_cpu:fp64 gives"),
              std::string::npos);
    EXPECT_NE(output.out.find(", ℓ=24: H="), std::string::npos) << output.out;
    const Result result =
        result_from_json(nlohmann::json::parse(read(path("result.json"))), "result");
    std::set<std::string> subjects;
    for (const Measurement& m : result.runs.at(0).measurements)
        subjects.insert(m.subject);
    EXPECT_EQ(subjects.size(), 5u);
}

TEST_F(CliTest, BenchNamesWrongValues) {
    EXPECT_TRUE(
        IsBadInput(kSmall + "--routing even", {"--routing = even: ", "balanced"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--component gpu",
                           {"--component = gpu: ", "router, dispatcher, experts"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--moe-router-padding-for-quantization "
                                    "--component dispatcher",
                           {"--component = dispatcher: ", "router, experts"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--pass twice", {"--pass = twice: ", "both"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--seconds 0", {"--seconds = 0: "}));
    EXPECT_TRUE(IsBadInput(kSmall + "--seq-length 4", {"--tokens = 9: ", "left out"}));
    EXPECT_TRUE(IsBadInput("bench --tokens 0", {"--tokens = 0: ", "1 to 1000000"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--reference-dtype bf16", {"--reference-dtype"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--json " + path("no/such/folder.json"),
                           {"--json = ", "folder that exists"}));
    EXPECT_TRUE(IsBadInput(kSmall + "--expert-model-parallel-size 2", {"ranks"}));
    EXPECT_TRUE(IsBadInput("bench --preset deepseek_v3 --scale 64 --tokens 9",
                           {"hidden_size = 112", "256"}));
}

}  // namespace
}  // namespace moe::test
