// The layer as a whole: mixed precisions, threads, dropping, padding, and what must not
// change the result.

#include "core/moe_layer.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>
#include <numeric>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

/// Everything one forward and backward give.
struct LayerRun {
    Tensor output;
    Losses losses;
    MoELayer::Gradients gradients;
    ValueRecorder values;
};

class LayerTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    LayerRun run(MoEConfig config, const TensorMap& parameters, const Tensor& hidden,
                 const Tensor& doutput, const ModuleSpec& spec, const Tensor& mask = {}) {
        config.finalize();
        LayerRun result;
        const RunContext context{.observer = &result.values};
        MoELayer layer(config, spec, parameters);
        auto forward = layer.forward(hidden, mask, context);
        result.output = forward.output;
        result.losses = forward.losses;
        result.gradients = layer.backward(doutput, forward.saved, context);
        return result;
    }
    LayerRun run(const MoEConfig& config, const TensorMap& parameters,
                 const Tensor& hidden, const Tensor& doutput, const Tensor& mask = {}) {
        return run(config, parameters, hidden, doutput, ModuleSpec::uniform(GetParam()),
                   mask);
    }
    static TensorMap parameters_of(MoEConfig config) {
        config.finalize();
        return random_parameters(config, 7);
    }
};

void expect_close(const LayerRun& got, const LayerRun& expected, double bound) {
    EXPECT_TRUE(Close(got.output, expected.output, bound));
    EXPECT_TRUE(
        Close(got.gradients.hidden_states, expected.gradients.hidden_states, bound));
    for (const auto& [name, gradient] : expected.gradients.parameters)
        EXPECT_TRUE(Close(got.gradients.parameters.at(name), gradient, bound)) << name;
}

/// Everything on, with odd sizes: S 43, B 3.
MoEConfig rich_config() {
    MoEConfig c = small_config(20, 10, 3, 13);
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    c.moe_router_num_groups = 5;
    c.moe_router_group_topk = 2;
    c.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss"};
    c.moe_aux_loss_coeff = {0.1, 0.2};
    c.moe_z_loss_coeff = 0.01;
    c.moe_shared_expert_intermediate_size = 9;
    c.moe_shared_expert_gate = true;
    c.moe_expert_capacity_factor = 1.1;
    return c;
}
const Shape kShape = {43, 3, 20};

// Every mix of the tier's own precision and the fp64 reference over the four components.
TEST_P(LayerTest, MixesSuppliers) {
    const MoEConfig config = rich_config();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const ComponentSpec reference{"reference_cpu", DType::f64};
    const LayerRun expected =
        run(config, parameters, hidden, doutput, ModuleSpec::uniform(reference));
    for (int mix = 0; mix < 16; ++mix) {
        const auto pick = [&](int bit) {
            return mix & (1 << bit) ? GetParam() : reference;
        };
        const ModuleSpec spec{pick(0), pick(1), pick(2), pick(3)};
        const LayerRun got = run(config, parameters, hidden, doutput, spec);
        EXPECT_EQ(got.output.dtype(), spec.dispatcher.dtype);
        EXPECT_EQ(got.gradients.parameters.at("experts.linear_fc1.weight").dtype(),
                  spec.experts.dtype);
        expect_close(got, expected, bound_of(GetParam()));
    }
}

TEST_P(LayerTest, RaisesTheRouterToItsDtype) {
    MoEConfig config = rich_config();
    config.moe_router_dtype = "fp64";
    config.finalize();
    const MoELayer layer(config, ModuleSpec::uniform(GetParam()), parameters_of(config));
    EXPECT_EQ(layer.spec().router.dtype, DType::f64);
    EXPECT_EQ(layer.spec().experts.dtype, GetParam().dtype);
}

TEST_P(LayerTest, GivesTheSameBitsWithAnyNumberOfThreads) {
#ifdef _OPENMP
    // Over 512 rows for one expert, so that its rows are cut into several blocks.
    MoEConfig config = rich_config();
    config.num_moe_experts = 2;
    config.moe_router_topk = 2;
    config.moe_router_num_groups.reset();
    config.moe_router_group_topk.reset();
    config.add_bias_linear = true;
    config.moe_shared_expert_intermediate_size.reset();
    const Shape shape = {211, 3, 20};
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(shape, 1), doutput = random_tensor(shape, 2);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const LayerRun one = run(config, parameters, hidden, doutput);
    for (int count : {2, 3, 8}) {
        omp_set_num_threads(count);
        const LayerRun many = run(config, parameters, hidden, doutput);
        EXPECT_TRUE(BitwiseEqual(many.output, one.output));
        for (const auto& [name, value] : one.values.values)
            EXPECT_TRUE(BitwiseEqual(many.values.at(name), value)) << name;
        for (const auto& [name, gradient] : one.gradients.parameters)
            EXPECT_TRUE(BitwiseEqual(many.gradients.parameters.at(name), gradient))
                << name;
        EXPECT_EQ(many.losses, one.losses);
    }
    omp_set_num_threads(threads);
#else
    GTEST_SKIP() << "built without OpenMP";
#endif
}

