/// @file
/// The four components of the layer as interfaces, each written for one rank, forward and
/// backward. A tier implements them; MoELayer wires them and knows no more than this
/// file.
///
/// Every tensor that enters or leaves a component lies in the component's own
/// placement(), unless it says otherwise. Integers (maps, ids, counts) keep their type in
/// every placement, and probabilities with their gradients lie in fp32 between bf16
/// components, as Megatron's behind a router of fp32 do: see probs_placement().
///
/// A component may have more than one form for what it hands on: K experts of each token,
/// or a dense map of all; rows, or where to find them. Who can take the compact form says
/// so, for all others MoELayer has the plain one made. What only a device knows, counts
/// and losses, stays there until somebody asks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

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

/// Losses that may still be under way on a device, and the word on the logits.
class LateLosses {
  public:
    LateLosses() = default;
    /// Losses that are known, of finite logits.
    LateLosses(Losses known) : read_([known = std::move(known)] { return known; }) {}
    LateLosses(std::function<Losses()> read) : read_(std::move(read)) {}

    /// Waits for whoever computes them. Call it once after a forward, also where there
    /// are no losses: a router that did not wait for its logits tells only here that one
    /// of them was NaN or infinite, by an InputError.
    Losses read() const { return read_ ? read_() : Losses{}; }

  private:
    std::function<Losses()> read_;
};

/// Rows (N, H) in the order of the experts, or where to find them.
struct Rows {
    Tensor values;    ///< (N, H); with ids (T, H), of which row r is values[ids[r]]
    Tensor ids = {};  ///< (N) i32, or undefined
    std::function<Tensor()> gather = {};  ///< with ids: makes the rows themselves
    /// (L + 1) i32 on the device: rows [offsets[e], offsets[e + 1]) are local expert e's;
    /// or undefined, and counts say it. For experts, who need not sum up their counts.
    Tensor offsets = {};

    Rows(Tensor values) : values(std::move(values)) {}
    Rows(Tensor source, Tensor ids, std::function<Tensor()> gather)
        : values(std::move(source)), ids(std::move(ids)), gather(std::move(gather)) {}
    Rows() = default;
    /// The rows without ids.
    Tensor plain() const { return ids.defined() ? gather() : values; }
};

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
/// but never in less than fp32, which holds those of a router of bf16 as they are.
inline Placement probs_placement(const Placement& placement) {
    return {placement.space,
            placement.dtype == DType::bf16 ? DType::f32 : placement.dtype};
}

/// Chooses K experts for every token, and their weights. Source: router.py, TopKRouter.
class Router : public Component {
  public:
    using Component::Component;

    /// True for the floating types in which it takes hidden states and adds to their
    /// gradient; MoELayer casts others to the router's own.
    virtual bool takes(DType dtype) const { return dtype == placement().dtype; }

    /// Dense maps, K choices of each token, or both.
    struct Output {
        Tensor probs;        ///< (T, E), 0 where not routed
        Tensor routing_map;  ///< (T, E) u8, 1 where routed
        Tensor topk_probs;   ///< (T, K)
        Tensor topk_ids;     ///< (T, K) i32, negative where capacity dropped the choice
        LateLosses losses;   ///< empty outside training
        SavedPtr saved;
    };
    /// @param hidden        (S, B, H)
    /// @param padding_mask  (S, B) u8, 1 = padding, or undefined
    /// Throws InputError on a NaN or infinite logit, here or in losses.read().
    virtual Output forward(const Tensor& hidden, const Tensor& padding_mask,
                           const RunContext& context) = 0;

    /// Fills in the dense maps of an output that has only choices, …
    virtual void make_dense(Output& output) const { MOE_CHECK(output.probs.defined()); }
    /// … and undoes that for the gradient. @return by topk_probs, if those exist
    virtual Tensor make_dense_backward(const Tensor& dprobs, const Saved&) const {
        return dprobs;
    }

