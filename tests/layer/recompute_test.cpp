// What the backward makes again instead of keeping it: the same bits, fewer bytes, and
// nothing counted twice.

#include "core/recompute.h"
#include "core/kept_bytes.h"
#include "gpu/thread_counters.h"
#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

using Modules = std::vector<std::string>;

MoEConfig recomputing(MoEConfig config, const Modules& modules) {
    config.moe_grouped_gemm = true;
    if (modules.empty()) return config;
    config.recompute_granularity = "selective";
    config.recompute_modules = modules;
    return config;
}

MoEConfig base_config() {
    MoEConfig c = rich_config();
    c.num_moe_experts = 6;
    c.moe_router_num_groups = 3;
    c.moe_router_topk = 2;
    c.gated_linear_unit = true;
    c.activation_func = "silu";
    return c;
}

struct RecomputeCase {
    std::string name;
    std::function<void(MoEConfig&)> change;
};

const std::vector<RecomputeCase>& recompute_cases() {
    static const std::vector<RecomputeCase> all = {
        {"rich", [](MoEConfig&) {}},
        {"gathered",
         [](MoEConfig& c) { c.moe_permute_fusion = c.moe_router_fusion = true; }},
        {"clamped_latent",
         [](MoEConfig& c) {
             c.activation_func_clamp_value = 1.0;
             c.moe_latent_size = 9;
         }},
        {"biased_not_gated",
         [](MoEConfig& c) {
             c.moe_shared_expert_intermediate_size.reset();
             c.moe_shared_expert_gate = false;
             c.add_bias_linear = true;
             c.gated_linear_unit = false;
             c.activation_func = "squared_relu";
         }},
        {"padded", [](MoEConfig& c) { c.moe_pad_expert_input_to_capacity = true; }},
        {"interleaved_overlapped",
         [](MoEConfig& c) {
             c.moe_ffn_hidden_size = 12;
             c.moe_mlp_glu_interleave_size = 3;
             c.overlap_dispatch_backward_with_experts_wgrad = true;
         }},
        {"on_input",
         [](MoEConfig& c) {
             c.moe_router_topk = 1;
             c.moe_router_num_groups.reset();
             c.moe_router_group_topk.reset();
             c.moe_apply_probs_on_input = true;
         }},
    };
    return all;
}

/// Tiles on emulated tensor cores take their time: of optimized_gpu what is its own.
std::vector<Modules> modules_of(const ComponentSpec& supplier) {
    const std::vector<Modules> all = {{"moe", "moe_act", "shared_experts"},
                                      {"shared_experts", "core_attn"},
                                      {"moe_act"},
                                      {"moe"}};
    const bool is_slow = supplier.tier == "optimized_gpu";
    return {all.begin(), is_slow ? all.begin() + 2 : all.end()};
}

/// Counts the stretches of each step, and how often each value comes.
struct RunCounter : Observer {
    void on_time(const Steps& steps, double) override { ++stretches[steps.first]; }
    void on_value(Step, const std::string& name, const TensorView&) override {
        ++values[name];
    }
    std::map<Step, int> stretches;
    std::map<std::string, int> values;
};

class RecomputeTest : public LayerTest {
  protected:
    const Tensor hidden_ = random_tensor({7, 3, kHidden}, 1),
                 doutput_ = random_tensor({7, 3, kHidden}, 2);

    static MoELayer layer_of(const MoEConfig& config) {
        return layer(config, parameters_of(config));
    }
    /// What two micro-batches leave, the second forward before the first backward.
    struct Left {
        std::vector<Tensor> tensors;
        std::vector<Losses> losses;
    };
    Left train(const MoEConfig& config) {
        MoELayer subject = layer_of(config);
        Left left;
        const auto add = [&](const Tensor& tensor) {
            left.tensors.push_back(transfer(tensor, {MemorySpace::host, tensor.dtype()}));
        };
        const MoELayer::Forward first = subject.forward(hidden_, {}, {});
        const MoELayer::Forward second = subject.forward(doutput_, {}, {});
        for (const MoELayer::Forward* forward : {&first, &second}) {
            left.losses.push_back(forward->losses.read());
            const auto gradients = subject.backward(doutput_, forward->saved, {});
            add(forward->output);
            add(gradients.hidden_states);
            for (const auto& [name, gradient] : gradients.parameters) add(gradient);
        }
        add(subject.update_expert_bias());
        // Of counts that were taken twice this loss would be another
        left.losses.push_back(subject.forward(hidden_, {}, {}).losses.read());
        return left;
    }
};

