// Gradients against finite differences, in fp64: what backward returns must be the slope
// of
//
//     f = Σ output · doutput + scale · Σ_losses coefficient · factor · logged loss
//
// for the whole layer, and for its router alone.

#include "core/moe_layer.h"
#include "tests/layer/gradients_support.h"

namespace moe::test {
namespace {

const std::vector<Case> kLayerCases = {
    // Routing
    {"softmax_after_topk", {}},
    {"softmax_after_topk_bias", {bias}},
    {"softmax_after_topk_scaled", {scaled}},
    {"softmax_before_topk", {softmax_first}},
    {"softmax_before_topk_k1", {softmax_first, k1}},
    {"softmax_before_topk_scaled", {softmax_first, scaled}},
    {"softmax_before_topk_groups", {softmax_first, groups}},
    {"sigmoid", {sigmoid}},
    {"sigmoid_k1", {sigmoid, k1}},
    {"sigmoid_everything", {sigmoid, k3, scaled, expert_bias, groups}},
    {"sigmoid_as_it_is", {sigmoid, k3, scaled, expert_bias, scores_as_they_are}},
    {"sqrtsoftplus", {sqrtsoftplus}},
    {"sqrtsoftplus_k1", {sqrtsoftplus, k1}},
    {"sqrtsoftplus_everything", {sqrtsoftplus, k3, scaled, expert_bias, groups}},
    {"sqrtsoftplus_as_it_is", {sqrtsoftplus, k3, groups, by_best, scores_as_they_are}},
    {"every_expert", {k6}},
    {"one_expert", {sigmoid, one_expert, k1}},
    {"one_token", {aux_seq_global, z_loss}, false, 1.0, false, {1, 1, 20}},
    {"sinkhorn_k1", {sinkhorn, k1}},
    {"sinkhorn_k2", {sinkhorn}},
    {"jitter", {jitter, bias, aux_seq_global, z_loss}},
    {"quantiles", {quantiles, z_loss}, false, 1.0, false, {2, 3, 7}},
    {"quantiles_before_topk", {quantiles, softmax_first}, false, 1.0, false, {2, 3, 7}},
    {"quantiles_sigmoid", {quantiles, sigmoid, k3, scaled}, false, 1.0, false, {2, 3, 7}},
    // Losses
    {"aux", {aux}},
    {"aux_sigmoid", {sigmoid, aux}},
    {"aux_sqrtsoftplus", {sqrtsoftplus, aux}},
    {"aux_sigmoid_as_it_is", {sigmoid, aux, scores_as_they_are}},
    {"aux_k1", {sigmoid, k1, aux}, false, 3.0},
    {"seq_aux", {seq_aux}},
    {"global_aux_second_batch", {global_aux}, false, 1.0, true},
    {"z", {z_loss}},
    {"z_sinkhorn", {sinkhorn, z_loss}},
    {"all_losses", {aux_seq_global, z_loss}, false, 0.25, true},
    {"all_losses_masked", {aux_seq_global, z_loss}, true, 2.0},
    {"all_losses_per_token", {aux_seq_global, z_loss, per_token}, false, 0.1},
    {"all_losses_per_token_masked", {aux_seq_global, z_loss, per_token}, true, 0.1},
    // Dropping: what is dropped stays in its token's sums
    {"drop_by_probs", {drop}},
    {"drop_by_position", {drop, by_position}},
    {"drop_sigmoid", {sigmoid, drop}},
    {"drop_sqrtsoftplus", {sqrtsoftplus, drop}},
    {"drop_before_topk", {softmax_first, drop}},
    {"drop_and_pad", {drop, pad, bias, aux_seq_global, z_loss}},
    // Experts
    {"probs_on_input", {sigmoid, k1, on_input, bias}},
    {"squared_relu", {act("squared_relu"), not_gated, bias}},
    {"swiglu_clamp", {clamp}},
    {"shared", {shared}},
    {"shared_gate", {shared, gate}},
    {"latent", {latent, bias}, false, 1.0, false, {2, 2, 9}},
    {"latent_shared", {latent, shared, gate}},
};

class Gradients : public GradientsTest {
  protected:
    Gradients() {
        if (!case_.mask) return;
        // Sequences of 4, 3 and 1 valid tokens
        mask_ = Tensor::from<std::uint8_t>({3, 4}, {0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1});
        router_mask_ =
            Tensor::from<std::uint8_t>({4, 3}, {0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1});
    }