    /// Adds this component's part to dhidden (T, H) and puts "router.weight" and, with a
    /// bias, "router.bias" into `gradients`.
    /// @param dprobs  gradient of the main loss by topk_probs, (T, K), if those exist;
    ///                else by probs, (T, E)
    virtual void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                          const Saved& saved, const RunContext& context) = 0;

    /// Once per optimizer step: moves the expert bias (E) f32 towards balance by the
    /// counts since the last call, and returns it; undefined without an expert bias.
    /// Source: finalize_model_grads.py, _update_router_expert_bias.
    virtual Tensor update_expert_bias() = 0;

    /// Once per optimizer step: the numbers (E) f32 that quantile balancing takes off the
    /// logits, from the micro-batches since the last call; undefined without it. Source:
    /// finalize_model_grads.py, _update_router_qb_beta.
    virtual Tensor update_qb_beta() = 0;

    /// Once per optimizer step: forgets the counts of the global auxiliary loss.
    /// Source: router.py, TopKRouter.reset_global_aux_loss_tracker.
    virtual void reset_global_aux_loss_tracker() = 0;
};

class SharedExperts;

/// Brings token rows to their experts and back. Source: token_dispatcher.py.
class TokenDispatcher : public Component {
  public:
    using Component::Component;

    /// True where it takes a router's K choices of each token instead of dense maps.
    virtual bool takes_topk() const { return false; }

    /// How many rows there are, N, may be a bound: those behind the last expert's are
    /// nobody's, and never read.
    struct Dispatched {
        Rows rows;  ///< (N, H), by local expert, then source rank and token
        /// (L) i32, on the host or where the dispatcher works; sums to at most N.
        Tensor tokens_per_expert;
        Tensor row_probs;  ///< (N)
        SavedPtr saved;
    };
    /// @param hidden   (T, H); H is ℓ in dispatcher and experts with moe_latent_size
    /// @param probs    (T, E), or (T, K) where it takes_topk()
    /// @param routing  (T, E) u8, the map; or (T, K) i32, the ids, negative: none
    virtual Dispatched dispatch(const Tensor& hidden, const Tensor& probs,
                                const Tensor& routing, const RunContext& context) = 0;

    /// Sum of each token's rows in ascending expert order, plus `shared_output` (T, H) if
    /// that is defined. Returns (T, H).
    virtual Tensor combine(const Tensor& rows, const Tensor& shared_output,
                           const Saved& saved, const RunContext& context) = 0;

    /// @param doutput (T, H). Returns drows (N, H).
    virtual Rows combine_backward(const Tensor& doutput, const Saved& saved,
                                  const RunContext& context) = 0;

    struct Gradients {
        Tensor dhidden;  ///< (T, H)
        Tensor dprobs;   ///< as `probs` came, 0 where not routed
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

    /// True where it finds rows by their ids; all others get them as they lie.
    virtual bool takes_row_ids() const { return false; }

    struct Output {
        Tensor rows;  ///< (N, H), already weighted by row_probs
        SavedPtr saved;
    };
    /// @param tokens_per_expert  (L) i32, on the host or on the device
    virtual Output forward(const Rows& rows, const Tensor& tokens_per_expert,
                           const Tensor& row_probs, const RunContext& context) = 0;

    struct Gradients {
        Tensor drows;       ///< (N, H)
        Tensor drow_probs;  ///< (N)
    };
    /// Puts "experts.linear_fc1.weight", "….bias" and those of linear_fc2 into
    /// `gradients`. With overlap_dispatch_backward_with_experts_wgrad they may still be
    /// under way, and `doutput` and `saved` in use, until finish_wgrad().
    virtual Gradients backward(TensorMap& gradients, const Rows& doutput,
                               const Saved& saved, const RunContext& context) = 0;
    /// Once the dispatch backward is under way: what follows has the gradients. Source:
    /// moe_layer.py, the identity nodes around dispatch and experts.
    virtual void finish_wgrad(const RunContext&) {}
};

/// The MLP that every token visits. Source: shared_experts.py, SharedExpertMLP.
///
/// It works in stages. forward() and backward() run them one after another; with
/// moe_shared_expert_overlap the dispatcher does, between its own exchanges:
///
/// - pre_forward_comm, linear_fc1_forward_and_act: in dispatch. AlltoAll: once the splits
///   are known, and between rows and probabilities. Flex: both once rows are on their
///   way.
/// - linear_fc2_forward, post_forward_comm: in combine. AlltoAll: after the exchange.
///   Flex: while others still offer their rows.
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