TEST_P(RecomputeTest, ChangesNoBit) {
    for (const RecomputeCase& c : recompute_cases()) {
        MoEConfig config = base_config();
        c.change(config);
        const Left kept = train(recomputing(config, {}));
        for (const Modules& modules : modules_of(GetParam())) {
            SCOPED_TRACE(c.name + ", " + modules[0]);
            const Left again = train(recomputing(config, modules));
            EXPECT_EQ(again.losses, kept.losses);
            for (std::size_t i = 0; i < kept.tensors.size(); ++i)
                EXPECT_TRUE(BitwiseEqual(again.tensors.at(i), kept.tensors[i])) << i;
        }
    }
}

TEST_P(RecomputeTest, RunsTheseStepsTwiceAndShowsTheirValuesOnce) {
    const auto count = [&](const Modules& modules) {
        RunCounter counter;
        MoELayer subject = layer_of(recomputing(base_config(), modules));
        const RunContext context{.observer = &counter};
        const auto forward = subject.forward(hidden_, {}, context);
        subject.backward(doutput_, forward.saved, context);
        return counter;
    };
    const RunCounter once = count({});
    const bool fuses = GetParam().tier == "optimized_gpu";
    for (const auto& [modules, twice] :
         std::vector<std::pair<Modules, std::vector<Step>>>{
             {{"moe_act"}, fuses ? std::vector<Step>{} : std::vector{Step::activation}},
             {{"shared_experts"}, {Step::shared_experts}},
             {{"moe"},
              {Step::shared_experts, Step::dispatch, Step::fc1, Step::activation,
               Step::fc2, Step::combine}}}) {
        SCOPED_TRACE(modules[0]);
        const RunCounter again = count(modules);
        EXPECT_EQ(again.values, once.values);
        for (const auto& [step, stretches] : once.stretches) {
            const bool is_twice =
                std::find(twice.begin(), twice.end(), step) != twice.end();
            EXPECT_EQ(again.stretches.at(step), stretches * (is_twice ? 2 : 1))
                << title(step);
        }
    }
}

constexpr std::int64_t kTokens = 33;

/// Bytes between forward and backward, counted and by the tier's word.
std::pair<std::int64_t, Floor> kept_by(const MoEConfig& config, const ModuleSpec& spec,
                                       std::int64_t num_rows) {
    MoELayer layer(config, spec, random_parameters(config, 3));
    const Tensor hidden = random_tensor({kTokens / 3, 3, kHidden}, 4);
    layer.forward(hidden, {}, {});  // in the first call a layer makes what it always has
    return {count_kept_bytes(layer, hidden),
            kept_by_formula(config, {kTokens, num_rows}, spec)};
}

