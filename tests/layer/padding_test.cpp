// Padding for quantization in the layer as a whole: experts get rows up to a multiple,
// and nothing else changes.

#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

class LayerPadding : public LayerTest {
  protected:
    /// The padded layer against the one that is not, both of these fields. Rows of
    /// probability 0 add zeros to sums, whose other terms keep their order: kernels make
    /// the same bits; Eigen's products may take more rows in other blocks.
    static void expect_only_padding(MoEConfig config, std::int64_t multiple) {
        const TensorMap parameters = parameters_of(config);
        const Tensor hidden = random_tensor(kShape, 1),
                     doutput = random_tensor(kShape, 2);
        const LayerRun plain = run(config, parameters, hidden, doutput);
        config.moe_router_padding_for_quantization = true;
        const LayerRun padded = run(config, parameters, hidden, doutput);

        const Values before = plain.value("tokens_per_expert");
        Values rounded_up = before;
        for (double& count : rounded_up)
            count = std::ceil(count / double(multiple)) * double(multiple);
        EXPECT_NE(rounded_up, before) << "nothing to pad: tests nothing";
        EXPECT_EQ(padded.value("tokens_per_expert"), rounded_up);
        EXPECT_EQ(padded.values.at("dispatched_hidden_states").dim(0),
                  std::int64_t(total(rounded_up)));
        EXPECT_EQ(total(padded.value("dispatched_probs")),
                  total(plain.value("dispatched_probs")));

        const double bound = GetParam().tier == "reference_cpu"
                                 ? (GetParam().dtype == DType::f64 ? 1e-13 : 1e-6)
                                 : 0.0;
        EXPECT_TRUE(Close(padded.output, plain.output, bound));
        EXPECT_TRUE(
            Close(padded.gradients.hidden_states, plain.gradients.hidden_states, bound));
        for (const auto& [name, gradient] : plain.gradients.parameters)
            EXPECT_TRUE(Close(padded.gradients.parameters.at(name), gradient, bound))
                << name;
        EXPECT_EQ(padded.losses, plain.losses);
        EXPECT_TRUE(Close(padded.values.at("d_probs"), plain.values.at("d_probs"), bound))
            << "what fills up is no choice of the router's";
    }
};

TEST_P(LayerPadding, ChangesNothingButTheNumberOfRows) {
    MoEConfig config = dropless(rich_config());
    expect_only_padding(config, 16);
    config.fp8_recipe = "mxfp8";
    config.moe_permute_fusion = true;
    expect_only_padding(config, 32);
}

TEST_P(LayerPadding, ComesAfterDropping) {
    MoEConfig config = rich_config();
    config.moe_expert_capacity_factor = 0.9;
    expect_only_padding(config, 16);
}

TEST_P(LayerPadding, GivesBiasesNoWeight) {
    MoEConfig config = dropless(rich_config());
    config.moe_shared_expert_intermediate_size.reset();
    config.add_bias_linear = true;
    config.activation_func = "quick_gelu";
    config.glu_linear_offset = 1.0;
    expect_only_padding(config, 16);
}

TEST_P(LayerPadding, IsTheSameWithProbabilitiesOnTheInput) {
    MoEConfig config = small_config(kHidden, 5, 1, 13);
    config.moe_router_pre_softmax = config.moe_apply_probs_on_input = true;
    expect_only_padding(config, 16);
}

/// Which tokens fill up carries no meaning, but there is an order: by expert and token,
/// the first that are not there; or, where nobody reads them, none behind the others.
TEST_P(LayerPadding, FillsUpWithTokensThatAreNotThere) {
    MoEConfig config = small_config(kHidden, 7, 2, 6);
    config.moe_router_dtype = "fp32";
    config.moe_router_padding_for_quantization = true;
    const Tensor hidden = random_tensor(kShape, 1);
    const LayerRun got = run(config, parameters_of(config), hidden, hidden);
    Values map = got.value("routing_map"), want;
    const std::int64_t T = kShape[0] * kShape[1], E = 7;
    const bool fused = GetParam().tier == "optimized_gpu";
    for (std::int64_t e = 0; e < E; ++e) {
        std::int64_t count = 0;
        for (std::int64_t t = 0; t < T; ++t) count += map[t * E + e] != 0.0;
        for (std::int64_t t = 0; !fused && t < T && count % 16 != 0; ++t)
            if (map[t * E + e] == 0.0) {
                map[t * E + e] = 1.0;
                ++count;
            }
        for (std::int64_t t = 0; t < T; ++t)
            if (map[t * E + e] != 0.0) want.push_back(double(t));
        for (; count % 16 != 0; ++count) want.push_back(-1.0);
    }
    EXPECT_EQ(got.value("row_token"), want);
}

/// What goes from tier to tier, dense maps and counts, says of the padding what it has
/// to.
TEST(LayerPaddingMixes, ChangeNothingEither) {
    NEEDS_DEVICE();
    available_tiers();
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const std::string in_fp32 = "experts=naive_gpu:fp32,dispatcher=optimized_gpu:fp32";
    for (const std::string& mix : std::vector<std::string>{
             "experts=naive_gpu", in_fp32, "dispatcher=naive_gpu", "router=naive_gpu"}) {
        SCOPED_TRACE(mix);
        const auto run = [&](bool padding) {
            MoEConfig config = small_config(kHidden, 7, 2, 6);
            config.moe_router_padding_for_quantization = padding;
            config.finalize();
            MoELayer layer(config, ModuleSpec::parse(mix, {"optimized_gpu", DType::bf16}),
                           random_parameters(config, 7));
            auto forward = layer.forward(hidden, {}, {});
            auto gradients = layer.backward(doutput, forward.saved, {});
            gradients.parameters["hidden_states"] = gradients.hidden_states;
            gradients.parameters["output"] = forward.output;
            return gradients.parameters;
        };
        const TensorMap plain = run(false), padded = run(true);
        EXPECT_EQ(plain.size(), padded.size());
        for (const auto& [name, tensor] : plain)
            EXPECT_TRUE(BitwiseEqual(padded.at(name), tensor)) << name;
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, LayerPadding, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
