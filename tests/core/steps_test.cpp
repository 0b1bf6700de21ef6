// The twenty steps and what they cost; the layer's parameters.

#include "core/steps.h"

#include <cmath>
#include <set>
#include <sstream>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

TEST(Steps, AreTwentyAndUndoOneAnother) {
    const std::string all = "①②③④⑤⑥⑦⑧⑨⑩⑪⑫⑬⑭⑮⑯⑰⑱⑲⑳";  // three bytes each
    std::set<std::string> titles;
    for (int n = 1; n <= kNumSteps; ++n) {
        EXPECT_EQ(circled(static_cast<Step>(n)), all.substr(3 * (n - 1), 3));
        titles.insert(title(static_cast<Step>(n)));
        EXPECT_EQ(is_backward(static_cast<Step>(n)), n > 10);
    }
    EXPECT_EQ(titles.size(), 20u);
    const std::vector<std::pair<Step, Step>> mirrored = {
        {Step::shared_experts, Step::shared_experts_backward},
        {Step::gating, Step::gating_backward},
        {Step::routing, Step::routing_backward},
        {Step::token_dropping, Step::token_dropping_backward},
        {Step::auxiliary_losses, Step::auxiliary_losses_backward},
        {Step::dispatch, Step::dispatch_backward},
        {Step::fc1, Step::fc1_backward},
        {Step::activation, Step::activation_backward},
        {Step::fc2, Step::fc2_backward},
        {Step::combine, Step::combine_backward}};
    for (const auto& [forward, backward] : mirrored)
        EXPECT_EQ(static_cast<int>(forward) + static_cast<int>(backward), 21);
}

TEST(Steps, AreTimedToTheEndOfTheirScope) {
    struct Clock : Observer {
        void on_time(const Steps& taken, double seconds) override {
            steps.push_back(taken.first);
            total += seconds;
        }
        std::vector<Step> steps;
        double total = 0.0;
    } clock;
    const RunContext context{.observer = &clock}, unwatched;
    {
        StepTimer timer(context, Step::fc2);
        StepTimer nobody_looks(unwatched, Step::fc1);
        EXPECT_TRUE(clock.steps.empty());
        const auto start = std::chrono::steady_clock::now();
        while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(2)) {
        }
    }
    EXPECT_EQ(clock.steps, std::vector<Step>{Step::fc2});
    EXPECT_GE(clock.total, 0.002);
}

TEST(Steps, InterruptTheStepAroundThem) {
    struct Clock : Observer {
        void on_time(const Steps& taken, double seconds) override {
            steps.push_back(taken.first);
            total += seconds;
        }
        std::vector<Step> steps;
        double total = 0.0;
    } clock;
    const RunContext context{.observer = &clock};
    const auto start = std::chrono::steady_clock::now();
    {
        StepTimer outer(context, Step::dispatch);
        {
            StepTimer inner(context, Step::shared_experts);
            while (std::chrono::steady_clock::now() - start <
                   std::chrono::milliseconds(2)) {
            }
        }
    }
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    EXPECT_EQ(clock.steps,
              (std::vector<Step>{Step::dispatch, Step::shared_experts, Step::dispatch}));
    EXPECT_GE(clock.total, 0.002);
    EXPECT_LE(clock.total, passed.count()) << "the inner step counted twice";
}

TEST(Parameters, HaveTheShapesOfTheirConfig) {
    using Shapes = std::map<std::string, Shape>;
    MoEConfig c = small_config(20, 5, 2, 13);
    c.finalize();
    EXPECT_EQ(parameter_shapes(c), (Shapes{{"router.weight", {5, 20}},
                                           {"experts.linear_fc1.weight", {5, 26, 20}},
                                           {"experts.linear_fc2.weight", {5, 20, 13}}}));
    c.gated_linear_unit = false;
    c.add_bias_linear = true;
    EXPECT_EQ(parameter_shapes(c), (Shapes{{"router.weight", {5, 20}},
                                           {"router.bias", {5}},
                                           {"experts.linear_fc1.weight", {5, 13, 20}},
                                           {"experts.linear_fc1.bias", {5, 13}},
                                           {"experts.linear_fc2.weight", {5, 20, 13}},
                                           {"experts.linear_fc2.bias", {5, 20}}}));
    c.moe_latent_size = 8;
    EXPECT_EQ(parameter_shapes(c), (Shapes{{"router.weight", {5, 20}},
                                           {"router.bias", {5}},
                                           {"fc1_latent_proj.weight", {8, 20}},
                                           {"fc1_latent_proj.bias", {8}},
                                           {"fc2_latent_proj.weight", {20, 8}},
                                           {"fc2_latent_proj.bias", {20}},
                                           {"experts.linear_fc1.weight", {5, 13, 8}},
                                           {"experts.linear_fc1.bias", {5, 13}},
                                           {"experts.linear_fc2.weight", {5, 8, 13}},
                                           {"experts.linear_fc2.bias", {5, 8}}}));
    c = small_config(20, 5, 2, 13);
    c.moe_shared_expert_intermediate_size = 3;
    c.moe_shared_expert_gate = true;
    c.moe_router_enable_expert_bias = true;
    c.moe_router_score_function = "sigmoid";
    c.finalize();
    EXPECT_EQ(parameter_shapes(c), (Shapes{{"router.weight", {5, 20}},
                                           {"router.expert_bias", {5}},
                                           {"experts.linear_fc1.weight", {5, 26, 20}},
                                           {"experts.linear_fc2.weight", {5, 20, 13}},
                                           {"shared_experts.linear_fc1.weight", {6, 20}},
                                           {"shared_experts.linear_fc2.weight", {20, 3}},
                                           {"shared_experts.gate_weight", {1, 20}}}));
}

