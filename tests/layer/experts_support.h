/// @file
/// The formulas of an expert's MLP, forward and backward, written out element by element,
/// and what the suites share that compare routed and shared experts with them.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "cli/compare/closeness.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {

using Values = std::vector<double>;

// --------------------------------------------------------------------- the formulas

struct ActAndSlope {
    double value, slope;
};

inline ActAndSlope act(const std::string& name, double x) {
    if (name == "squared_relu")
        return x > 0.0 ? ActAndSlope{x * x, 2.0 * x} : ActAndSlope{};
    if (name == "gelu") {
        const double cdf = 0.5 * (1.0 + std::erf(x / std::sqrt(2.0)));
        return {x * cdf,
                cdf + x * std::exp(-0.5 * x * x) / std::sqrt(2.0 * std::numbers::pi)};
    }
    if (name == "gelu_tanh") {
        const double c = std::sqrt(2.0 / std::numbers::pi);
        const double tanh = std::tanh(c * (x + 0.044715 * x * x * x));
        return {0.5 * x * (1.0 + tanh),
                0.5 * (1.0 + tanh) +
                    0.5 * x * (1.0 - tanh * tanh) * c * (1.0 + 3.0 * 0.044715 * x * x)};
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
inline Values part(const TensorMap& parameters, const std::string& name,
                   std::int64_t index, std::int64_t count, std::int64_t size) {
    if (!parameters.contains(name)) return Values(size);
    const Values all = to_doubles(parameters.at(name));
    EXPECT_EQ(std::int64_t(all.size()), count * size) << name;
    return Values(all.begin() + index * size, all.begin() + (index + 1) * size);
}

inline Mlp make_mlp(const MoEConfig& c, const TensorMap& parameters,
                    const std::string& prefix, std::int64_t ffn, std::int64_t index,
                    std::int64_t count) {
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

inline Values row(const Values& matrix, std::int64_t index, std::int64_t width) {
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

}  // namespace moe::test
