// Routed experts, forward and backward, against the formulas written out, and the layer
// as their weighted sum.

#include <cmath>
#include <numeric>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/layer/experts_support.h"

namespace moe::test {
namespace {

class ExpertsTest : public MlpTest {
  protected:
    /// Forward and backward with `counts` rows per expert.
    void expect_formula(MoEConfig c, const std::vector<std::int64_t>& counts) {
        const std::int64_t E = std::int64_t(counts.size()), H = kHidden;
        c.num_moe_experts = E;
        c.finalize();
        const TensorMap parameters = random_weights(c);
        const std::int64_t N =
            std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
        const Tensor rows = random({N, H}, 18), probs = random_probs(N, 19);
        const Tensor doutput = random({N, H}, 20);
        auto experts = tier().make_experts(c, GetParam().dtype, parameters);
        const auto forward = experts->forward(rows, counts_tensor(counts), probs, {});
        TensorMap gradients;
        const auto back = experts->backward(gradients, doutput, *forward.saved, {});

        description_ = " of " + c.activation_func +
                       (c.gated_linear_unit ? ", gated" : "") +
                       (c.add_bias_linear ? ", bias" : "");
        const Values x = to_doubles(rows), p = to_doubles(probs);
        const Values dy = to_doubles(doutput);
        Values y, dx, dp, dw1, db1, dw2, db2;
        const auto append = [](Values& all, const Values& values) {
            all.insert(all.end(), values.begin(), values.end());
        };
        std::int64_t r = 0;
        on_bound_ = 0;
        for (std::int64_t e = 0; e < E; ++e) {
            Mlp mlp = make_mlp(c, parameters, "experts", kFfn, e, E);
            for (std::int64_t i = 0; i < counts[e]; ++i, ++r) {
                const Mlp::Row got = mlp.run(row(x, r, H), p[r], row(dy, r, H));
                append(y, got.y), append(dx, got.dx), append(dp, {got.dp});
            }
            append(dw1, mlp.dw1), append(db1, mlp.db1);
            append(dw2, mlp.dw2), append(db2, mlp.db2);
            on_bound_ += mlp.on_bound;
            if (counts[e] > 0) continue;
            for (const auto& [name, gradient] : gradients)
                for (double value : part(gradients, name, e, E, gradient.numel() / E))
                    ASSERT_EQ(value, 0.0) << name << " of an expert without rows";
        }

        expect_values(forward.rows, y, "rows", false);
        expect_values(back.drows, dx, "drows");
        expect_values(back.drow_probs, dp, "drow_probs");
        expect_values(gradients.at("experts.linear_fc1.weight"), dw1, "dW1");
        expect_values(gradients.at("experts.linear_fc2.weight"), dw2, "dW2");
        EXPECT_EQ(gradients.size(), c.add_bias_linear ? 4u : 2u);
        if (!c.add_bias_linear) return;
        expect_values(gradients.at("experts.linear_fc1.bias"), db1, "db1");
        expect_values(gradients.at("experts.linear_fc2.bias"), db2, "db2");
    }