    /// What the losses add to f. They are logged before their coefficients.
    double attached(const Losses& losses) const {
        const double valid = case_.mask ? 8.0 : double(num_tokens_);
        double sum = 0.0;
        const auto add = [&](const std::string& name, double coefficient) {
            if (coefficient > 0.0) sum += coefficient * losses.at(name);
        };
        add("load_balancing_loss", config_.aux_loss_coeff("aux_loss"));
        add("seq_load_balancing_loss", config_.aux_loss_coeff("seq_aux_loss"));
        add("global_load_balancing_loss", config_.aux_loss_coeff("global_aux_loss"));
        add("z_loss", config_.moe_z_loss_coeff.value_or(0.0));
        return case_.scale * (config_.calculate_per_token_loss ? valid : 1.0) * sum;
    }

    /// Forward of a new layer or router: the global loss remembers earlier forwards.
    template <typename Subject>
    auto forward(Subject& subject, const Tensor& mask, Observer* observer = nullptr) {
        if (case_.second_batch) subject.forward(earlier_, {}, context(observer));
        return subject.forward(hidden_, mask, context(observer));
    }

    const Tensor earlier_ = random64(shape_, 14);
    Tensor mask_, router_mask_;  // (B, S) and (S, B)
};

TEST_P(Gradients, OfTheLayerAreItsSlopes) {
    const auto make = [&] {
        return MoELayer(config_, ModuleSpec::uniform(supplier_), parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        MoELayer layer = make();
        const auto result = forward(layer, mask_, &recorder);
        return Point{dot(result.output, doutput_) + attached(result.losses.read()),
                     recorder.pattern};
    };
    MoELayer layer = make();
    const auto result = forward(layer, mask_);
    auto gradients = layer.backward(doutput_, result.saved, context());

    expect_slopes(f, hidden_, gradients.hidden_states, kRough, "hidden_states");
    EXPECT_EQ(gradients.parameters.size(),
              std::count_if(parameters_.begin(), parameters_.end(),
                            [](const auto& named) { return !is_buffer(named.first); }));
    for (const auto& [name, gradient] : gradients.parameters)
        expect_slopes(f, parameters_.at(name), gradient,
                      name.starts_with("router.") ? kRough : kFine, name);
}

TEST_P(Gradients, OfTheRouterAreItsSlopes) {
    const Tensor dprobs = random64({num_tokens_, config_.num_experts()}, 15);
    const auto make = [&] {
        return tier().make_router(config_, supplier_.dtype, parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        const auto result = forward(*make(), router_mask_, &recorder);
        return Point{dot(result.probs, dprobs) + attached(result.losses.read()),
                     recorder.pattern};
    };
    const auto router = make();
    const auto result = forward(*router, router_mask_);
    TensorMap gradients;
    const Tensor before = random64({num_tokens_, shape_[2]}, 16);
    Tensor dhidden = before.clone();  // the router adds to it
    router->backward(dhidden, gradients, dprobs, *result.saved, context());

    expect_slopes(f, hidden_, sum(dhidden, -1.0, before).reshaped(shape_), kRough,
                  "hidden");
    EXPECT_EQ(gradients.size(), config_.add_bias_linear ? 2u : 1u);
    for (const auto& [name, gradient] : gradients)
        expect_slopes(f, parameters_.at(name), gradient, kRough, name);
}

INSTANTIATE_TEST_SUITE_P(Fp64, Gradients, in_fp64(kLayerCases), case_and_supplier);

}  // namespace
}  // namespace moe::test