TEST_P(LayerTest, ComputesEachTokenByItself) {
    MoEConfig config = rich_config();
    config.moe_expert_capacity_factor.reset();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor({17, 1, 20}, 1),
                 doutput = random_tensor({17, 1, 20}, 2);
    const LayerRun all = run(config, parameters, hidden, doutput);
    const auto together = to_doubles(all.output);
    for (std::int64_t t = 0; t < 17; ++t) {
        const auto row_of = [&](const Tensor& tensor) {
            const float* row = tensor.data<float>() + t * 20;
            return Tensor::from<float>({1, 1, 20}, {row, row + 20});
        };
        const LayerRun alone = run(config, parameters, row_of(hidden), row_of(doutput));
        const Tensor expected = Tensor::from<double>(
            {1, 1, 20}, {together.begin() + t * 20, together.begin() + (t + 1) * 20});
        EXPECT_TRUE(Close(alone.output, expected, bound_of(GetParam()))) << t;
    }
}

TEST_P(LayerTest, FollowsItsExpertsWhenTheyAreRenamed) {
    MoEConfig config = small_config(8, 5, 2, 6);
    const TensorMap parameters = parameters_of(config);
    const std::vector<std::int64_t> order = {3, 0, 4, 1, 2};  // new expert e was order[e]
    TensorMap renamed;
    for (const auto& [name, tensor] : parameters) {
        renamed[name] = tensor.clone();
        const std::int64_t size = tensor.numel() / 5;
        for (std::int64_t e = 0; e < 5; ++e)
            std::copy_n(tensor.data<float>() + order[e] * size, size,
                        renamed[name].data<float>() + e * size);
    }
    const Tensor hidden = random_tensor({19, 2, 8}, 1),
                 doutput = random_tensor({19, 2, 8}, 2);
    const LayerRun before = run(config, parameters, hidden, doutput);
    const LayerRun after = run(config, renamed, hidden, doutput);
    EXPECT_TRUE(Close(after.output, before.output, bound_of(GetParam())));
    const auto old_counts = to_doubles(before.values.at("tokens_per_expert"));
    const auto new_counts = to_doubles(after.values.at("tokens_per_expert"));
    for (std::int64_t e = 0; e < 5; ++e) EXPECT_EQ(new_counts[e], old_counts[order[e]]);
    EXPECT_EQ(std::accumulate(old_counts.begin(), old_counts.end(), 0.0), 38.0 * 2);
}

TEST_P(LayerTest, PadsWithoutChangingAnything) {
    for (const char* policy : {"probs", "position"}) {
        MoEConfig config = rich_config();
        config.moe_expert_capacity_factor = 0.6;
        config.moe_token_drop_policy = policy;
        const TensorMap parameters = parameters_of(config);
        const Tensor hidden = random_tensor(kShape, 1),
                     doutput = random_tensor(kShape, 2);
        const LayerRun dropped = run(config, parameters, hidden, doutput);
        config.moe_pad_expert_input_to_capacity = true;
        const LayerRun padded = run(config, parameters, hidden, doutput);
        expect_close(padded, dropped, bound_of(GetParam()));
        const double capacity = double(get_capacity(config, 43 * 3));
        for (double count : to_doubles(padded.values.at("tokens_per_expert")))
            EXPECT_EQ(count, capacity);
        for (double count : to_doubles(dropped.values.at("tokens_per_expert")))
            EXPECT_LE(count, capacity);
    }
}

TEST_P(LayerTest, GivesZeroForATokenThatEveryExpertDrops) {
    MoEConfig config = small_config(8, 4, 2, 6);
    config.moe_expert_capacity_factor = 0.0;
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor({5, 1, 8}, 1);
    const LayerRun all_dropped = run(config, parameters, hidden, hidden);
    for (double value : to_doubles(all_dropped.output)) EXPECT_EQ(value, 0.0);
    for (double value : to_doubles(all_dropped.gradients.hidden_states))
        EXPECT_EQ(value, 0.0);
}

TEST_P(LayerTest, TreatsMaskedTokensAsAbsentInLossesOnly) {
    MoEConfig config = rich_config();
    config.moe_expert_capacity_factor.reset();
    config.moe_shared_expert_intermediate_size.reset();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor({12, 1, 20}, 1),
                 doutput = random_tensor({12, 1, 20}, 2);
    const auto head = [](const Tensor& tensor) {
        return Tensor::from<float>({7, 1, 20},
                                   {tensor.data<float>(), tensor.data<float>() + 140});
    };
    const Tensor mask =
        Tensor::from<std::uint8_t>({1, 12}, {0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1});
    const LayerRun masked = run(config, parameters, hidden, doutput, mask);
    const LayerRun truncated = run(config, parameters, head(hidden), head(doutput));
    for (const auto& [name, loss] : truncated.losses)
        EXPECT_DOUBLE_EQ(masked.losses.at(name), loss) << name;
    const auto all = to_doubles(masked.values.at("probs"));
    EXPECT_EQ(std::vector<double>(all.begin(), all.begin() + 70),
              to_doubles(truncated.values.at("probs")));
    // The padded ones are routed all the same.
    EXPECT_EQ(std::accumulate(all.begin() + 70, all.end(), 0.0) > 4.9, true);
}