    std::int64_t on_bound_ = 0;
};

TEST_P(ExpertsTest, FollowTheFormula) {
    for (const char* name : {"silu", "gelu", "gelu_tanh", "quick_gelu", "squared_relu"})
        for (bool gated : {false, true})
            for (bool bias : {false, true}) {
                MoEConfig c = config();
                c.activation_func = name;
                c.gated_linear_unit = gated;
                c.add_bias_linear = bias;
                expect_formula(c, {3, 0, 7, 1, 2});
                c.glu_linear_offset = -0.75;
                expect_formula(c, {1, 1, 1, 1, 1});
            }
}

TEST_P(ExpertsTest, ClampGatedHalvesAndCountTheBoundAsInside) {
    lattice_ = true;
    for (const char* name : {"silu", "gelu", "gelu_tanh", "quick_gelu", "squared_relu"}) {
        MoEConfig c = config();
        c.activation_func = name;
        c.add_bias_linear = true;
        c.activation_func_clamp_value = 0.5;
        expect_formula(c, {4, 0, 9, 1, 3});
        EXPECT_GT(on_bound_, 5) << "the bound must be met";
        if (name == std::string("silu")) continue;  // Megatron has no offset there
        c.glu_linear_offset = 1.0;
        expect_formula(c, {4, 0, 9, 1, 3});
    }
}

TEST_P(ExpertsTest, ClampNothingWithoutAGate) {
    lattice_ = true;
    MoEConfig c = config();
    c.gated_linear_unit = false;
    c.activation_func_clamp_value = 0.5;
    c.glu_linear_offset = 1.0;
    c.activation_func = "gelu";
    expect_formula(c, {4, 0, 9, 1, 3});
}

TEST_P(ExpertsTest, ScaleTheInputWhenAsked) {
    for (bool bias : {false, true}) {
        MoEConfig c = config();
        c.moe_router_score_function = "sigmoid";
        c.moe_router_topk = 1;
        c.moe_apply_probs_on_input = true;
        c.add_bias_linear = bias;
        expect_formula(c, {3, 0, 7, 1, 2});
    }
}

TEST_P(ExpertsTest, TakeAnyLoad) {
    MoEConfig c = config();
    c.add_bias_linear = true;
    expect_formula(c, {0, 0, 257, 0, 0});
    // More rows than one block of work holds, on and around its border
    expect_formula(c, {1100, 0, 513, 512, 1});
    expect_formula(c, {0, 0, 0, 0, 1});
    expect_formula(c, {0, 0, 0, 0, 0});
    c.moe_router_score_function = "sigmoid";
    c.moe_router_topk = 1;
    expect_formula(c, {6});
    expect_formula(c, {0});
}

INSTANTIATE_TEST_SUITE_P(Tiers, ExpertsTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

// ---------------------------------------------------------------------------- the layer

class LayerOfExpertsTest : public MlpTest {
  protected:
    /// y_t = Σ_e p_te FFN_e(x_t) + shared_t in plain loops, given what the router chose
    /// and the shared experts gave. Returns the tokens of each expert.
    Values expect_sum(MoEConfig c, const Shape& shape, const TensorMap& changed = {}) {
        c.finalize();
        TensorMap parameters = random_parameters(c, 7);
        for (const auto& [name, tensor] : changed) parameters[name] = tensor;
        const Tensor hidden = random_tensor(shape, 1);
        ValueRecorder values;
        MoELayer layer(c, ModuleSpec::uniform(GetParam()), parameters);
        const Tensor output = layer.forward(hidden, {}, {.observer = &values}).output;

        const std::int64_t E = c.num_experts(), T = shape[0] * shape[1], H = kHidden;
        const Values x = to_doubles(hidden), probs = to_doubles(values.at("probs"));
        Values y(T * H);
        if (c.shared_ffn() > 0) y = to_doubles(values.at("shared_output"));
        for (std::int64_t e = 0; e < E; ++e) {
            Mlp mlp = make_mlp(c, parameters, "experts", kFfn, e, E);
            for (std::int64_t t = 0; t < T; ++t) {
                if (probs[t * E + e] == 0.0) continue;
                const auto got = mlp.run(row(x, t, H), probs[t * E + e], Values(H));
                for (std::int64_t j = 0; j < H; ++j) y[t * H + j] += got.y[j];
            }
        }
        EXPECT_TRUE(Close(output, Tensor::from(shape, y), bound_of(GetParam())));
        return to_doubles(values.at("tokens_per_expert"));
    }
};

TEST_P(LayerOfExpertsTest, IsTheirWeightedSum) {
    MoEConfig c = config();
    c.add_bias_linear = true;
    expect_sum(c, {257, 1, kHidden});
    expect_sum(c, {1, 1, kHidden});
    c.moe_router_topk = 5;
    EXPECT_EQ(expect_sum(c, {7, 3, kHidden}), Values(5, 21.0));

    // All tokens on one expert, with the router bias alone to blame; then only one expert
    c.moe_router_topk = 1;
    c.moe_router_score_function = "sigmoid";
    const Tensor bias = Tensor::from<float>({5}, {0, 0, 100, 0, 0});
    EXPECT_EQ(expect_sum(c, {7, 3, kHidden}, {{"router.bias", bias}}),
              (Values{0, 0, 21, 0, 0}));
    c.num_moe_experts = 1;
    EXPECT_EQ(expect_sum(c, {7, 3, kHidden}), Values{21});
}

TEST_P(LayerOfExpertsTest, IsTheirWeightedSumWithAllElseOn) {
    MoEConfig c = config();
    c.moe_router_score_function = "sqrtsoftplus";
    c.moe_router_topk_scaling_factor = 2.5;
    c.activation_func = "quick_gelu";
    c.glu_linear_offset = 1.0;
    c.moe_shared_expert_intermediate_size = 9;
    c.moe_shared_expert_gate = true;
    expect_sum(c, {43, 3, kHidden});
    c.moe_expert_capacity_factor = 0.7;
    const Values counts = expect_sum(c, {43, 3, kHidden});
    EXPECT_LT(std::accumulate(counts.begin(), counts.end(), 0.0), 43 * 3 * 2);
    c.moe_pad_expert_input_to_capacity = true;
    EXPECT_EQ(expect_sum(c, {43, 3, kHidden}),
              Values(5, std::ceil(43 * 3 * 2 / 5.0 * 0.7)));
}

INSTANTIATE_TEST_SUITE_P(Tiers, LayerOfExpertsTest,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
