// Routed and shared experts, against the formula written out row by row.

#include <cmath>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

double act(const std::string& name, double x) {
    if (name == "silu") return x / (1.0 + std::exp(-x));
    if (name == "quick_gelu") return x / (1.0 + std::exp(-1.702 * x));
    if (name == "gelu") return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
    return x > 0.0 ? x * x : 0.0;
}

/// One parameter as doubles; zeros where the layer has none.
std::vector<double> values_of(const TensorMap& parameters, const std::string& name,
                              std::int64_t count) {
    const auto found = parameters.find(name);
    return found == parameters.end() ? std::vector<double>(count)
                                     : to_doubles(found->second);
}

/// y = W2 (act(W1 x + b1) p) + p b2 for one row of one expert.
std::vector<double> expert_row(const MoEConfig& c, std::int64_t ffn, const double* x,
                               double p, const double* w1, const double* b1,
                               const double* w2, const double* b2) {
    const std::int64_t H = c.hidden_size, Z = c.fc1_rows(ffn);
    const double limit = c.activation_func_clamp_value.value_or(INFINITY);
    std::vector<double> input(x, x + H), h(Z), a(ffn), y(H);
    if (c.moe_apply_probs_on_input) {
        for (double& value : input) value *= p;
        p = 1.0;
    }
    for (std::int64_t z = 0; z < Z; ++z) {
        h[z] = b1[z];
        for (std::int64_t j = 0; j < H; ++j) h[z] += w1[z * H + j] * input[j];
    }
    for (std::int64_t f = 0; f < ffn; ++f)
        a[f] = c.gated_linear_unit
                   ? p * act(c.activation_func, std::min(h[f], limit)) *
                         (std::clamp(h[ffn + f], -limit, limit) + c.glu_linear_offset)
                   : p * act(c.activation_func, h[f]);
    for (std::int64_t j = 0; j < H; ++j) {
        y[j] = p * b2[j];
        for (std::int64_t f = 0; f < ffn; ++f) y[j] += w2[j * ffn + f] * a[f];
    }
    return y;
}

class ExpertsTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static constexpr std::int64_t kHidden = 20, kFfn = 13, kExperts = 5;

    const Tier& tier() { return find_tier("tier", GetParam().tier); }
    Tensor random(const Shape& shape, std::uint64_t seed) {
        return random_tensor_for(GetParam(), shape, seed);
    }

    void expect_formula(const MoEConfig& c, const std::vector<std::int64_t>& counts) {
        const TensorMap parameters = random_parameters(c, 17);
        std::int64_t N = 0;
        for (std::int64_t count : counts) N += count;
        const Tensor rows = random({N, kHidden}, 18), probs = random({N}, 19);
        auto experts = tier().make_experts(c, GetParam().dtype, parameters);
        const auto got =
            experts->forward(rows, Tensor::from({kExperts}, counts), probs, {});

        const std::int64_t Z = c.fc1_rows(kFfn);
        const auto w1 = values_of(parameters, "experts.linear_fc1.weight", 0);
        const auto b1 = values_of(parameters, "experts.linear_fc1.bias", kExperts * Z);
        const auto w2 = values_of(parameters, "experts.linear_fc2.weight", 0);
        const auto b2 =
            values_of(parameters, "experts.linear_fc2.bias", kExperts * kHidden);
        const auto x = to_doubles(rows), p = to_doubles(probs);
        Tensor expected = Tensor::empty({N, kHidden}, DType::f64);
        std::int64_t r = 0;
        for (std::int64_t e = 0; e < kExperts; ++e)
            for (std::int64_t i = 0; i < counts[e]; ++i, ++r) {
                const auto y =
                    expert_row(c, kFfn, &x[r * kHidden], p[r], &w1[e * Z * kHidden],
                               &b1[e * Z], &w2[e * kHidden * kFfn], &b2[e * kHidden]);
                std::copy(y.begin(), y.end(), expected.data<double>() + r * kHidden);
            }
        EXPECT_TRUE(Close(got.rows, expected, bound_of(GetParam())))
            << c.activation_func << (c.gated_linear_unit ? " gated" : "");
    }
};

TEST_P(ExpertsTest, FollowTheFormula) {
    for (const char* name : {"silu", "gelu", "quick_gelu", "squared_relu"})
        for (bool gated : {false, true})
            for (bool bias : {false, true}) {
                MoEConfig c = small_config(kHidden, kExperts, 2, kFfn);
                c.activation_func = name;
                c.gated_linear_unit = gated;
                c.add_bias_linear = bias;
                expect_formula(c, {3, 0, 7, 1, 2});
                c.activation_func_clamp_value = 0.5;
                expect_formula(c, {0, 0, 0, 11, 0});
                if (std::string(name) == "silu") continue;
                c.glu_linear_offset = 1.0;
                expect_formula(c, {1, 1, 1, 1, 1});
            }
}

// More rows than one block of work holds, on and around its border.
TEST_P(ExpertsTest, FollowTheFormulaOverManyRows) {
    MoEConfig c = small_config(kHidden, kExperts, 2, kFfn);
    c.add_bias_linear = true;
    expect_formula(c, {1100, 0, 513, 512, 1});
}

