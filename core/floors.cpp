#include "core/floors.h"

#include <algorithm>

#include "core/floor_sum.h"

namespace moe {
namespace {

bool has_losses(const MoEConfig& c) {
    return c.moe_z_loss_coeff ||
           std::any_of(c.moe_aux_loss_coeff.begin(), c.moe_aux_loss_coeff.end(),
                       [](double coeff) { return coeff > 0.0; });
}

}  // namespace

Formats formats_of(const MoEConfig& config, DType dtype) {
    Formats formats{.dtype = dtype};
    if (dtype == DType::f64) formats.logits = formats.probs = DType::f64;
    if (config.moe_router_dtype == "fp64") formats.logits = DType::f64;
    return formats;
}

Floors::Floors(const MoEConfig& config, const StepSizes& sizes, const Formats& formats)
    : config_(config), sizes_(sizes), formats_(formats) {}

/// What the router hands on, or the gradient of it.
void Floors::add_routing(Sum& sum, int times) const {
    const bool dense = formats_.routing == RoutingForm::dense;
    for (int i = 0; i < times; ++i) {
        sum.probs(1, dense ? "TE" : "TK");
        if (dense)
            sum.metadata("TE", DType::u8);
        else
            sum.ids("TK");
    }
}

/// Which token each row is of, and how many rows each expert has.
void Floors::add_row_map(Sum& sum) const {
    sum.ids("N").ids("E");
}

void Floors::add_tokens(Sum& sum, Rows rows) const {
    if (rows == Rows::dispatched || !routed_)
        sum.add(1, "Nl").counts();
    else
        add_row_map(sum.add(1, "Tl"));
}

Floor Floors::step(Step step) const {
    const MoEConfig& c = config_;
    const bool bias = c.add_bias_linear, dense = formats_.routing == RoutingForm::dense;
    // Probabilities weigh the input of FC1, or its activation and the bias of FC2.
    const int on_input = c.moe_apply_probs_on_input, on_activation = 1 - on_input;
    // Two projections, in ⑥ and ⑩; ℓ is H without them.
    const bool latent = c.moe_latent_size.has_value();
    const int shared_matrices = c.gated_linear_unit ? 3 : 2;
    Sum sum(*this);
    switch (step) {
        case Step::shared_experts:
            if (c.shared_ffn() == 0) return {};
            sum.add(2, "TH").add(shared_matrices, "FsH").product(shared_matrices, "TFsH");
            if (c.moe_shared_expert_gate) sum.add(1, "H");
            return sum;
        case Step::gating:
            sum.add(1, "TH").add(1, "EH").logits(1).product(1, "TEH");
            if (bias) sum.add(1, "E");
            return sum;
        case Step::routing:
            add_routing(sum.logits(1), 1);
            // Either is read; with quantile balancing a bias is not
            if (c.moe_router_enable_expert_bias || c.is_quantile_balancing())
                sum.probs(1, "E");
            return sum;
        case Step::token_dropping:
            if (c.moe_expert_capacity_factor) add_routing(sum, 2);
            return sum;
        case Step::auxiliary_losses: return has_losses(c) ? sum.logits(1) : sum;
        case Step::dispatch:
            add_routing(sum.add(1, "TH").add(1, "Nl"), 1);
            if (latent) sum.add(1, "lH").product(1, "TlH");
            if (latent && bias) sum.add(1, "l");
            add_row_map(sum.probs(1, "N"));
            return sum;
        case Step::fc1:
            sum.add(1, "Nl").add_gated(1, "EFl").add_gated(1, "NF").counts();
            if (bias) sum.add_gated(1, "EF");
            if (on_input) sum.probs(1, "N");
            return sum.gated_product("NFl");
        case Step::activation:
            sum.add_gated(1, "NF").add(1, "NF");
            if (on_activation) sum.probs(1, "N");
            return sum;
        case Step::fc2:
            sum.add(1, "NF").add(1, "EFl").add(1, "Nl").counts().product(1, "NFl");
            if (bias) sum.add(1, "El");
            if (bias && on_activation) sum.probs(1, "N");
            return sum;
        case Step::combine:
            add_row_map(sum.add(1, "Nl").add(c.shared_ffn() > 0 ? 2 : 1, "TH"));
            if (latent) sum.add(1, "lH").product(1, "TlH");
            if (latent && bias) sum.add(1, "H");
            return sum;
        case Step::combine_backward:
            add_row_map(sum.add(1, "TH").add(1, "Nl"));
            if (latent) sum.add(1, "Tl").add(2, "lH").product(2, "TlH");
            if (latent && bias) sum.add(1, "H");
            return sum;
        case Step::fc2_backward:
            sum.add(1, "Nl").add(2, "NF").add(2, "EFl").counts().product(2, "NFl");
            if (bias) sum.add(1, "El");
            if (bias && on_activation) sum.probs(1, "N");
            return sum;
        case Step::activation_backward:
            sum.add(1, "NF").add_gated(2, "NF");
            if (on_activation) sum.probs(2, "N");
            return sum;
        case Step::fc1_backward:
            sum.add(2, "Nl").add_gated(1, "NF").add_gated(2, "EFl").counts();
            if (bias) sum.add_gated(1, "EF");
            if (on_input) sum.probs(2, "N");
            return sum.gated_product("NFl").gated_product("NFl");
        case Step::dispatch_backward:
            sum.add(1, "Nl").add(latent ? 2 : 1, "TH").probs(1, "N");
            add_row_map(sum.probs(1, dense ? "TE" : "TK"));
            if (latent) sum.add(2, "lH").product(2, "TlH");
            if (latent && bias) sum.add(1, "l");
            return sum;
        case Step::auxiliary_losses_backward: return has_losses(c) ? sum.logits(2) : sum;
        case Step::token_dropping_backward:
            if (!c.moe_expert_capacity_factor) return {};
            add_routing(sum.probs(1, dense ? "TE" : "TK"), 1);
            return sum;
        case Step::routing_backward:  // the losses' dlogits are there already
            add_routing(sum, 1);
            return sum.logits(has_losses(c) ? 3 : 2);
        case Step::gating_backward:  // adds to dX
            sum.logits(1).add(3, "TH").add(2, "EH").product(2, "TEH");
            if (bias) sum.add(1, "E");
            return sum;
        case Step::shared_experts_backward:  // adds to dX
            if (c.shared_ffn() == 0) return {};
            sum.add(4, "TH").add(2 * shared_matrices, "FsH");
            if (c.moe_shared_expert_gate) sum.add(2, "H");
            return sum.product(2 * shared_matrices, "TFsH");
    }
    return {};
}

}  // namespace moe
