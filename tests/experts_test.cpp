// Routed and shared experts, forward and backward, against the formulas written out
// element by element.

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "cli/closeness.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

// --------------------------------------------------------------------- the formulas

struct ActAndSlope {
    double value, slope;
};

ActAndSlope act(const std::string& name, double x) {
    if (name == "squared_relu")
        return x > 0.0 ? ActAndSlope{x * x, 2.0 * x} : ActAndSlope{};
    if (name == "gelu") {
        const double cdf = 0.5 * (1.0 + std::erf(x / std::sqrt(2.0)));
        return {x * cdf,
                cdf + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi)};
    }
    const double k = name == "quick_gelu" ? 1.702 : 1.0;  // x σ(k x)
    const double s = 1.0 / (1.0 + std::exp(-k * x));
    return {x * s, s + k * x * s * (1.0 - s)};
}

/// One expert's MLP, y = W2 (act(W1 x + b1) p) + p b2, and where its gradients gather.
struct Mlp {
    std::string activation;
    bool gated = false, probs_on_input = false;
    double limit = INFINITY, offset = 0.0;
    std::int64_t hidden = 0, ffn = 0;
    Values w1, b1, w2, b2;      // (Z, H), (Z), (H, F), (H) with Z = 2F or F
    Values dw1, db1, dw2, db2;  // +=
    std::int64_t on_bound = 0;  // values that are exactly the limit, +=

    std::int64_t num_h() const { return gated ? 2 * ffn : ffn; }

    /// a_f before p, and its slopes by the gate half and the up half.
    struct Activated {
        double a, by_gate, by_up;
    };
    Activated activate(const Values& h, std::int64_t f) const {
        if (!gated) {
            const auto [value, slope] = act(activation, h[f]);
            return {value, slope, 0.0};
        }
        const double gate = h[f], up = h[ffn + f];
        const auto [value, slope] = act(activation, std::min(gate, limit));
        const double linear = std::clamp(up, -limit, limit) + offset;
        // On its bound a clamped half still moves.
        return {value * linear, gate <= limit ? slope * linear : 0.0,
                std::abs(up) <= limit ? value : 0.0};
    }

    struct Row {
        Values y, dx;
        double dp = 0.0;
    };
    /// One row, forward, and backward from dy.
    Row run(const Values& input, double prob, const Values& dy) {
        const double p = probs_on_input ? 1.0 : prob;
        const double input_scale = probs_on_input ? prob : 1.0;
        Values x = input, h = b1, dh(num_h());
        for (double& value : x) value *= input_scale;
        Row row{Values(hidden), Values(hidden), 0.0};

        for (std::int64_t z = 0; z < num_h(); ++z) {
            for (std::int64_t j = 0; j < hidden; ++j) h[z] += w1[z * hidden + j] * x[j];
            on_bound += std::abs(h[z]) == limit;
        }
        for (std::int64_t j = 0; j < hidden; ++j) {
            row.y[j] = p * b2[j];
            row.dp += b2[j] * dy[j];
            db2[j] += p * dy[j];
        }
        for (std::int64_t f = 0; f < ffn; ++f) {
            const auto [a, by_gate, by_up] = activate(h, f);
            double da = 0.0;
            for (std::int64_t j = 0; j < hidden; ++j) {
                row.y[j] += w2[j * ffn + f] * p * a;
                da += w2[j * ffn + f] * dy[j];
                dw2[j * ffn + f] += dy[j] * p * a;
            }
            row.dp += da * a;
            dh[f] = da * p * by_gate;
            if (gated) dh[ffn + f] = da * p * by_up;
        }
        for (std::int64_t z = 0; z < num_h(); ++z) {
            db1[z] += dh[z];
            for (std::int64_t j = 0; j < hidden; ++j) {
                row.dx[j] += w1[z * hidden + j] * dh[z];
                dw1[z * hidden + j] += dh[z] * x[j];
            }
        }
        if (probs_on_input)
            row.dp = std::inner_product(input.begin(), input.end(), row.dx.begin(), 0.0);
        for (double& value : row.dx) value *= input_scale;
        return row;
    }
};