TEST(Parameters, AreCheckedByNameShapeAndType) {
    MoEConfig c = small_config(20, 5, 2, 13);
    c.moe_router_enable_expert_bias = true;
    c.moe_router_score_function = "sigmoid";
    c.finalize();
    const TensorMap good = random_parameters(c, 1);
    const auto rejects = [&](const std::string& name, const Tensor& tensor,
                             const std::vector<std::string>& words) {
        TensorMap parameters = good;
        parameters[name] = tensor;
        return Rejects([&] { check_parameters(c, parameters, "f"); }, words);
    };
    EXPECT_TRUE(rejects("router.weight", Tensor::zeros({20, 5}, DType::f32),
                        {"f: router.weight = shape (20, 5)", "(5, 20)"}));
    EXPECT_TRUE(rejects("router.weight", Tensor::zeros({5, 20}, DType::u8),
                        {"f: router.weight = uint8", "fp64, fp32 or bf16"}));
    EXPECT_TRUE(rejects("router.expert_bias", Tensor::zeros({4}, DType::f32),
                        {"f: router.expert_bias = shape (4)", "(5)"}));

    TensorMap parameters = good;
    parameters["somebody.else"] = Tensor::zeros({3}, DType::u8);
    parameters.erase("router.expert_bias");
    EXPECT_NO_THROW(check_parameters(c, parameters, ""));
    parameters.erase("experts.linear_fc2.weight");
    EXPECT_TRUE(Rejects([&] { check_parameters(c, parameters, ""); },
                        {"experts.linear_fc2.weight = absent", "(5, 20, 13)"}));
}

TEST(Parameters, AreSeededAndExactInBf16) {
    MoEConfig c = small_config(20, 5, 2, 13);
    c.add_bias_linear = true;
    c.finalize();
    const TensorMap parameters = random_parameters(c, 1), again = random_parameters(c, 1);
    const TensorMap others = random_parameters(c, 2);
    EXPECT_EQ(parameters.size(), parameter_shapes(c).size());
    for (const auto& [name, tensor] : parameters) {
        EXPECT_EQ(tensor.shape(), parameter_shapes(c).at(name)) << name;
        EXPECT_TRUE(BitwiseEqual(tensor, again.at(name)));
        EXPECT_FALSE(BitwiseEqual(tensor, others.at(name)));
        const Tensor bf16 = transfer(tensor, {MemorySpace::host, DType::bf16});
        EXPECT_TRUE(
            BitwiseEqual(transfer(bf16, {MemorySpace::host, DType::f32}), tensor));
    }
    // Tensors of one seed are independent of each other, not the same stream twice.
    EXPECT_NE(to_doubles(parameters.at("router.bias"))[0],
              to_doubles(parameters.at("experts.linear_fc1.bias"))[0]);
}

TEST(Parameters, AreScaledByTheirFanIn) {
    MoEConfig c = small_config(400, 9, 2, 100);
    c.add_bias_linear = true;
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    c.finalize();
    const TensorMap parameters = random_parameters(c, 1);
    const auto expect_deviation = [&](const std::string& name, double expected) {
        const auto values = to_doubles(parameters.at(name));
        double squares = 0.0;
        for (double value : values) squares += value * value;
        const double count = double(values.size());
        // Five standard errors of a standard deviation.
        EXPECT_NEAR(std::sqrt(squares / count), expected,
                    5.0 * expected / std::sqrt(2.0 * count))
            << name;
    };
    expect_deviation("router.weight", 1.0 / 20.0);
    expect_deviation("experts.linear_fc1.weight", 1.0 / 20.0);
    expect_deviation("experts.linear_fc2.weight", 1.0 / 10.0);
    expect_deviation("experts.linear_fc1.bias", 0.1);
    expect_deviation("router.bias", 0.1);
    expect_deviation("router.expert_bias", 0.01);
    c.moe_router_load_balancing_type = {"quantile_balancing"};
    EXPECT_EQ(parameter_shapes(c).at("router.qb_beta"), (Shape{9}));
    EXPECT_EQ(random_parameters(c, 1).count("router.qb_beta"), 1u);
    EXPECT_TRUE(is_buffer("router.qb_beta") && is_buffer("router.expert_bias"));
    EXPECT_FALSE(is_buffer("router.bias"));
}

}  // namespace
}  // namespace moe::test
