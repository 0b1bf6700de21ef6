// Finite differences of the whole layer in fp64: what backward returns is the slope of
//
//     f = Σ output · doutput + scale · Σ_losses coefficient · factor · logged loss
//
// Scores are fp32 by definition, so f is a little rough; a five-point stencil with a wide
// step looks past that.

#include <cmath>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

struct Case {
    std::string name;
    std::function<void(MoEConfig&)> change;
    bool mask = false;
    double scale = 1.0;  ///< main_loss_backward_scale
    double bound = 2e-4;
    friend void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }
};

const std::map<std::string, std::string> kLossOfType = {
    {"aux_loss", "load_balancing_loss"},
    {"seq_aux_loss", "seq_load_balancing_loss"},
    {"global_aux_loss", "global_load_balancing_loss"}};

/// A layer on fixed input, as a function of its parameters and hidden states.
class Subject {
  public:
    explicit Subject(const Case& c) : case_(c) {
        config_ = small_config(7, 6, 2, 5);
        c.change(config_);
        config_.finalize();
        parameters_ = random_parameters(config_, 37);
        for (auto& [name, tensor] : parameters_)
            tensor = transfer(tensor, {MemorySpace::host, DType::f64});
        hidden_ = transfer(random_tensor({5, 2, 7}, 12), {MemorySpace::host, DType::f64});
        doutput_ =
            transfer(random_tensor({5, 2, 7}, 13), {MemorySpace::host, DType::f64});
        if (c.mask)
            mask_ = Tensor::from<std::uint8_t>({2, 5}, {0, 0, 0, 0, 1, 0, 0, 1, 1, 1});
    }

    /// f; remembers which experts were chosen.
    double value() {
        ValueRecorder recorder;
        MoELayer layer(config_, kSpec, parameters_);
        const auto forward = layer.forward(hidden_, mask_, {.observer = &recorder});
        chosen_ = recorder.at("routing_map");
        double f = 0.0;
        for (std::int64_t i = 0; i < doutput_.numel(); ++i)
            f += forward.output.data<double>()[i] * doutput_.data<double>()[i];
        const double factor = config_.calculate_per_token_loss ? num_valid() : 1.0;
        for (const auto& [type, loss] : kLossOfType)
            if (config_.aux_loss_coeff(type) > 0.0)
                f += case_.scale * factor * config_.aux_loss_coeff(type) *
                     forward.losses.at(loss);
        if (config_.moe_z_loss_coeff)
            f += case_.scale * factor * *config_.moe_z_loss_coeff *
                 forward.losses.at("z_loss");
        return f;
    }

    MoELayer::Gradients gradients() {
        MoELayer layer(config_, kSpec, parameters_);
        const RunContext context{.main_loss_backward_scale = case_.scale};
        const auto forward = layer.forward(hidden_, mask_, context);
        return layer.backward(doutput_, forward.saved, context);
    }

    /// Slope of f along `direction` in the values of `tensor`.
    double slope(Tensor& tensor, const Tensor& direction) {
        const Tensor at = tensor;
        value();
        const Tensor chosen = chosen_;
        const auto shifted = [&](double step) {
            tensor = at.clone();
            for (std::int64_t i = 0; i < tensor.numel(); ++i)
                tensor.data<double>()[i] += step * direction.data<double>()[i];
            const double f = value();
            // A choice that flips makes f jump: the case would then test nothing.
            EXPECT_TRUE(BitwiseEqual(chosen_, chosen))
                << "a choice flips; change the seed";
            return f;
        };
        constexpr double kStep = 1e-2;
        const double near = shifted(kStep) - shifted(-kStep);
        const double far = shifted(2 * kStep) - shifted(-2 * kStep);
        tensor = at;
        return (8.0 * near - far) / (12.0 * kStep);
    }

    TensorMap& parameters() { return parameters_; }
    Tensor& hidden() { return hidden_; }

  private:
    double num_valid() const {
        double count = double(hidden_.dim(0) * hidden_.dim(1));
        if (mask_.defined())
            for (double masked : to_doubles(mask_)) count -= masked;
        return count;
    }