TEST_P(LayerTest, UpdatesTheExpertBiasFromAllMicroBatches) {
    MoEConfig config = small_config(2, 2, 1, 4);
    config.moe_router_score_function = "sigmoid";
    config.moe_router_enable_expert_bias = true;
    config.moe_router_bias_update_rate = 0.125;
    config.finalize();
    TensorMap parameters = random_parameters(config, 1);
    parameters["router.weight"] = Tensor::from<float>({2, 2}, {1, 0, 0, 1});
    parameters["router.expert_bias"] = Tensor::zeros({2}, DType::f32);
    MoELayer layer(config, ModuleSpec::uniform(GetParam()), parameters);
    const Tensor first = Tensor::from<float>({1, 1, 2}, {2, 0});
    const Tensor second = Tensor::from<float>({1, 1, 2}, {0, 2});
    const Tensor padding = Tensor::from<std::uint8_t>({1, 1}, {1});
    using Values = std::vector<double>;

    for (int i = 0; i < 3; ++i) layer.forward(first, {}, {});
    layer.forward(second, {}, {});
    // Neither padding nor evaluation counts; two of either would make it even.
    for (int i = 0; i < 2; ++i) layer.forward(second, padding, {});
    for (int i = 0; i < 2; ++i) layer.forward(second, {}, {.training = false});
    EXPECT_EQ(to_doubles(layer.update_expert_bias()), (Values{-0.125, 0.125}));
    layer.forward(first, {}, {});
    layer.forward(second, {}, {});
    EXPECT_EQ(to_doubles(layer.update_expert_bias()), (Values{-0.125, 0.125}));
}

TEST_P(LayerTest, LeavesTheExpertBiasAloneWhenPadding) {
    MoEConfig config = rich_config();
    config.moe_pad_expert_input_to_capacity = true;
    config.finalize();
    const TensorMap parameters = random_parameters(config, 1);
    MoELayer layer(config, ModuleSpec::uniform(GetParam()), parameters);
    layer.forward(random_tensor(kShape, 1), {}, {});
    EXPECT_TRUE(
        BitwiseEqual(layer.update_expert_bias(), parameters.at("router.expert_bias")));
}

TEST_P(LayerTest, TakesNoTokens) {
    MoEConfig config = rich_config();
    const TensorMap parameters = parameters_of(config);
    const Tensor nothing = Tensor::zeros({0, 3, 20}, DType::f32);
    const LayerRun none = run(config, parameters, nothing, nothing);
    EXPECT_EQ(none.output.shape(), (Shape{0, 3, 20}));
    for (const auto& [name, gradient] : none.gradients.parameters)
        for (double value : to_doubles(gradient)) ASSERT_EQ(value, 0.0) << name;
}

TEST_P(LayerTest, NamesWhatIsWrongWithItsInput) {
    MoEConfig config = rich_config();
    const TensorMap parameters = parameters_of(config);
    const Tensor good = random_tensor(kShape, 1);
    const auto rejects = [&](const Tensor& hidden, const Tensor& doutput,
                             const Tensor& mask,
                             const std::vector<std::string>& fragments) {
        return Rejects([&] { run(config, parameters, hidden, doutput, mask); },
                       fragments);
    };
    EXPECT_TRUE(rejects(random_tensor({43, 3, 19}, 1), good, {},
                        {"hidden_states", "(43, 3, 19)", "(43, 3, 20)"}));
    EXPECT_TRUE(
        rejects(random_tensor({43, 60}, 1), good, {}, {"hidden_states", "(43, 60)"}));
    EXPECT_TRUE(rejects(good, random_tensor({43, 2, 20}, 1), {}, {"grad_output"}));
    EXPECT_TRUE(rejects(good, good, Tensor::zeros({43, 3}, DType::u8), {"padding_mask"}));
    EXPECT_TRUE(
        rejects(good, good, Tensor::zeros({3, 43}, DType::f32), {"padding_mask"}));
    Tensor nan = good.clone();
    nan.data<float>()[5 * 20] = NAN;
    EXPECT_TRUE(rejects(nan, good, {}, {"logits[token 5", "finite"}));
    TensorMap missing = parameters;
    missing.erase("experts.linear_fc1.weight");
    EXPECT_TRUE(Rejects([&] { run(config, missing, good, good); },
                        {"experts.linear_fc1.weight = absent", "(10, 26, 20)"}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, LayerTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
