// What the tiers owe each other: mixes of them give the same layer, and kernels give the
// same bits in whatever order their threads run.

#include <algorithm>

#include "cli/compare/closeness.h"
#include "cli/golden/golden.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"
#ifdef MOE_EXECUTOR
#include <cuda_on_cpu/executor.h>
#endif

namespace moe::test {
namespace {

GoldenCase golden_case(const std::string& name) {
    return load_golden(golden_folder() + "/" + name + ".safetensors");
}

// Between them: biases, both kinds of dropping, groups, every loss, a gated shared
// expert, clamps, sinkhorn, and probabilities on the input.
const char* const kCases[] = {"hf_gpt_oss",  "shared_gate",    "sigmoid_groups_bias_seq",
                              "losses_only", "probs_on_input", "swiglu_clamp",
                              "geglu_bias",  "drop_probs_pad", "sinkhorn_k2"};

// --------------------------------------------------------------------- mixes of tiers

class MixedSpecs : public testing::TestWithParam<int> {};

TEST_P(MixedSpecs, MatchGoldenCases) {
    NEEDS_DEVICE();
    const ComponentSpec cpu{"reference_cpu", DType::f32}, gpu{"naive_gpu", DType::f32};
    const auto pick = [&](int bit) { return GetParam() & 1 << bit ? gpu : cpu; };
    const ModuleSpec spec{pick(0), pick(1), pick(2), pick(3)};
    for (const char* name : kCases)
        for (const TensorCheck& check : verify_golden(golden_case(name), spec).checks)
            EXPECT_TRUE(check.ok) << name << " " << check.name << ": error "
                                  << check.error << "; " << check.detail;
}

// Every mix of the two tiers over router, dispatcher, experts and shared experts
INSTANTIATE_TEST_SUITE_P(AllMixes, MixedSpecs, testing::Range(1, 15));

TEST(MixedSpecs, MixPrecisionsAsWell) {
    NEEDS_DEVICE();
    const ModuleSpec spec =
        ModuleSpec::parse("experts=naive_gpu:bf16,dispatcher=naive_gpu,router=naive_gpu",
                          {"reference_cpu", DType::f64});
    EXPECT_EQ(spec.dispatcher.dtype, DType::f32) << "its most precise: it has no fp64";
    EXPECT_EQ(spec.router.dtype, DType::f64);
    EXPECT_EQ(spec.coarsest_dtype(), DType::bf16);
    for (const char* name : kCases)
        EXPECT_TRUE(verify_golden(golden_case(name), spec).ok) << name;
}

TEST(MixedSpecs, SayWhatTheyAre) {
    NEEDS_DEVICE();
    const ComponentSpec cpu{"reference_cpu", DType::f32}, gpu{"naive_gpu", DType::f32};
    EXPECT_FALSE(ModuleSpec::uniform(cpu).is_emulated());
    const bool emulated = find_tier("tier", "naive_gpu").is_emulated();
    EXPECT_EQ(ModuleSpec::uniform(gpu).is_emulated(), emulated);
    EXPECT_EQ((ModuleSpec{cpu, cpu, cpu, gpu}).is_emulated(), emulated);
    EXPECT_TRUE(Rejects([&] { ModuleSpec::parse("experts=naive_gpu:fp64", cpu); },
                        {"spec experts = naive_gpu:fp64", "fp32, bf16"}));
}

TEST(MixedSpecs, HaveDtypesByComponent) {
    NEEDS_DEVICE();
    const ComponentSpec fp32{"optimized_gpu", DType::f32}, naive{"naive_gpu", DType::f32};
    const auto dtype_of = [&](const std::string& component) {
        const ModuleSpec spec = ModuleSpec::parse(component + "=optimized_gpu", naive);
        return (component == "router"       ? spec.router
                : component == "dispatcher" ? spec.dispatcher
                                            : spec.experts)
            .dtype;
    };
    EXPECT_EQ(dtype_of("router"), DType::f32);
    EXPECT_EQ(dtype_of("dispatcher"), DType::f32);
    EXPECT_EQ(dtype_of("experts"), DType::bf16) << "it has no other";
    const std::vector<std::string> line = {
        "spec experts = optimized_gpu:fp32: this tier has bf16; fp32 is in "
        "reference_cpu, naive_gpu"};
    EXPECT_TRUE(
        Rejects([&] { ModuleSpec::parse("experts=optimized_gpu:fp32", naive); }, line));
    // Nobody has to go through parse()
    MoEConfig config = small_config();
    config.finalize();
    const TensorMap parameters = random_parameters(config, 1);
    ModuleSpec spec{fp32, fp32, naive, naive};
    MoELayer(config, spec, parameters);
    spec.experts = fp32;
    EXPECT_TRUE(Rejects([&] { MoELayer(config, spec, parameters); }, line));
    spec = {fp32, fp32, naive, fp32};
    EXPECT_TRUE(Rejects([&] { MoELayer(config, spec, parameters); },
                        {"spec shared_experts = optimized_gpu:fp32"}));
}

// -------------------------------------------------------------------------- schedules
#ifdef MOE_EXECUTOR

class Schedules : public testing::TestWithParam<const char*> {
  protected:
    Schedules() : before_(cuda_on_cpu::options()) { available_suppliers(); }
    ~Schedules() override { cuda_on_cpu::options() = before_; }