    const ModuleSpec kSpec = ModuleSpec::uniform({"reference_cpu", DType::f64});
    Case case_;
    MoEConfig config_;
    TensorMap parameters_;
    Tensor hidden_, doutput_, mask_, chosen_;
};

/// A random direction of length one.
Tensor unit_direction(const Shape& shape, std::uint64_t seed) {
    Tensor direction =
        transfer(random_tensor(shape, seed), {MemorySpace::host, DType::f64});
    double norm = 0.0;
    for (double value : to_doubles(direction)) norm += value * value;
    for (std::int64_t i = 0; i < direction.numel(); ++i)
        direction.data<double>()[i] /= std::sqrt(norm);
    return direction;
}

void expect_slope(Subject& subject, Tensor& tensor, const Tensor& gradient,
                  const std::string& name, double bound) {
    double norm = 0.0;
    for (double value : to_doubles(gradient)) norm += value * value;
    for (std::uint64_t seed : {21, 22, 23}) {
        const Tensor direction = unit_direction(tensor.shape(), seed);
        double expected = 0.0;
        for (std::int64_t i = 0; i < gradient.numel(); ++i)
            expected += gradient.data<double>()[i] * direction.data<double>()[i];
        EXPECT_NEAR(subject.slope(tensor, direction), expected,
                    bound * std::max(std::sqrt(norm), 1e-2))
            << name << ", direction " << seed;
    }
}

class Gradients : public testing::TestWithParam<Case> {};

TEST_P(Gradients, AreTheSlopes) {
    available_suppliers();  // registers the tiers
    Subject subject(GetParam());
    const MoELayer::Gradients gradients = subject.gradients();
    expect_slope(subject, subject.hidden(), gradients.hidden_states, "hidden_states",
                 GetParam().bound);
    for (auto& [name, tensor] : subject.parameters())
        if (name != "router.expert_bias")
            expect_slope(subject, tensor, gradients.parameters.at(name), name,
                         GetParam().bound);
}

void sigmoid(MoEConfig& c) {
    c.moe_router_score_function = "sigmoid";
}
void sqrtsoftplus(MoEConfig& c) {
    c.moe_router_score_function = "sqrtsoftplus";
}
void losses(MoEConfig& c, std::vector<std::string> types, std::vector<double> coeffs) {
    c.moe_router_load_balancing_type = std::move(types);
    c.moe_aux_loss_coeff = std::move(coeffs);
}
void all_losses(MoEConfig& c) {
    losses(c, {"aux_loss", "seq_aux_loss", "global_aux_loss"}, {3.0, 5.0, 7.0});
    c.moe_z_loss_coeff = 0.5;
}
void plain(MoEConfig& c, const std::string& activation) {
    c.gated_linear_unit = false;
    c.activation_func = activation;
    c.add_bias_linear = true;
}
void gated(MoEConfig& c, const std::string& activation) {
    c.activation_func = activation;
    c.add_bias_linear = true;
}

