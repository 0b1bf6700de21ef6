// The micro-batches of one optimizer step: what one batch of all their tokens would give,
// where the layer looks at each token by itself; and sums, means and scales.

#include "core/micro_batches.h"

#include <algorithm>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

struct Part {
    Tensor hidden, doutput;  // (S, B, H)
};

struct Step {
    std::vector<Tensor> outputs, d_hidden;
    TensorMap main_grads;
    Losses means;
    UpdatedBuffers updated;
};

Step run_step(const MoEConfig& config, const ComponentSpec& supplier,
              const TensorMap& parameters, const std::vector<Part>& parts,
              bool training = true) {
    MoELayer layer(config, ModuleSpec::uniform(supplier), parameters);
    const auto count = std::int64_t(parts.size());
    const RunContext context{
        .training = training,
        .main_loss_backward_scale = main_loss_backward_scale(config, count)};
    Step step;
    for (const Part& part : parts) {
        const auto forward = layer.forward(part.hidden, {}, context);
        const auto gradients = layer.backward(part.doutput, forward.saved, context);
        step.outputs.push_back(forward.output);
        step.d_hidden.push_back(gradients.hidden_states);
        add_to_means(step.means, forward.losses.read(), count);
        add_to_main_grads(step.main_grads, gradients.parameters);
    }
    step.updated = finish_optimizer_step(layer);
    return step;
}

/// Sequences of the parts one behind the other: B = 1.
Tensor joined(const std::vector<Part>& parts, Tensor Part::*which) {
    std::vector<double> values;
    std::int64_t S = 0;
    for (const Part& part : parts) {
        S += (part.*which).dim(0);
        const std::vector<double> more = to_doubles(part.*which);
        values.insert(values.end(), more.begin(), more.end());
    }
    const std::int64_t H = (parts[0].*which).dim(2);
    const std::vector<float> floats(values.begin(), values.end());
    return Tensor::from<float>({S, 1, H}, floats);
}

std::vector<Part> random_parts(const std::vector<std::int64_t>& lengths, std::int64_t H) {
    std::vector<Part> parts;
    for (const std::int64_t S : lengths) {
        const auto seed = std::uint64_t(10 * parts.size() + 3);
        parts.push_back(
            {random_tensor({S, 1, H}, seed), random_tensor({S, 1, H}, seed + 1)});
    }
    return parts;
}

/// Names with what is said of each token alone: z-loss, and no capacity.
std::vector<MoEConfig> configs_by_token() {
    MoEConfig plain = small_config(11, 5, 2, 7);
    plain.moe_z_loss_coeff = 0.25;
    MoEConfig biased = small_config(9, 7, 3, 5);
    biased.moe_router_score_function = "sigmoid";
    biased.moe_router_enable_expert_bias = true;
    biased.moe_router_bias_update_rate = 0.5;
    biased.moe_shared_expert_intermediate_size = 6;
    biased.add_bias_linear = false;
    MoEConfig per_token = small_config(13, 6, 1, 3);
    per_token.moe_router_score_function = "sigmoid";
    per_token.moe_z_loss_coeff = 0.125;
    per_token.calculate_per_token_loss = true;
    per_token.moe_latent_size = 5;
    std::vector<MoEConfig> configs = {plain, biased, per_token};
    for (MoEConfig& config : configs) config.finalize();
    return configs;
}

class MicroBatches : public testing::TestWithParam<ComponentSpec> {};

TEST_P(MicroBatches, AddUpToOneBatchOfAllTheirTokens) {
    for (const MoEConfig& config : configs_by_token()) {
        const TensorMap parameters = random_parameters(config, 5);
        const std::int64_t H = config.hidden_size;
        // z-loss is a mean over tokens: of parts of one length it is the mean of theirs
        const auto parts =
            random_parts(config.moe_z_loss_coeff ? std::vector<std::int64_t>{7, 7, 7}
                                                 : std::vector<std::int64_t>{5, 1, 9},
                         H);
        const Part all = {joined(parts, &Part::hidden), joined(parts, &Part::doutput)};
        const Step got = run_step(config, GetParam(), parameters, parts);
        const Step expected = run_step(config, GetParam(), parameters, {all});
        // Both round, and bf16 each part's gradient before it is added
        const double bound = 2.0 * bound_of(GetParam());
        for (const auto& [name, gradient] : expected.main_grads)
            EXPECT_TRUE(Close(got.main_grads.at(name), gradient, bound)) << name;
        EXPECT_EQ(got.means.size(), config.moe_z_loss_coeff ? 1u : 0u);
        for (const auto& [name, loss] : expected.means)
            EXPECT_NEAR(got.means.at(name), loss, 1e-5 * loss) << name;
        if (config.moe_router_enable_expert_bias) {
            EXPECT_TRUE(BitwiseEqual(
                transfer(got.updated.expert_bias, {MemorySpace::host, DType::f32}),
                transfer(expected.updated.expert_bias, {MemorySpace::host, DType::f32})));
        }
    }
}