    static void use(const std::string& text) {
        ASSERT_TRUE(cuda_on_cpu::parse_schedule(text, cuda_on_cpu::options().schedule));
    }

  private:
    cuda_on_cpu::Options before_;
};

TEST_P(Schedules, MatchGoldenCases) {
    use(GetParam());
    for (DType dtype : {DType::f32, DType::bf16})
        for (const char* name : kCases) {
            const ModuleSpec spec = ModuleSpec::uniform({"naive_gpu", dtype});
            for (const TensorCheck& check : verify_golden(golden_case(name), spec).checks)
                EXPECT_TRUE(check.ok)
                    << name << " " << to_string(dtype) << " " << check.name
                    << ", schedule " << GetParam() << ": " << check.detail;
        }
}

TEST_P(Schedules, ChangeNoBit) {
    // Wider than a block in every direction, and no multiple of one
    MoEConfig config = small_config(37, 9, 3, 29);
    config.moe_router_score_function = "sigmoid";
    config.moe_router_enable_expert_bias = true;
    config.moe_shared_expert_intermediate_size = 11;
    config.moe_shared_expert_gate = true;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_expert_capacity_factor = 0.9;
    config.add_bias_linear = false;
    config.finalize();
    const TensorMap parameters = random_parameters(config, 3);
    const Tensor hidden = random_tensor({89, 3, 37}, 4);
    const Tensor doutput = random_tensor({89, 3, 37}, 5);
    const auto run = [&] {
        ValueRecorder values;
        const RunContext context{.observer = &values};
        MoELayer layer(config, ModuleSpec::uniform({"naive_gpu", DType::f32}),
                       parameters);
        const auto forward = layer.forward(hidden, {}, context);
        for (const auto& [name, gradient] :
             layer.backward(doutput, forward.saved, context).parameters)
            values.values["d_" + name] = gradient;
        values.values["expert_bias"] = layer.update_expert_bias();
        return values.values;
    };
    use("forward");
    const TensorMap expected = run();
    use(GetParam());
    for (const auto& [name, value] : run())
        EXPECT_TRUE(BitwiseEqual(value, expected.at(name))) << name;
}

INSTANTIATE_TEST_SUITE_P(Orders, Schedules,
                         testing::Values("forward", "reverse", "random:1", "random:2",
                                         "random:3", "priority:1", "priority:2",
                                         "priority:3"));

#endif

}  // namespace
}  // namespace moe::test
