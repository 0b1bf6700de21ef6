#include "core/floors.h"

#include <algorithm>
#include <vector>

#include "core/error.h"

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

/// A floor under construction: terms such as "2 EFH in bf16".
class Floors::Sum {
  public:
    explicit Sum(const Floors& floors) : floors_(floors) {}

    /// `times` tensors of activations or weights; their sizes as letters.
    Sum& add(std::int64_t times, const std::string& letters) {
        return add(times, letters, floors_.formats_.dtype);
    }
    Sum& logits(std::int64_t times) { return add(times, "TE", floors_.formats_.logits); }
    Sum& probs(std::int64_t times, const std::string& letters) {
        return add(times, letters, floors_.formats_.probs);
    }
    /// The shape of W1, of h or of its bias: 2F where the linear unit is gated.
    Sum& add_gated(std::int64_t times, const std::string& letters) {
        return add(times * (floors_.config_.gated_linear_unit ? 2 : 1), letters);
    }
    Sum& metadata(const std::string& letters, DType dtype) {
        floor_.metadata += count(letters) * std::int64_t(size_of(dtype));
        return *this;
    }
    Sum& ids(const std::string& letters) {
        return metadata(letters, floors_.formats_.ids);
    }
    /// Rows of each expert, for products over rows in expert order.
    Sum& counts() { return floors_.routed_ ? ids("E") : *this; }
    Sum& product(std::int64_t times, const std::string& letters) {
        floor_.flops += 2.0 * double(times) * double(count(letters));
        return *this;
    }
    Sum& gated_product(const std::string& letters) {
        return product(floors_.config_.gated_linear_unit ? 2 : 1, letters);
    }

    operator Floor() const {
        Floor floor = floor_;
        for (const auto& [letters, times] : terms_)
            floor.formula += (floor.formula.empty() ? "" : " + ") +
                             (times > 1 ? std::to_string(times) : "") + letters;
        if (floor.metadata > 0) floor.formula += " + m";
        return floor;
    }

  private:
    Sum& add(std::int64_t times, const std::string& letters, DType dtype) {
        const auto same = std::find_if(terms_.begin(), terms_.end(),
                                       [&](const auto& t) { return t.first == letters; });
        if (same != terms_.end())
            same->second += times;
        else
            terms_.emplace_back(letters, times);
        floor_.bytes += times * count(letters) * std::int64_t(size_of(dtype));
        return *this;
    }

    /// The product of the sizes that the letters stand for.
    std::int64_t count(const std::string& letters) const {
        const MoEConfig& c = floors_.config_;
        std::int64_t product = 1;
        for (std::size_t i = 0; i < letters.size(); ++i) switch (letters[i]) {
                case 'T': product *= floors_.sizes_.num_tokens; break;
                case 'N': product *= floors_.sizes_.num_rows; break;
                case 'H': product *= c.hidden_size; break;
                case 'E': product *= c.num_experts(); break;
                case 'K': product *= c.moe_router_topk; break;
                case 'F':
                    if (letters.compare(i, 2, "Fs") == 0)
                        product *= c.shared_ffn(), ++i;
                    else
                        product *= c.ffn();
                    break;
                default: MOE_CHECK(false);
            }
        return product;
    }

    const Floors& floors_;
    Floor floor_;
    std::vector<std::pair<std::string, std::int64_t>> terms_;
};

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
        sum.add(1, "NH").counts();
    else
        add_row_map(sum.add(1, "TH"));
}

