/// @file
/// The four components of the layer as interfaces, each written for one rank, forward and
/// backward. A tier implements them; MoELayer wires them and knows no more than this
/// file.
///
/// Every tensor that enters or leaves a component lies in the component's own
/// placement(). Integers (maps, counts) keep their type in every placement, and
/// probabilities with their gradients stay fp32 between bf16 components, as Megatron's
/// do: see probs_placement().
#pragma once

#include <map>
#include <memory>
#include <string>

#include "core/steps.h"
#include "core/tensor.h"

namespace moe {

/// What a forward keeps for its backward; each tier derives its own.
struct Saved {
    virtual ~Saved() = default;
};
using SavedPtr = std::unique_ptr<Saved>;

/// The concrete Saved of the component that made it.
template <typename Derived>
const Derived& saved_as(const Saved& saved) {
    const auto* derived = dynamic_cast<const Derived*>(&saved);
    MOE_CHECK(derived != nullptr);
    return *derived;
}

/// Logged losses, before their coefficients, by Megatron's names: load_balancing_loss,
/// seq_load_balancing_loss, global_load_balancing_loss, z_loss.
using Losses = std::map<std::string, double>;

/// Base of all components: where it works.
class Component {
  public:
    explicit Component(Placement placement) : placement_(placement) {}
    virtual ~Component() = default;
    const Placement& placement() const { return placement_; }

  private:
    Placement placement_;
};

/// Where a component at `placement` wants probs, row_probs, drow_probs and dprobs: there,
/// but never in less than fp32.
inline Placement probs_placement(const Placement& placement) {
    return {placement.space,
            placement.dtype == DType::bf16 ? DType::f32 : placement.dtype};
}

/// Chooses K experts for every token, and their weights. Source: router.py, TopKRouter.
class Router : public Component {
  public:
    using Component::Component;

    struct Output {
        Tensor probs;        ///< (T, E), 0 where not routed
        Tensor routing_map;  ///< (T, E) u8, 1 where routed
        Losses losses;       ///< empty outside training
        SavedPtr saved;
    };
    /// @param hidden        (S, B, H)
    /// @param padding_mask  (S, B) u8, 1 = padding, or undefined
    /// Throws InputError on a NaN or infinite logit.
    virtual Output forward(const Tensor& hidden, const Tensor& padding_mask,
                           const RunContext& context) = 0;

    /// Adds this component's part to dhidden (T, H) and puts "router.weight" and, with a
    /// bias, "router.bias" into `gradients`.
    /// @param dprobs  (T, E), gradient of the main loss by probs
    virtual void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                          const Saved& saved, const RunContext& context) = 0;

    /// Once per optimizer step: moves the expert bias (E) f32 towards balance by the
    /// counts since the last call, and returns it; undefined without an expert bias.
    /// Source: finalize_model_grads.py, _update_router_expert_bias.
    virtual Tensor update_expert_bias() = 0;

    /// Once per optimizer step: forgets the counts of the global auxiliary loss.
    /// Source: router.py, TopKRouter.reset_global_aux_loss_tracker.
    virtual void reset_global_aux_loss_tracker() = 0;
};

class SharedExperts;

/// Brings token rows to their experts and back. Source: token_dispatcher.py.
class TokenDispatcher : public Component {
  public:
    using Component::Component;

    struct Dispatched {
        Tensor rows;  ///< (N, H), by local expert, then source rank and token
        Tensor tokens_per_expert;  ///< (L) i64 on the host, sums to N
        Tensor row_probs;          ///< (N)
        SavedPtr saved;
    };
    /// @param hidden (T, H), @param probs (T, E), @param routing_map (T, E) u8
    virtual Dispatched dispatch(const Tensor& hidden, const Tensor& probs,
                                const Tensor& routing_map, const RunContext& context) = 0;

    /// Sum of each token's rows in ascending expert order, plus `shared_output` (T, H) if
    /// that is defined. Returns (T, H).
    virtual Tensor combine(const Tensor& rows, const Tensor& shared_output,
                           const Saved& saved, const RunContext& context) = 0;

    /// @param doutput (T, H). Returns drows (N, H).
    virtual Tensor combine_backward(const Tensor& doutput, const Saved& saved,
                                    const RunContext& context) = 0;

    struct Gradients {
        Tensor dhidden;  ///< (T, H)
        Tensor dprobs;   ///< (T, E), 0 where not routed
    };
    virtual Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                        const Saved& saved,
                                        const RunContext& context) = 0;

    /// For moe_shared_expert_overlap: from now on this dispatcher runs the stages of
    /// these shared experts, see SharedExperts, and combine() adds what they make.
    void set_shared_experts(SharedExperts* shared_experts) {
        shared_experts_ = shared_experts;
    }

  protected:
    SharedExperts* shared_experts_ = nullptr;  // null: they run without us
};

