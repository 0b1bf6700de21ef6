// layer_test.cpp: the whole layer of every tier that runs kernels: no races, and what
// `moe profile` says of its steps.

#include <gtest/gtest.h>

#include "cli/profile/bound.h"
#include "cli/profile/layer_profile.h"
#include "gpu/tensor.h"
#include "naive_gpu/tier.h"

namespace moe::test {
namespace {

using profile::LayerProfile;

/// Everything that is off by default is on.
MoEConfig config_with(const std::string& dispatcher) {
    MoEConfig config;
    config.hidden_size = 20;
    config.num_moe_experts = 6;
    config.moe_router_topk = 2;
    config.moe_ffn_hidden_size = 12;
    config.moe_shared_expert_intermediate_size = 9;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_z_loss_coeff = 0.001;
    config.moe_expert_capacity_factor = 1.5;
    config.moe_token_dispatcher_type = dispatcher;
    config.finalize();
    return config;
}

LayerProfile profile_of(const MoEConfig& config, DType dtype, bool races) {
    naive::register_naive_gpu();
    return profile::profile_layer(
        {config, ModuleSpec::uniform({"naive_gpu", dtype}), 17, 2, 7, races});
}

TEST(ObserveLayer, TheLayerHasNoRaces) {
    for (const char* dispatcher : {"allgather", "alltoall"})
        for (const DType dtype : {DType::f32, DType::bf16}) {
            const LayerProfile seen = profile_of(config_with(dispatcher), dtype, true);
            EXPECT_GT(seen.report.launches.size(), 30u);
            for (const auto& finding : seen.report.findings)
                ADD_FAILURE() << dispatcher << " " << to_string(dtype) << ": "
                              << finding.text;
        }
}

TEST(ObserveLayer, OverlappingTheSharedExpertsIsNoRace) {
    MoEConfig config = config_with("alltoall");
    config.moe_shared_expert_overlap = true;
    for (const auto& finding : profile_of(config, DType::f32, true).report.findings)
        ADD_FAILURE() << finding.text;
}

TEST(ObserveLayer, StepsMoveAtLeastTheirFloor) {
    MoEConfig config = config_with("alltoall");
    config.moe_expert_capacity_factor = {};
    const LayerProfile seen = profile_of(config, DType::f32, false);
    EXPECT_EQ(seen.sizes.num_tokens, 34);
    EXPECT_EQ(seen.sizes.num_rows, 68);
    std::size_t launches = 0;
    int with_floor = 0;
    for (const auto& step : seen.steps) {
        launches += std::size_t(step.launches());
        if (!step.steps) continue;
        for (const Step product : {Step::fc1, Step::fc2, Step::combine, Step::dispatch}) {
            if (step.steps != Steps(product)) continue;
            ++with_floor;
            EXPECT_GE(step.sum().compulsory_bytes(), std::uint64_t(step.floor.bytes))
                << title(product);
            EXPECT_LT(step.sum().compulsory_bytes(), 4 * std::uint64_t(step.floor.bytes))
                << title(product);
        }
    }
    EXPECT_EQ(with_floor, 4);
    EXPECT_EQ(launches, seen.report.launches.size());
}

TEST(ObserveLayer, ComponentsShareTheSteps) {
    for (int number = 1; number <= kNumSteps; ++number) {
        int owners = 0;
        for (const char* component :
             {"router", "dispatcher", "experts", "shared_experts"})
            owners += profile::belongs_to(Step(number), component);
        EXPECT_EQ(owners, 1) << number;
        EXPECT_TRUE(profile::belongs_to(Step(number), "layer"));
    }
    EXPECT_TRUE(profile::belongs_to(Step::routing_backward, "router"));
    EXPECT_TRUE(profile::belongs_to(Step::fc2_backward, "experts"));
    EXPECT_TRUE(profile::belongs_to(Step::combine_backward, "dispatcher"));
    EXPECT_FALSE(profile::belongs_to(std::nullopt, "router"));
}

TEST(ObserveBound, IsItsLargestTerm) {
    cuda_on_cpu::observe::Counters counters;
    counters.sectors_read = 1'000'000;
    counters.loads.sectors = 2'000'000;
    counters.stores.sectors = 3'000'000;
    counters.shared.wavefronts = 1000;
    const profile::Bound bound = profile::bound_of(counters, 3, profile::kH100);
    EXPECT_DOUBLE_EQ(bound.hbm, 32e6 / 3.35e12);
    EXPECT_DOUBLE_EQ(bound.l1, 160e6 / (128 * 132 * 1.83e9));
    EXPECT_DOUBLE_EQ(bound.l2, 96e6 / 7.0e12);
    EXPECT_DOUBLE_EQ(bound.launch, 6e-6);
    EXPECT_DOUBLE_EQ(bound.seconds(), bound.l2);
    EXPECT_EQ(bound.limit(), "L2");
    EXPECT_EQ(profile::bound_of(counters, 30, profile::kH100).limit(), "launch");
    EXPECT_EQ(profile::bound_of(counters, 30, profile::kH100).resource(), "L2");
}

}  // namespace
}  // namespace moe::test