TEST_P(MicroBatches, LeaveNothingInAnEvaluation) {
    MoEConfig config = small_config(9, 5, 2, 7);
    config.moe_router_score_function = "sigmoid";
    config.moe_router_enable_expert_bias = true;
    config.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss",
                                             "global_aux_loss"};
    config.moe_aux_loss_coeff = {0.5, 0.5, 0.5};
    config.moe_z_loss_coeff = 0.5;
    config.finalize();
    MoEConfig bare = config;
    bare.moe_aux_loss_coeff = {0.0, 0.0, 0.0};
    bare.moe_z_loss_coeff.reset();
    const TensorMap parameters = random_parameters(config, 5);
    const auto parts = random_parts({5, 3}, config.hidden_size);
    const Step got = run_step(config, GetParam(), parameters, parts, false);
    const Step expected = run_step(bare, GetParam(), parameters, parts);
    EXPECT_TRUE(got.means.empty());
    for (std::size_t i = 0; i < parts.size(); ++i) {
        EXPECT_TRUE(BitwiseEqual(got.outputs[i], expected.outputs[i]));
        EXPECT_TRUE(BitwiseEqual(got.d_hidden[i], expected.d_hidden[i]));
    }
    for (const auto& [name, gradient] : expected.main_grads)
        EXPECT_TRUE(BitwiseEqual(got.main_grads.at(name), gradient)) << name;
    const auto host = [](const Tensor& t) {
        return transfer(t, {MemorySpace::host, DType::f32});
    };
    EXPECT_TRUE(BitwiseEqual(host(got.updated.expert_bias),
                             host(parameters.at("router.expert_bias"))));
}

/// Counts of the global loss are those of one step.
TEST_P(MicroBatches, BeginTheNextStepAnew) {
    MoEConfig config = small_config(9, 6, 2, 7);
    config.moe_router_load_balancing_type = {"global_aux_loss"};
    config.moe_aux_loss_coeff = {0.5};
    config.finalize();
    const auto parts = random_parts({5, 3}, config.hidden_size);
    MoELayer layer(config, ModuleSpec::uniform(GetParam()), random_parameters(config, 5));
    const auto losses_of_step = [&] {
        std::vector<double> losses;
        for (const Part& part : parts) {
            auto forward = layer.forward(part.hidden, {}, {});
            losses.push_back(forward.losses.read().at("global_load_balancing_loss"));
        }
        finish_optimizer_step(layer);
        return losses;
    };
    const std::vector<double> first = losses_of_step();
    EXPECT_EQ(losses_of_step(), first);
    EXPECT_NE(first[0], first[1]);
}

INSTANTIATE_TEST_SUITE_P(Tiers, MicroBatches, testing::ValuesIn(available_suppliers()),
                         instance_name);

TEST(MicroBatchSums, AddInOrderAndInFp32) {
    // In bf16 1 would be lost beside 256; in fp32 it is, beside 2^24
    TensorMap grads;
    const auto bf16 = [](double value) {
        return transfer(Tensor::from<double>({1}, {value}),
                        {MemorySpace::host, DType::bf16});
    };
    for (const double value : {256.0, 1.0, 16777216.0, 1.0, -16777216.0})
        add_to_main_grads(grads, {{"g", bf16(value)}});
    EXPECT_EQ(grads.at("g").dtype(), DType::f32);
    // 2^24 + 257 is rounded to even, and one more is lost
    EXPECT_EQ(to_doubles(grads.at("g"))[0], 256.0);
    TensorMap wide;
    for (const double value : {16777216.0, 1.0})
        add_to_main_grads(wide, {{"g", Tensor::from<double>({1}, {value})}});
    EXPECT_EQ(wide.at("g").dtype(), DType::f64);
    EXPECT_EQ(to_doubles(wide.at("g"))[0], 16777217.0);
}

TEST(MicroBatchSums, LeaveTheFirstGradientAsItIs) {
    TensorMap grads;
    const Tensor first = Tensor::from<float>({2}, {1.0f, 2.0f});
    add_to_main_grads(grads, {{"g", first}});
    add_to_main_grads(grads, {{"g", first}});
    EXPECT_EQ(to_doubles(first), (std::vector<double>{1.0, 2.0}));
    EXPECT_EQ(to_doubles(grads.at("g")), (std::vector<double>{2.0, 4.0}));
}

TEST(MicroBatchSums, ScaleLossesByTheirNumberUnlessTokensAreCounted) {
    MoEConfig config = small_config();
    config.finalize();
    EXPECT_EQ(main_loss_backward_scale(config, 4), 0.25);
    config.calculate_per_token_loss = true;
    EXPECT_EQ(main_loss_backward_scale(config, 4), 1.0);
}

}  // namespace
}  // namespace moe::test