const std::vector<Case> kCases = {
    // Routing
    {"softmax_after_topk", [](MoEConfig&) {}},
    {"softmax_before_topk", [](MoEConfig& c) { c.moe_router_pre_softmax = true; }},
    {"softmax_before_topk_k1",
     [](MoEConfig& c) { c.moe_router_pre_softmax = true, c.moe_router_topk = 1; }},
    {"sigmoid", sigmoid},
    {"sigmoid_k1", [](MoEConfig& c) { sigmoid(c), c.moe_router_topk = 1; }},
    {"sqrtsoftplus", sqrtsoftplus},
    {"sqrtsoftplus_k1", [](MoEConfig& c) { sqrtsoftplus(c), c.moe_router_topk = 1; }},
    {"scaled", [](MoEConfig& c) { c.moe_router_topk_scaling_factor = 2.5; }},
    {"scaled_sigmoid_bias_groups",
     [](MoEConfig& c) {
         sigmoid(c);
         c.moe_router_topk = 3;
         c.moe_router_topk_scaling_factor = 1.5;
         c.moe_router_enable_expert_bias = true;
         c.moe_router_num_groups = 3;
         c.moe_router_group_topk = 2;
     }},
    {"every_expert", [](MoEConfig& c) { c.moe_router_topk = 6; }},
    {"sinkhorn_k1",
     [](MoEConfig& c) { losses(c, {"sinkhorn"}, {0.0}), c.moe_router_topk = 1; }},
    {"sinkhorn_k2", [](MoEConfig& c) { losses(c, {"sinkhorn"}, {0.0}); }},
    // Losses
    {"aux_softmax", [](MoEConfig& c) { losses(c, {"aux_loss"}, {9.0}); }},
    {"aux_sigmoid", [](MoEConfig& c) { sigmoid(c), losses(c, {"aux_loss"}, {9.0}); }},
    {"aux_sqrtsoftplus",
     [](MoEConfig& c) { sqrtsoftplus(c), losses(c, {"aux_loss"}, {9.0}); }},
    {"aux_k1",
     [](MoEConfig& c) {
         sigmoid(c), losses(c, {"aux_loss"}, {9.0}), c.moe_router_topk = 1;
     }},
    {"seq_aux", [](MoEConfig& c) { losses(c, {"seq_aux_loss"}, {9.0}); }},
    {"global_aux", [](MoEConfig& c) { losses(c, {"global_aux_loss"}, {9.0}); }},
    {"z_loss", [](MoEConfig& c) { c.moe_z_loss_coeff = 2.0; }},
    {"all_losses", all_losses, false, 0.25},
    {"all_losses_masked", all_losses, true, 2.0},
    {"all_losses_per_token",
     [](MoEConfig& c) { all_losses(c), c.calculate_per_token_loss = true; }, true, 0.5,
     5e-4},
    // Dropping
    {"drop_by_probs", [](MoEConfig& c) { c.moe_expert_capacity_factor = 0.7; }},
    {"drop_by_position",
     [](MoEConfig& c) {
         c.moe_expert_capacity_factor = 0.7;
         c.moe_token_drop_policy = "position";
     }},
    {"drop_sigmoid",
     [](MoEConfig& c) { sigmoid(c), c.moe_expert_capacity_factor = 0.7; }},
    {"drop_before_topk",
     [](MoEConfig& c) {
         c.moe_router_pre_softmax = true;
         c.moe_expert_capacity_factor = 0.7;
     }},
    {"drop_and_pad",
     [](MoEConfig& c) {
         c.moe_expert_capacity_factor = 0.7;
         c.moe_pad_expert_input_to_capacity = true;
         c.add_bias_linear = true;
         all_losses(c);
     }},
    // Experts
    {"swiglu_bias", [](MoEConfig& c) { gated(c, "silu"); }},
    {"geglu_bias", [](MoEConfig& c) { gated(c, "gelu"); }},
    {"quick_geglu_bias_offset",
     [](MoEConfig& c) { gated(c, "quick_gelu"), c.glu_linear_offset = 1.0; }},
    {"squared_reglu", [](MoEConfig& c) { gated(c, "squared_relu"); }, false, 1.0, 3e-3},
    {"silu", [](MoEConfig& c) { plain(c, "silu"); }},
    {"gelu", [](MoEConfig& c) { plain(c, "gelu"); }},
    {"quick_gelu", [](MoEConfig& c) { plain(c, "quick_gelu"); }},
    {"squared_relu", [](MoEConfig& c) { plain(c, "squared_relu"); }, false, 1.0, 3e-3},
    // A wide clamp is met by few values, so that few kinks lie within a step
    {"swiglu_clamp", [](MoEConfig& c) { c.activation_func_clamp_value = 1.5; }, false,
     1.0, 2e-2},
    {"probs_on_input",
     [](MoEConfig& c) {
         sigmoid(c);
         c.moe_router_topk = 1;
         c.moe_apply_probs_on_input = true;
         c.add_bias_linear = true;
     }},
    // Shared experts
    {"shared", [](MoEConfig& c) { c.moe_shared_expert_intermediate_size = 4; }},
    {"shared_gate",
     [](MoEConfig& c) {
         c.moe_shared_expert_intermediate_size = 4;
         c.moe_shared_expert_gate = true;
     }},
};

INSTANTIATE_TEST_SUITE_P(Reference, Gradients, testing::ValuesIn(kCases),
                         [](const testing::TestParamInfo<Case>& info) {
                             return info.param.name;
                         });

}  // namespace
}  // namespace moe::test