Floor Floors::step(Step step) const {
    const MoEConfig& c = config_;
    const bool bias = c.add_bias_linear, dense = formats_.routing == RoutingForm::dense;
    // Probabilities weigh the input of FC1, or its activation and the bias of FC2.
    const int on_input = c.moe_apply_probs_on_input, on_activation = 1 - on_input;
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
            if (c.moe_router_enable_expert_bias) sum.probs(1, "E");
            return sum;
        case Step::token_dropping:
            if (c.moe_expert_capacity_factor) add_routing(sum, 2);
            return sum;
        case Step::auxiliary_losses: return has_losses(c) ? sum.logits(1) : sum;
        case Step::dispatch:
            add_routing(sum.add(1, "TH").add(1, "NH"), 1);
            add_row_map(sum.probs(1, "N"));
            return sum;
        case Step::fc1:
            sum.add(1, "NH").add_gated(1, "EFH").add_gated(1, "NF").counts();
            if (bias) sum.add_gated(1, "EF");
            if (on_input) sum.probs(1, "N");
            return sum.gated_product("NFH");
        case Step::activation:
            sum.add_gated(1, "NF").add(1, "NF");
            if (on_activation) sum.probs(1, "N");
            return sum;
        case Step::fc2:
            sum.add(1, "NF").add(1, "EFH").add(1, "NH").counts().product(1, "NFH");
            if (bias) sum.add(1, "EH");
            if (bias && on_activation) sum.probs(1, "N");
            return sum;
        case Step::combine:
            add_row_map(sum.add(1, "NH").add(c.shared_ffn() > 0 ? 2 : 1, "TH"));
            return sum;
        case Step::combine_backward:
            add_row_map(sum.add(1, "TH").add(1, "NH"));
            return sum;
        case Step::fc2_backward:
            sum.add(1, "NH").add(2, "NF").add(2, "EFH").counts().product(2, "NFH");
            if (bias) sum.add(1, "EH");
            if (bias && on_activation) sum.probs(1, "N");
            return sum;
        case Step::activation_backward:
            sum.add(1, "NF").add_gated(2, "NF");
            if (on_activation) sum.probs(2, "N");
            return sum;
        case Step::fc1_backward:
            sum.add(2, "NH").add_gated(1, "NF").add_gated(2, "EFH").counts();
            if (bias) sum.add_gated(1, "EF");
            if (on_input) sum.probs(2, "N");
            return sum.gated_product("NFH").gated_product("NFH");
        case Step::dispatch_backward:
            sum.add(1, "NH").add(1, "TH").probs(1, "N").probs(1, dense ? "TE" : "TK");
            add_row_map(sum);
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

// ----------------------------------------------------------------------------- fused
Floor Floors::gating_and_routing() const {
    Sum sum(*this);
    sum.add(1, "TH").add(1, "EH").logits(1).product(1, "TEH");
    if (config_.add_bias_linear) sum.add(1, "E");
    if (config_.moe_router_enable_expert_bias) sum.probs(1, "E");
    add_routing(sum, 1);
    return sum;
}

Floor Floors::dispatch_to_activation() const {
    Sum sum(*this);
    add_routing(sum.add(1, "TH"), 1);
    add_row_map(sum.add_gated(1, "EFH").add_gated(1, "NF").add(1, "NF"));
    if (config_.add_bias_linear) sum.add_gated(1, "EF");
    return sum.gated_product("NFH");
}

Floor Floors::fc1_and_activation() const {
    Sum sum(*this);
    sum.add(1, "NH").add_gated(1, "EFH").add_gated(1, "NF").add(1, "NF").counts();
    if (config_.add_bias_linear && routed_) sum.add_gated(1, "EF");
    if (routed_) sum.probs(1, "N");
    return sum.gated_product("NFH");
}

Floor Floors::experts_dh(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum, rows);
    sum.add(1, "EFH").add_gated(2, "NF").add(1, "NF").product(1, "NFH");
    if (routed_) sum.probs(2, "N");
    return sum;
}

Floor Floors::experts_dw2(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum, rows);
    sum.add(1, "NF").add(1, "EFH").product(1, "NFH");
    if (config_.add_bias_linear && routed_) sum.add(1, "EH");
    return sum;
}

Floor Floors::experts_dx() const {
    Sum sum(*this);
    sum.add_gated(1, "NF").add_gated(1, "EFH").add(1, "NH").counts();
    return sum.gated_product("NFH");
}

Floor Floors::experts_dw1(Rows rows) const {
    Sum sum(*this);
    add_tokens(sum.add_gated(1, "NF"), rows);
    sum.add_gated(1, "EFH");
    if (config_.add_bias_linear && routed_) sum.add_gated(1, "EF");
    return sum.gated_product("NFH");
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
    one.sizes_.num_rows = sizes_.num_tokens;
    one.routed_ = false;
    return one;
}

}  // namespace moe
