/// @file
/// What the suites of gradients share: slopes by finite differences in fp64, and cases by
/// name, each a few changes to a small config.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {

inline const Placement kFp64{MemorySpace::host, DType::f64};

inline Tensor random64(const Shape& shape, std::uint64_t seed) {
    return transfer(random_tensor(shape, seed), kFp64);
}

inline double dot(const TensorView& a, const TensorView& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

/// a + factor * b.
inline Tensor sum(const Tensor& a, double factor, const Tensor& b) {
    Tensor result = a.clone();
    for (std::int64_t i = 0; i < a.numel(); ++i)
        result.data<double>()[i] += factor * b.data<double>()[i];
    return result;
}

// ---------------------------------------------------------------------------- slopes

/// Everything that makes f jump or bend: who is chosen, and on which side of a kink the
/// activations are.
class PatternRecorder : public Observer {
  public:
    explicit PatternRecorder(const MoEConfig& config) : config_(config) {}
    void on_value(Step, const std::string& name, const TensorView& view) override {
        const std::vector<double> values = to_doubles(view);
        if (name == "routing_map" || name == "topk_idx")
            pattern.insert(pattern.end(), values.begin(), values.end());
        if (name == "logits") add_largest(values);
        if (name == "fc1_output")
            for (double h : values) add_side(h);
    }
    std::vector<double> pattern;

  private:
    /// The losses count the K largest scores of a row, which are its K largest logits.
    void add_largest(const std::vector<double>& logits) {
        const std::int64_t E = config_.num_experts();
        for (std::size_t row = 0; row < logits.size(); row += E) {
            std::vector<double> sorted(logits.begin() + row, logits.begin() + row + E);
            std::sort(sorted.rbegin(), sorted.rend());
            const double least = sorted[config_.moe_router_topk - 1];
            for (std::int64_t e = 0; e < E; ++e)
                pattern.push_back(logits[row + e] >= least);
        }
    }
    void add_side(double h) {
        if (config_.activation_func == "squared_relu") pattern.push_back(h > 0.0);
        const double limit = config_.activation_func_clamp_value.value_or(INFINITY);
        pattern.push_back((h > limit) - (h < -limit));
    }
    const MoEConfig& config_;
};

struct Point {
    double f = 0.0;
    std::vector<double> pattern;
};
using Function = std::function<Point()>;

/// Where f is computed from fp32 scores it is rough: wide steps look past that. In pure
/// fp64 small steps are exact to many digits.
struct Precision {
    double step, bound;
};
inline constexpr Precision kRough{2e-2, 2e-4}, kFine{1e-3, 1e-9};

/// Expects <gradient, d> to be the slope of f along random directions d of length one in
/// the values of `at`, which f reads. Directions that change the pattern tell nothing.
inline void expect_slopes(const Function& f, Tensor& at, const Tensor& gradient,
                          const Precision& precision, const std::string& name) {
    ASSERT_EQ(gradient.shape(), at.shape()) << name;
    const double norm = std::sqrt(dot(gradient, gradient));
    EXPECT_GT(norm, 1e-2) << name << ": too small to be told from nothing";
    const Tensor start = at;
    const std::vector<double> pattern = f().pattern;
    int directions = 0;
    for (std::uint64_t seed = 21; directions < 3 && seed < 61; ++seed) {
        const Tensor d = random64(at.shape(), seed);
        const double length = std::sqrt(dot(d, d));
        double slope = 0.0;
        bool same_pattern = true;
        for (auto [steps, weight] : {std::pair{1, 8}, {-1, -8}, {2, -1}, {-2, 1}}) {
            at = sum(start, steps * precision.step / length, d);
            const Point point = f();
            slope += weight * point.f / (12.0 * precision.step);  // five-point stencil
            same_pattern = same_pattern && point.pattern == pattern;
        }
        at = start;
        if (!same_pattern) continue;
        ++directions;
        EXPECT_NEAR(slope, dot(gradient, d) / length,
                    precision.bound * std::max(norm, 1.0))
            << name << ", direction " << seed << ", norm of the gradient " << norm;
    }
    EXPECT_EQ(directions, 3) << name << ": choices flip everywhere; change the inputs";
}

// ----------------------------------------------------------------------------- cases

using Change = std::function<void(MoEConfig&)>;

struct Case {
    std::string name;
    std::vector<Change> changes;  ///< to a small_config()
    bool mask = false;
    double scale = 1.0;         ///< main_loss_backward_scale
    bool second_batch = false;  ///< another micro-batch came before
    Shape shape = {4, 3, 7};    ///< (S, B, H)

    MoEConfig config() const {
        MoEConfig config = small_config(shape[2], 6, 2, 5);
        for (const Change& change : changes) change(config);
        config.finalize();
        return config;
    }
    friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

inline const Change sigmoid = [](auto& c) { c.moe_router_score_function = "sigmoid"; };
inline const Change sqrtsoftplus = [](auto& c) {
    c.moe_router_score_function = "sqrtsoftplus";
};
inline const Change softmax_first = [](auto& c) { c.moe_router_pre_softmax = true; };
inline const Change k1 = [](auto& c) { c.moe_router_topk = 1; };
inline const Change k3 = [](auto& c) { c.moe_router_topk = 3; };
inline const Change k6 = [](auto& c) { c.moe_router_topk = 6; };
inline const Change one_expert = [](auto& c) { c.num_moe_experts = 1; };
inline const Change scaled = [](auto& c) { c.moe_router_topk_scaling_factor = 2.5; };
inline const Change bias = [](auto& c) { c.add_bias_linear = true; };
inline const Change expert_bias = [](auto& c) { c.moe_router_enable_expert_bias = true; };
inline const Change groups = [](auto& c) {
    c.moe_router_num_groups = 3;
    c.moe_router_group_topk = 2;
};
inline const Change by_best = [](auto& c) { c.moe_router_group_score_topk = 1; };
inline const Change scores_as_they_are = [](auto& c) {
    c.moe_router_norm_topk_prob = false;
};

inline Change losses(const std::vector<std::string>& types,
                     const std::vector<double>& coeffs) {
    return [=](auto& c) {
        c.moe_router_load_balancing_type = types;
        c.moe_aux_loss_coeff = coeffs;
    };
}
inline const Change aux = losses({"aux_loss"}, {9.0}),
                    seq_aux = losses({"seq_aux_loss"}, {9.0});
inline const Change global_aux = losses({"global_aux_loss"}, {9.0});
inline const Change aux_seq_global =
    losses({"aux_loss", "seq_aux_loss", "global_aux_loss"}, {3.0, 5.0, 7.0});
inline const Change sinkhorn = losses({"sinkhorn"}, {0.0});
inline const Change quantiles = losses({"quantile_balancing"}, {0.0});
inline const Change jitter = [](auto& c) { c.moe_input_jitter_eps = 0.5; };
inline const Change z_loss = [](auto& c) { c.moe_z_loss_coeff = 0.5; };
inline const Change per_token = [](auto& c) { c.calculate_per_token_loss = true; };

inline const Change drop = [](auto& c) { c.moe_expert_capacity_factor = 0.7; };
inline const Change by_position = [](auto& c) { c.moe_token_drop_policy = "position"; };
inline const Change pad = [](auto& c) { c.moe_pad_expert_input_to_capacity = true; };

inline Change act(const std::string& name) {
    return [=](auto& c) { c.activation_func = name; };
}
inline const Change not_gated = [](auto& c) { c.gated_linear_unit = false; };
inline const Change clamp = [](auto& c) { c.activation_func_clamp_value = 0.75; };
inline const Change offset = [](auto& c) { c.glu_linear_offset = 1.5; };
inline const Change on_input = [](auto& c) { c.moe_apply_probs_on_input = true; };
inline const Change shared = [](auto& c) { c.moe_shared_expert_intermediate_size = 4; };
inline const Change gate = [](auto& c) { c.moe_shared_expert_gate = true; };
inline const Change latent = [](auto& c) { c.moe_latent_size = 4; };

using CaseAndSupplier = std::tuple<Case, ComponentSpec>;
inline std::string case_and_supplier(
    const testing::TestParamInfo<CaseAndSupplier>& info) {
    return std::get<0>(info.param).name + "_" + std::get<1>(info.param).tier;
}

/// All cases, each in every tier's fp64.
inline auto in_fp64(const std::vector<Case>& cases) {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.dtype != DType::f64; });
    return testing::Combine(testing::ValuesIn(cases), testing::ValuesIn(suppliers));
}

/// One case on fixed input, as a function of its parameters and hidden states.
class GradientsTest : public testing::TestWithParam<CaseAndSupplier> {
  protected:
    void use(const MoEConfig& config) {
        config_ = config;
        parameters_.clear();
        for (const auto& [name, tensor] : random_parameters(config_, 37))
            parameters_[name] = transfer(tensor, kFp64);
    }
    void SetUp() override { use(case_.config()); }

    const Tier& tier() const { return find_tier("tier", supplier_.tier); }
    RunContext context(Observer* observer = nullptr) const {
        return {.main_loss_backward_scale = case_.scale, .observer = observer};
    }

    const Case case_ = std::get<0>(GetParam());
    const ComponentSpec supplier_ = std::get<1>(GetParam());
    const Shape shape_ = case_.shape;
    const std::int64_t num_tokens_ = shape_[0] * shape_[1];
    MoEConfig config_;
    TensorMap parameters_;
    Tensor hidden_ = random64(shape_, 12);
    const Tensor doutput_ = random64(shape_, 13);
};

}  // namespace moe::test
