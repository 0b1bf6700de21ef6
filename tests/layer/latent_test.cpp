// The two projections around the dispatch: what they take and give, by loops in fp64 over
// what the layer shows on its way.

#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kLatent = 9, kTokens = 43 * 3;

MoEConfig latent_config() {
    MoEConfig c = rich_config();
    c.moe_latent_size = kLatent;
    return c;
}

/// Shared experts have no biases; these have.
MoEConfig biased_config() {
    MoEConfig c = latent_config();
    c.moe_shared_expert_intermediate_size.reset();
    c.moe_shared_expert_gate = false;
    c.add_bias_linear = true;
    return c;
}

/// y = x Wᵀ (+ b) + added: x (T, in), W (out, in).
Tensor project(const Tensor& x, const Tensor& weight, const Values& bias,
               const Values& added) {
    const std::int64_t out = weight.dim(0), in = weight.dim(1), T = x.numel() / in;
    const Values a = to_doubles(x), w = to_doubles(weight);
    Values y = added.empty() ? Values(T * out) : added;
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t o = 0; o < out; ++o) {
            if (!bias.empty()) y[t * out + o] += bias[o];
            for (std::int64_t i = 0; i < in; ++i)
                y[t * out + o] += w[o * in + i] * a[t * in + i];
        }
    return Tensor::from<double>({T, out}, y);
}

/// (R, C) as (C, R).
Tensor transposed(const Tensor& tensor) {
    const std::int64_t R = tensor.dim(0), C = tensor.dim(1);
    const Values from = to_doubles(tensor);
    Values to(from.size());
    for (std::int64_t r = 0; r < R; ++r)
        for (std::int64_t c = 0; c < C; ++c) to[c * R + r] = from[r * C + c];
    return Tensor::from<double>({C, R}, to);
}

class LatentTest : public LayerTest {
  protected:
    static void expect_shown(const LayerRun& run, const std::string& name,
                             const Tensor& expected, bool gradient) {
        EXPECT_TRUE(
            Close(run.values.at(name), expected, tier_bound(GetParam().dtype, gradient)))
            << name;
    }
};

TEST_P(LatentTest, ProjectsWhatIsDispatchedAndWhatIsCombined) {
    for (const MoEConfig& config : {latent_config(), biased_config()}) {
        const TensorMap parameters = parameters_of(config);
        const Tensor hidden = random_tensor(kShape, 1),
                     doutput = random_tensor(kShape, 2);
        const LayerRun got = run(config, parameters, hidden, doutput);
        const Tensor &down = parameters.at("fc1_latent_proj.weight"),
                     &up = parameters.at("fc2_latent_proj.weight");
        const auto bias = [&](const char* name) {
            return config.add_bias_linear ? to_doubles(parameters.at(name)) : Values();
        };
        const Tensor x = hidden.reshaped({kTokens, kHidden}),
                     dy = doutput.reshaped({kTokens, kHidden});

        // ⑥ and ⑩; the shared experts' output is added behind the projection
        expect_shown(got, "latent_hidden_states",
                     project(x, down, bias("fc1_latent_proj.bias"), {}), false);
        const bool shared = config.moe_shared_expert_intermediate_size.has_value();
        const Tensor& combined = got.values.at("latent_output");
        EXPECT_EQ(combined.shape(), (Shape{kTokens, kLatent}));
        expect_shown(got, "output",
                     project(combined, up, bias("fc2_latent_proj.bias"),
                             shared ? got.value("shared_output") : Values()),
                     false);
        EXPECT_TRUE(BitwiseEqual(got.output.reshaped({kTokens, kHidden}),
                                 got.values.at("output")));
        EXPECT_EQ(got.values.at("dispatched_hidden_states").dim(1), kLatent);

        // ⑪ and ⑮
        expect_shown(got, "d_latent_output", project(dy, transposed(up), {}, {}), true);
        const Tensor& dlatent = got.values.at("d_latent_hidden_states");
        expect_shown(got, "d_hidden_states_routed",
                     project(dlatent, transposed(down), {}, {}), true);
        TensorMap expected = {{"fc1_latent_proj.weight",
                               project(transposed(dlatent), transposed(x), {}, {})},
                              {"fc2_latent_proj.weight",
                               project(transposed(dy), transposed(combined), {}, {})}};
        if (config.add_bias_linear) {
            const Tensor ones = Tensor::from<double>({1, kTokens}, Values(kTokens, 1.0));
            expected["fc1_latent_proj.bias"] =
                project(ones, transposed(dlatent), {}, {}).reshaped({kLatent});
            expected["fc2_latent_proj.bias"] =
                project(ones, transposed(dy), {}, {}).reshaped({kHidden});
        }
        TensorMap gradients;
        for (const auto& [name, gradient] : got.gradients.parameters)
            if (name.find("latent") != std::string::npos) gradients[name] = gradient;
        expect_close(gradients, expected);
    }
}

// The experts' supplier projects; the others may be anybody's.
TEST_P(LatentTest, MixesSuppliers) {
    MoEConfig config = latent_config();
    config.finalize();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const ComponentSpec reference{"reference_cpu", DType::f64};
    MoELayer fp64(config, ModuleSpec::uniform(reference), parameters);
    const LayerRun expected = run(fp64, hidden, doutput);
    for (int mix = 0; mix < 8; ++mix) {
        SCOPED_TRACE(mix);
        const auto pick = [&](int bit) {
            return mix & (1 << bit) ? GetParam() : reference;
        };
        const ModuleSpec spec{GetParam(), pick(0), pick(1), pick(2)};
        MoELayer mixed(config, spec, parameters);
        const LayerRun got = run(mixed, hidden, doutput);
        EXPECT_EQ(got.output.dtype(), spec.dispatcher.dtype);
        EXPECT_EQ(got.gradients.parameters.at("fc2_latent_proj.weight").dtype(),
                  spec.experts.dtype);
        EXPECT_EQ(first_deviation(got, expected, mixed.spec().coarsest_dtype()), "");
        expect_close(got, expected);
    }
}

TEST_P(LatentTest, TakesNoTokens) {
    const Tensor nothing = Tensor::zeros({0, 3, kHidden}, DType::f32);
    const LayerRun none =
        run(biased_config(), parameters_of(biased_config()), nothing, nothing);
    EXPECT_EQ(none.output.shape(), (Shape{0, 3, kHidden}));
    EXPECT_EQ(none.gradients.parameters.size(), 10u);
    for (const auto& [name, gradient] : none.gradients.parameters)
        expect_zero(gradient, name);
}

INSTANTIATE_TEST_SUITE_P(Tiers, LatentTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
