// floors_fused.cpp: the least that several steps in one must do, and what is kept.

#include "core/floor_sum.h"

namespace moe {

Floor Floor::operator+(const Floor& other) const {
    return {formula + " + " + other.formula, bytes + other.bytes,
            metadata + other.metadata, flops + other.flops};
}

Floor Floors::gating_and_routing() const {
    Sum sum(*this);
    sum.add(1, "TH").add(1, "EH").logits(1).product(1, "TEH");
    if (config_.add_bias_linear) sum.add(1, "E");
    if (config_.moe_router_enable_expert_bias || config_.is_quantile_balancing())
        sum.probs(1, "E");
    add_routing(sum, 1);
    return sum;
}

Floor Floors::dispatch_to_activation() const {
    Sum sum(*this);
    add_routing(sum.add(1, "Tl"), 1);
    add_row_map(sum.add_gated(1, "EFl").add_gated(1, "NF").add(1, "NF"));
    if (config_.add_bias_linear) sum.add_gated(1, "EF");
    return sum.gated_product("NFl");
}

Floor Floors::row_map() const {
    Sum sum(*this);
    add_routing(sum, 1);
    add_row_map(sum.probs(1, "N"));
    return sum;
}

Floor Floors::fc1_and_activation(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum, rows);
    sum.add_gated(1, "EFl").add_gated(1, "NF").add(1, "NF");
    if (config_.add_bias_linear && routed_) sum.add_gated(1, "EF");
    if (routed_) sum.probs(1, "N");
    return sum.gated_product("NFl");
}

Floor Floors::experts_dh(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum, rows);
    sum.add(1, "EFl").add_gated(2, "NF").add(1, "NF").product(1, "NFl");
    if (routed_) sum.probs(2, "N");
    return sum;
}

Floor Floors::experts_dw2(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum, rows);
    sum.add(1, "NF").add(1, "EFl").product(1, "NFl");
    if (config_.add_bias_linear && routed_) sum.add(1, "El");
    return sum;
}

Floor Floors::experts_dx() const {
    Sum sum(*this);
    sum.add_gated(1, "NF").add_gated(1, "EFl").add(1, "Nl").counts();
    return sum.gated_product("NFl");
}

Floor Floors::experts_dw1(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum.add_gated(1, "NF"), rows);
    sum.add_gated(1, "EFl");
    if (config_.add_bias_linear && routed_) sum.add_gated(1, "EF");
    return sum.gated_product("NFl");
}

Floor Floors::losses_to_routing_backward() const {
    Sum sum(*this);
    add_routing(sum, 1);
    return sum.logits(2);
}

Floor Floors::gating_dx() const {
    return Sum(*this).logits(1).add(1, "EH").add(2, "TH").product(1, "TEH");
}

Floor Floors::gating_dw() const {
    return Sum(*this).logits(1).add(1, "TH").add(1, "EH").product(1, "TEH");
}

Floors Floors::shared_experts() const {
    Floors one = *this;
    one.config_.num_moe_experts = 1;
    one.config_.moe_ffn_hidden_size = config_.shared_ffn();
    one.config_.add_bias_linear = false;
    one.config_.moe_latent_size.reset();
    one.sizes_.num_rows = sizes_.num_tokens;
    one.routed_ = false;
    return one;
}

Floor Floors::kept(const std::vector<KeptTensor>& tensors) const {
    Sum sum(*this);
    for (const KeptTensor& tensor : tensors)
        sum.add(tensor.times, tensor.letters, tensor.dtype);
    return sum;
}

}  // namespace moe