TEST_P(ExpertsTest, ScaleTheInputWhenAsked) {
    MoEConfig c = small_config(kHidden, kExperts, 2, kFfn);
    c.moe_router_topk = 1;
    c.moe_apply_probs_on_input = true;
    c.add_bias_linear = true;
    expect_formula(c, {3, 0, 7, 1, 2});
}

TEST_P(ExpertsTest, GiveZeroWeightGradientsWithoutRows) {
    const MoEConfig c = small_config(kHidden, kExperts, 2, kFfn);
    auto experts = tier().make_experts(c, GetParam().dtype, random_parameters(c, 1));
    for (const std::vector<std::int64_t>& counts :
         {std::vector<std::int64_t>{0, 4, 0, 0, 2}, {0, 0, 0, 0, 0}}) {
        const std::int64_t N = counts[1] + counts[4];
        const auto forward =
            experts->forward(random({N, kHidden}, 2), Tensor::from({kExperts}, counts),
                             random({N}, 3), {});
        TensorMap gradients;
        const auto back =
            experts->backward(gradients, random({N, kHidden}, 4), *forward.saved, {});
        EXPECT_EQ(back.drows.shape(), (Shape{N, kHidden}));
        for (const auto& [name, gradient] : gradients) {
            const auto values = to_doubles(gradient);
            const std::size_t size = values.size() / kExperts;
            for (std::size_t i = 0; i < values.size(); ++i) {
                const bool has_rows = counts[i / size] > 0;
                if (has_rows && i % size != 0) continue;
                ASSERT_EQ(values[i] != 0.0, has_rows) << name << " " << i;
            }
        }
    }
}

TEST_P(ExpertsTest, PassTheGradientOnAClampsBound) {
    // W1 is a multiple of one, so that h equals the row: on, inside and outside the
    // bound.
    MoEConfig c = small_config(1, 1, 1, 1);
    c.moe_router_score_function = "sigmoid";
    c.activation_func = "squared_relu";
    c.activation_func_clamp_value = 2.0;
    const TensorMap parameters = {
        {"experts.linear_fc1.weight", Tensor::from<float>({1, 2, 1}, {1, 1})},
        {"experts.linear_fc2.weight", Tensor::from<float>({1, 1, 1}, {1})}};
    auto experts = tier().make_experts(c, GetParam().dtype, parameters);
    const auto placed = [&](const Tensor& t) {
        return transfer(t, experts->placement());
    };
    const Tensor rows = placed(Tensor::from<float>({3, 1}, {1, 2, 3}));
    const Tensor one = placed(Tensor::from<float>({3}, {1, 1, 1}));
    const auto forward =
        experts->forward(rows, Tensor::from<std::int64_t>({1}, {3}), one, {});
    EXPECT_EQ(to_doubles(forward.rows), (std::vector<double>{1, 8, 8}));
    TensorMap gradients;
    const auto back =
        experts->backward(gradients, one.reshaped({3, 1}), *forward.saved, {});
    // x² x has the slope 3 x²; past the bound both halves rest.
    EXPECT_EQ(to_doubles(back.drows), (std::vector<double>{3, 12, 0}));
}

TEST_P(ExpertsTest, SharedFollowTheFormula) {
    constexpr std::int64_t kTokens = 23;
    for (bool gate : {false, true})
        for (const char* name : {"silu", "gelu", "quick_gelu", "squared_relu"}) {
            MoEConfig c = small_config(kHidden, kExperts, 2, kFfn);
            c.moe_shared_expert_intermediate_size = 9;
            c.moe_shared_expert_gate = gate;
            c.activation_func = name;
            const TensorMap parameters = random_parameters(c, 5);
            const Tensor hidden = random({kTokens, kHidden}, 6);
            auto shared = tier().make_shared_experts(c, GetParam().dtype, parameters);
            const auto got = shared->forward(hidden, {});

            const auto w1 = values_of(parameters, "shared_experts.linear_fc1.weight", 0);
            const auto w2 = values_of(parameters, "shared_experts.linear_fc2.weight", 0);
            const auto g = values_of(parameters, "shared_experts.gate_weight", kHidden);
            const std::vector<double> zero(2 * kHidden), x = to_doubles(hidden);
            Tensor expected = Tensor::empty({kTokens, kHidden}, DType::f64);
            for (std::int64_t t = 0; t < kTokens; ++t) {
                double dot = 0.0;
                for (std::int64_t j = 0; j < kHidden; ++j)
                    dot += x[t * kHidden + j] * g[j];
                const auto u = expert_row(c, 9, &x[t * kHidden], 1.0, w1.data(),
                                          zero.data(), w2.data(), zero.data());
                for (std::int64_t j = 0; j < kHidden; ++j)
                    expected.data<double>()[t * kHidden + j] =
                        gate ? u[j] / (1.0 + std::exp(-dot)) : u[j];
            }
            EXPECT_TRUE(Close(got.output, expected, bound_of(GetParam())))
                << name << gate;
        }
}

INSTANTIATE_TEST_SUITE_P(Tiers, ExpertsTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