/// Part `index` of `count` equal parts of a parameter; zeros where the layer has none.
Values part(const TensorMap& parameters, const std::string& name, std::int64_t index,
            std::int64_t count, std::int64_t size) {
    if (!parameters.contains(name)) return Values(size);
    const Values all = to_doubles(parameters.at(name));
    EXPECT_EQ(std::int64_t(all.size()), count * size) << name;
    return Values(all.begin() + index * size, all.begin() + (index + 1) * size);
}

Mlp make_mlp(const MoEConfig& c, const TensorMap& parameters, const std::string& prefix,
             std::int64_t ffn, std::int64_t index, std::int64_t count) {
    Mlp m;
    m.activation = c.activation_func;
    m.gated = c.gated_linear_unit;
    m.probs_on_input = c.moe_apply_probs_on_input;
    m.limit = c.activation_func_clamp_value.value_or(INFINITY);
    m.offset = c.glu_linear_offset;
    m.hidden = c.hidden_size;
    m.ffn = ffn;
    const std::int64_t H = m.hidden, Z = m.num_h();
    m.w1 = part(parameters, prefix + ".linear_fc1.weight", index, count, Z * H);
    m.b1 = part(parameters, prefix + ".linear_fc1.bias", index, count, Z);
    m.w2 = part(parameters, prefix + ".linear_fc2.weight", index, count, H * ffn);
    m.b2 = part(parameters, prefix + ".linear_fc2.bias", index, count, H);
    m.dw1 = Values(Z * H), m.db1 = Values(Z), m.dw2 = Values(H * ffn), m.db2 = Values(H);
    return m;
}

Values row(const Values& matrix, std::int64_t index, std::int64_t width) {
    return {matrix.begin() + index * width, matrix.begin() + (index + 1) * width};
}

// ------------------------------------------------------------------- the components

class MlpTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static constexpr std::int64_t kHidden = 20, kFfn = 13, kExperts = 5;

    static MoEConfig config() { return small_config(kHidden, kExperts, 2, kFfn); }
    const Tier& tier() { return find_tier("tier", GetParam().tier); }

    /// Random values; on the lattice, multiples of 1/4, so small that the products with
    /// such weights are exact in every precision and many activations lie exactly on a
    /// bound.
    Tensor random(const Shape& shape, std::uint64_t seed) {
        return transfer(to_lattice(random_tensor(shape, seed)), placement_of(GetParam()));
    }
    Tensor random_probs(std::int64_t count, std::uint64_t seed) {
        return transfer(to_lattice(random_tensor({count}, seed)),
                        probs_placement(placement_of(GetParam())));
    }
    TensorMap random_weights(const MoEConfig& c) {
        TensorMap parameters = random_parameters(c, 17);
        for (auto& [name, tensor] : parameters) tensor = to_lattice(tensor);
        return parameters;
    }
    Tensor to_lattice(Tensor tensor) const {
        if (!lattice_) return tensor;
        tensor = tensor.clone();
        for (std::int64_t i = 0; i < tensor.numel(); ++i) {
            float& value = tensor.data<float>()[i];
            value = std::clamp(std::round(value * 4.0f) / 4.0f, -1.5f, 1.5f);
        }
        return tensor;
    }
    void expect_values(const TensorView& got, const Values& expected,
                       const std::string& name, bool gradient = true) {
        EXPECT_TRUE(Close(got, Tensor::from(got.shape, expected),
                          tier_bound(GetParam().dtype, gradient)))
            << name << description_;
    }

    bool lattice_ = false;
    std::string description_;
};

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
        const auto forward = experts->forward(rows, Tensor::from({E}, counts), probs, {});
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
    for (const char* name : {"silu", "gelu", "quick_gelu", "squared_relu"})
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
    for (const char* name : {"silu", "gelu", "quick_gelu", "squared_relu"}) {
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

class SharedExpertsTest : public MlpTest {
  protected:
    /// q (W2 act(W1 x)) with the gate q = σ(<g, x>), or 1.
    void expect_formula(MoEConfig c, std::int64_t T) {
        constexpr std::int64_t kSharedFfn = 9, H = kHidden;
        c.moe_shared_expert_intermediate_size = kSharedFfn;
        c.finalize();
        const TensorMap parameters = random_weights(c);
        const Tensor hidden = random({T, H}, 6), doutput = random({T, H}, 7);
        auto shared = tier().make_shared_experts(c, GetParam().dtype, parameters);
        const auto forward = shared->forward(hidden, {});
        TensorMap gradients;
        const Tensor before = random({T, H}, 8);
        Tensor dhidden = before.clone();
        shared->backward(dhidden, gradients, doutput, *forward.saved, {});

        const Values x = to_doubles(hidden), dout = to_doubles(doutput);
        const Values g = part(parameters, "shared_experts.gate_weight", 0, 1, H);
        Mlp mlp = make_mlp(c, parameters, "shared_experts", kSharedFfn, 0, 1);
        Values output, dx = to_doubles(before), dg(H);
        for (std::int64_t t = 0; t < T; ++t) {
            const Values x_row = row(x, t, H), dout_row = row(dout, t, H);
            const double dot = std::inner_product(g.begin(), g.end(), x_row.begin(), 0.0);
            const double q =
                c.moe_shared_expert_gate ? 1.0 / (1.0 + std::exp(-dot)) : 1.0;
            Values du = dout_row;
            for (double& value : du) value *= q;
            const Mlp::Row got = mlp.run(x_row, 1.0, du);
            // By <g, x>; 0 without a gate, where q = 1
            const double ddot =
                (1.0 - q) * std::inner_product(du.begin(), du.end(), got.y.begin(), 0.0);
            for (std::int64_t j = 0; j < H; ++j) {
                output.push_back(q * got.y[j]);
                dx[t * H + j] += got.dx[j] + ddot * g[j];
                dg[j] += ddot * x_row[j];
            }
        }

        description_ =
            " of " + c.activation_func + (c.moe_shared_expert_gate ? ", q" : "");
        expect_values(forward.output, output, "output", false);
        expect_values(dhidden, dx, "dhidden");
        expect_values(gradients.at("shared_experts.linear_fc1.weight"), mlp.dw1, "dW1");
        expect_values(gradients.at("shared_experts.linear_fc2.weight"), mlp.dw2, "dW2");
        EXPECT_EQ(gradients.size(), c.moe_shared_expert_gate ? 3u : 2u);
        if (!c.moe_shared_expert_gate) return;
        EXPECT_EQ(gradients.at("shared_experts.gate_weight").shape(), (Shape{1, H}));
        expect_values(gradients.at("shared_experts.gate_weight"), dg, "dg");
    }
};

TEST_P(SharedExpertsTest, FollowTheFormula) {
    for (bool gate : {false, true})
        for (bool gated : {false, true})
            for (const char* name : {"silu", "gelu", "quick_gelu", "squared_relu"}) {
                MoEConfig c = config();
                c.moe_shared_expert_gate = gate;
                c.gated_linear_unit = gated;
                c.activation_func = name;
                expect_formula(c, 23);
            }
}

TEST_P(SharedExpertsTest, ClampAndShiftLikeTheRoutedOnes) {
    lattice_ = true;
    MoEConfig c = config();
    c.moe_shared_expert_gate = true;
    c.activation_func = "quick_gelu";
    c.activation_func_clamp_value = 0.5;
    c.glu_linear_offset = 1.0;
    expect_formula(c, 23);
}

TEST_P(SharedExpertsTest, TakeAnyNumberOfTokens) {
    for (std::int64_t T : {0, 1, 257}) {
        MoEConfig c = config();
        c.moe_shared_expert_gate = true;
        expect_formula(c, T);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, SharedExpertsTest,
                         testing::ValuesIn(available_suppliers()), instance_name);

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