// In a layer whose rows nobody drops, N = T K.
TEST_P(RecomputeTest, KeepsFewerBytesByWhatTheTierSays) {
    const ModuleSpec spec = ModuleSpec::uniform(GetParam());
    const auto kept = [&](const Modules& modules) {
        MoEConfig c = dropless(base_config());
        c = recomputing(c, modules);
        c.finalize();
        return kept_by(c, spec, kTokens * c.moe_router_topk);
    };
    const auto [bytes, by_formula] = kept({});
    const auto [bytes_act, by_formula_act] = kept({"moe_act"});
    EXPECT_EQ(bytes - bytes_act, by_formula.bytes - by_formula_act.bytes);
    const bool fuses = GetParam().tier == "optimized_gpu";
    const std::int64_t act = kTokens * 2 * 13 * std::int64_t(size_of(GetParam().dtype));
    EXPECT_EQ(bytes - bytes_act, fuses ? 0 : act);

    // Gone with these are the gate and its like, and which row is whose: numbers of a
    // token, of a row
    const std::int64_t small = 8 * kTokens * (1 + 6 + 8 * 2) + 4096;
    for (const char* module : {"shared_experts", "moe"}) {
        SCOPED_TRACE(module);
        const auto [fewer, by_formula_fewer] = kept({module});
        const std::int64_t said = by_formula.bytes - by_formula_fewer.bytes;
        EXPECT_GT(said, 0);
        EXPECT_GE(bytes - fewer, said - small);
        EXPECT_LE(bytes - fewer, said + small);
    }
}

TEST_P(RecomputeTest, KeepsFewerBytesInAnEvaluationToo) {
    const auto kept = [&](const Modules& modules) {
        MoEConfig c = recomputing(dropless(base_config()), modules);
        c.finalize();
        MoELayer layer(c, ModuleSpec::uniform(GetParam()), random_parameters(c, 3));
        const RunContext evaluation{.training = false};
        layer.forward(hidden_, {}, evaluation);
        return count_kept_bytes(layer, hidden_, evaluation);
    };
    EXPECT_LT(kept({"moe"}), kept({"shared_experts"}));
    EXPECT_LT(kept({"shared_experts"}), kept({}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, RecomputeTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

// Its backward always takes act(h) p once more, in the epilogue of a product.
TEST(RecomputeInOptimizedGpu, OfTheActivationLaunchesNothing) {
    NEEDS_DEVICE();
    available_tiers();
    const auto launches = [&](const Modules& modules) {
        MoEConfig c = recomputing(base_config(), modules);
        c.finalize();
        MoELayer layer(c, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                       random_parameters(c, 3));
        const Tensor hidden = random_tensor({5, 3, kHidden}, 4);
        const gpu::ThreadCounters before = gpu::thread_counters();
        layer.backward(hidden, layer.forward(hidden, {}, {}).saved, {});
        return (gpu::thread_counters() - before).launches;
    };
    EXPECT_EQ(launches({"moe_act"}), launches({}));
    EXPECT_GT(launches({"shared_experts"}), launches({}));
    EXPECT_GT(launches({"moe"}), launches({"shared_experts"}));
}

TEST(SecondRun, TakesTimesAndNoValues) {
    RunCounter counter;
    const SecondRun again({.observer = &counter});
    const RunContext& context = again.context();
    context.value(Step::fc1, "fc1_output", Tensor::zeros({1}, DType::f32));
    context.value_beside(Step::routing, "topk_probs", []() -> Tensor {
        ADD_FAILURE() << "nobody looks at it";
        return Tensor::zeros({1}, DType::f32);
    });
    { StepTimer timer(context, Step::fc1); }
    EXPECT_TRUE(counter.values.empty());
    EXPECT_EQ(counter.stretches, (std::map<Step, int>{{Step::fc1, 1}}));
    EXPECT_EQ(SecondRun(RunContext{}).context().observer, nullptr);
}

TEST(RecomputedInWords, NamesStepsAndModules) {
    const auto words = [](const Modules& modules) {
        MoEConfig c = recomputing(base_config(), modules);
        c.finalize();
        return recomputed_in_words(c);
    };
    EXPECT_EQ(words({}), "");
    EXPECT_EQ(words({"core_attn", "layernorm"}), "");
    EXPECT_EQ(words({"moe_act"}), "⑧ again in backward: recompute_modules moe_act");
    EXPECT_EQ(words({"moe_act", "shared_experts"}),
              "① and ⑧ again in backward: recompute_modules moe_act shared_experts");
    EXPECT_EQ(words({"moe"}), "① and ⑥–⑩ again in backward: recompute_modules moe");
}

}  // namespace
}  // namespace moe::test