/// The routed experts: an MLP per expert over its rows. Source: experts.py.
class Experts : public Component {
  public:
    using Component::Component;

    struct Output {
        Tensor rows;  ///< (N, H), already weighted by row_probs
        SavedPtr saved;
    };
    virtual Output forward(const Tensor& rows, const Tensor& tokens_per_expert,
                           const Tensor& row_probs, const RunContext& context) = 0;

    struct Gradients {
        Tensor drows;       ///< (N, H)
        Tensor drow_probs;  ///< (N)
    };
    /// Puts "experts.linear_fc1.weight", "….bias" and those of linear_fc2 into
    /// `gradients`.
    virtual Gradients backward(TensorMap& gradients, const Tensor& doutput,
                               const Saved& saved, const RunContext& context) = 0;
};

/// The MLP that every token visits. Source: shared_experts.py, SharedExpertMLP.
///
/// It works in stages. forward() and backward() run them one after another; with
/// moe_shared_expert_overlap the dispatcher does, between its own exchanges:
///
/// - pre_forward_comm, linear_fc1_forward_and_act: in dispatch. AlltoAll: once the splits
///   are known, and between rows and probabilities. Flex: both once rows are on their
///   way.
/// - linear_fc2_forward, post_forward_comm: in combine, after the exchange.
/// - get_output: where its result is added.
/// - linear_fc2_backward: in combine_backward, before the exchange.
/// - linear_fc1_backward: in dispatch_backward. AlltoAll: between dprobs and dhidden.
///   Flex: before the exchange.
/// - pre_forward_comm_backward: MoELayer, where backward() stands otherwise.
///
/// The last stands where it does so that gradients add up in one order, and overlap
/// changes no bit. A stage out of order is an InternalError. Between the first stage and
/// the last of a forward, or of a backward, the component holds what is under way.
class SharedExperts : public Component {
  public:
    using Component::Component;

    struct Output {
        Tensor output;  ///< (T, H)
        SavedPtr saved;
    };
    /// @param hidden (T, H)
    Output forward(const Tensor& hidden, const RunContext& context) {
        Output result;
        result.saved = pre_forward_comm(hidden, context);
        linear_fc1_forward_and_act(context);
        linear_fc2_forward(context);
        post_forward_comm(context);
        result.output = get_output(context);
        return result;
    }

    /// Adds this component's part to dhidden (T, H) and puts
    /// "shared_experts.linear_fc1.weight", "….linear_fc2.weight" and, with a gate,
    /// "shared_experts.gate_weight" into `gradients`.
    void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& doutput,
                  const Saved& saved, const RunContext& context) {
        linear_fc2_backward(doutput, saved, context);
        linear_fc1_backward(context);
        pre_forward_comm_backward(dhidden, gradients, context);
    }

    /// Gathers the tokens over tp. @param hidden (T, H)
    /// @return what the backward needs; the stages of the forward fill it
    virtual SavedPtr pre_forward_comm(const Tensor& hidden,
                                      const RunContext& context) = 0;
    virtual void linear_fc1_forward_and_act(const RunContext& context) = 0;
    virtual void linear_fc2_forward(const RunContext& context) = 0;
    /// Sums the outputs over tp.
    virtual void post_forward_comm(const RunContext& context) = 0;
    /// Applies the gate. Returns (T, H).
    virtual Tensor get_output(const RunContext& context) = 0;

    /// Undoes all from linear_fc2_forward on. @param doutput (T, H)
    virtual void linear_fc2_backward(const Tensor& doutput, const Saved& saved,
                                     const RunContext& context) = 0;
    virtual void linear_fc1_backward(const RunContext& context) = 0;
    /// Sums gradients of tokens over tp, and hands out what the backward made; see
    /// backward().
    virtual void pre_forward_comm_backward(Tensor& dhidden, TensorMap& gradients,
                                           const RunContext& context) = 0;

  protected:
    /// The last stage that ran. Source: shared_experts.py, SharedExpertState.
    enum class State {
        idle,
        pre_forward_comm_done,
        fc1_forward_done,
        fc2_forward_done,
        post_forward_comm_done,
        fc2_backward_done,
        fc1_backward_done,
    };
    /// What every stage begins with. Source: shared_experts.py, overlap_state_check.
    void advance(State required, State next) {
        MOE_CHECK_EQ(int(state_), int(required));
        state_ = next;
    }

  private:
    State state_ = State::idle;
};

}  // namespace moe
