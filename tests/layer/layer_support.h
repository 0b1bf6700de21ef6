/// @file
/// What the suites of the whole layer share: running it, and a config with everything on.
#pragma once

#include <numeric>

#include "cli/compare/closeness.h"
#include "cli/compare/comparison.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {

using Values = std::vector<double>;

inline constexpr std::int64_t kHidden = 20;
inline const Shape kShape = {43, 3, kHidden};  // (S, B, H)

/// Remembers a layer's values by the step that shows them, too.
struct StepRecorder : ValueRecorder {
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        ValueRecorder::on_value(step, name, view);
        by_step[step][name] = at(name);
    }
    std::map<Step, TensorMap> by_step;
};

/// Everything one forward and backward give.
struct LayerRun {
    Tensor output;
    Losses losses;
    MoELayer::Gradients gradients;
    StepRecorder values;

    Values value(const std::string& name) const { return to_doubles(values.at(name)); }
};

class LayerTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static TensorMap parameters_of(MoEConfig config) {
        config.finalize();
        return random_parameters(config, 7);
    }
    static MoELayer layer(MoEConfig config, const TensorMap& parameters) {
        config.finalize();
        return MoELayer(config, ModuleSpec::uniform(GetParam()), parameters);
    }
    static LayerRun run(MoELayer& layer, const Tensor& hidden, const Tensor& doutput,
                        const Tensor& mask = {}, bool training = true) {
        LayerRun result;
        const RunContext context{.training = training, .observer = &result.values};
        auto forward = layer.forward(hidden, mask, context);
        result.output = forward.output;
        result.losses = forward.losses.read();
        result.gradients = layer.backward(doutput, forward.saved, context);
        return result;
    }
    static LayerRun run(const MoEConfig& config, const TensorMap& parameters,
                        const Tensor& hidden, const Tensor& doutput,
                        const Tensor& mask = {}) {
        MoELayer subject = layer(config, parameters);
        return run(subject, hidden, doutput, mask);
    }
    static double bound() { return bound_of(GetParam()); }
    static void expect_close(const TensorMap& got, const TensorMap& expected) {
        EXPECT_EQ(got.size(), expected.size());
        for (const auto& [name, gradient] : expected)
            EXPECT_TRUE(Close(got.at(name), gradient, tier_bound(GetParam().dtype, true)))
                << name;
    }
    static void expect_close(const LayerRun& got, const LayerRun& expected) {
        EXPECT_TRUE(Close(got.output, expected.output, bound()));
        expect_close({{"hidden_states", got.gradients.hidden_states}},
                     {{"hidden_states", expected.gradients.hidden_states}});
        expect_close(got.gradients.parameters, expected.gradients.parameters);
    }
};

/// "begins at ② gating": the first step whose values differ between runs that see the
/// same rows; what comes later may have inherited its error. Nothing when all agree.
inline std::string first_deviation(const LayerRun& got, const LayerRun& expected,
                                   DType dtype) {
    for (const auto& [step, values] : expected.values.by_step)
        for (const auto& [name, value] : values) {
            const double bound =
                is_floating(value.dtype()) ? tier_bound(dtype, is_backward(step)) : 0.0;
            if (!Close(got.values.by_step.at(step).at(name), value, bound))
                return begins_at(step);
        }
    return "";
}

/// Tokens [begin, end) of (S, B, H), or rows of (T, E).
inline Tensor tokens(const Tensor& all, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = all.shape().back();
    const Values values = to_doubles(all);
    return Tensor::from<double>({end - begin, 1, width}, {values.begin() + begin * width,
                                                          values.begin() + end * width});
}

inline void expect_zero(const TensorView& tensor, const std::string& name) {
    for (double value : to_doubles(tensor)) ASSERT_EQ(value, 0.0) << name;
}

inline double total(const Values& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// Everything on. The router has fp32 or more, so that all tiers choose the same experts.
inline MoEConfig rich_config() {
    MoEConfig c = small_config(kHidden, 10, 3, 13);
    c.moe_router_dtype = "fp32";
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    c.moe_router_num_groups = 5;
    c.moe_router_group_topk = 2;
    c.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss", "global_aux_loss"};
    c.moe_aux_loss_coeff = {0.1, 0.2, 0.3};
    c.moe_z_loss_coeff = 0.01;
    c.moe_shared_expert_intermediate_size = 9;
    c.moe_shared_expert_gate = true;
    c.moe_expert_capacity_factor = 1.1;
    return c;
}

inline MoEConfig dropless(MoEConfig c) {
    c.moe_expert_capacity_factor.reset();
    return c;
}

}  // namespace moe::test
