/// @file
/// The twenty steps of the layer, forward and backward. The same number marks the same
/// step in the comments of every tier, in `moe compare`, in `moe trace` and in the docs.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <utility>

#include "core/tensor.h"

namespace moe {

/// Forward ① to ⑩, then backward ⑪ to ⑳, in the order in which they run. Step n is undone
/// by step 21 - n.
enum class Step : int {
    shared_experts = 1,         ///< ① the MLP that every token visits
    gating,                     ///< ② logits = X Wᵀ (+ b)
    routing,                    ///< ③ scores, top-k, weights: probs and routing_map
    token_dropping,             ///< ④ capacity: who stays
    auxiliary_losses,           ///< ⑤ z, aux, seq-aux and global-aux losses
    dispatch,                   ///< ⑥ token rows into expert order
    fc1,                        ///< ⑦ h = W1 x (+ b1)
    activation,                 ///< ⑧ a = act(h) * p
    fc2,                        ///< ⑨ y = W2 a (+ p b2)
    combine,                    ///< ⑩ sum of each token's rows, plus the shared experts
    combine_backward,           ///< ⑪ every row gets its token's gradient
    fc2_backward,               ///< ⑫ da, dW2, db2
    activation_backward,        ///< ⑬ dh and dp
    fc1_backward,               ///< ⑭ dx, dW1, db1
    dispatch_backward,          ///< ⑮ sum of a token's row gradients
    auxiliary_losses_backward,  ///< ⑯ the losses' own gradients, into dlogits
    token_dropping_backward,    ///< ⑰ dropped choices lose their gradient
    routing_backward,           ///< ⑱ dprobs, added to dlogits
    gating_backward,            ///< ⑲ dX, dW, db of the router
    shared_experts_backward,    ///< ⑳ undoes ①
};

inline constexpr int kNumSteps = 20;

/// "①" … "⑳".
std::string circled(Step step);
/// The step in words, e.g. "routing" or "FC1 backward".
std::string title(Step step);
/// True from ⑪ on.
constexpr bool is_backward(Step step) {
    return step >= Step::combine_backward;
}

/// One step, or a run of them that a fused kernel takes at once.
struct Steps {
    Step first, last;

    Steps(Step one) : first(one), last(one) {}
    Steps(Step first, Step last) : first(first), last(last) {}
    bool is_fused() const { return first != last; }
    bool operator==(const Steps&) const = default;
};

/// "⑥", or "⑥–⑧".
std::string circled(const Steps& steps);

/// Watches a layer at work. The default watches nothing.
class Observer {
  public:
    virtual ~Observer() = default;
    /// An intermediate value is ready. `name` is stable across tiers, e.g. "logits".
    virtual void on_value(Step, const std::string& /*name*/, const TensorView&) {}
    /// A value that no kernel of the result wrote: others, unfused, were run beside them
    /// to show it. They are no part of any step.
    virtual void on_value_beside(Step step, const std::string& name,
                                 const TensorView& view) {
        on_value(step, name, view);
    }
    /// False where values that have to be computed beside the result are not wanted.
    virtual bool wants_values_beside() const { return true; }
    /// A stretch of a step, or of steps that are one, took that long; a step may come in
    /// several stretches.
    virtual void on_time(const Steps&, double /*seconds*/) {}
    /// The host waits for the device before it can go on; `where` is Megatron's name of
    /// the sync point, e.g. "before_ep_alltoall". Reported where a dispatcher has such a
    /// point, in every tier, also in those where host and device are one.
    virtual void on_host_wait(Step, const std::string& /*where*/) {}
};

/// A number, or one that lies on a device: (1) f32, read when the kernels run. TUTORIAL:
/// a CUDA graph repeats the numbers of its capture, and sees what has become of memory.
class LossScale {
  public:
    LossScale(double value = 1.0) : value_(value) {}
    LossScale(Tensor on_device) : on_device_(std::move(on_device)) {}

    const Tensor& on_device() const { return on_device_; }  ///< or undefined
    /// The number; where it lies on a device, the host waits for it.
    double value() const;

  private:
    double value_ = 1.0;
    Tensor on_device_;
};

/// How one call of the layer runs.
struct RunContext {
    /// Losses are computed, and experts counted for the bias, only in training.
    bool training = true;
    /// Scale of the auxiliary losses' gradients, set before each backward: loss scale
    /// times CP over the number of micro-batches (or the loss scale alone, per-token
    /// loss). Source: moe_utils.py, MoEAuxLossAutoScaler.main_loss_backward_scale.
    LossScale main_loss_backward_scale = 1.0;
    Observer* observer = nullptr;
    /// (B, S) i64, any memory space: the tokens' ids, for moe_router_hash_vocab_size; or
    /// undefined.
    Tensor token_ids = {};
    /// (T, K) i64, any memory space: the experts to take, with moe_enable_routing_replay;
    /// or undefined, and the router chooses. Source: router_replay.py, RouterReplay.
    Tensor target_topk_idx = {};

    void value(Step step, const std::string& name, const TensorView& view) const {
        if (observer != nullptr) observer->on_value(step, name, view);
    }
    /// True when values are to be computed that the kernels of the result do not write.
    bool wants_values_beside() const {
        return observer != nullptr && observer->wants_values_beside();
    }
    /// @param make  () -> Tensor, called only where somebody looks
    template <typename Make>
    void value_beside(Step step, const std::string& name, Make make) const {
        if (wants_values_beside())
            observer->on_value_beside(step, name, TensorView(make()));
    }
    void host_wait(Step step, const std::string& where) const {
        if (observer != nullptr) observer->on_host_wait(step, where);
    }
};

/// Reports the time from construction to destruction as a stretch of `steps`. A timer
/// within the life of another interrupts it: no time counts for two steps.
class StepTimer {
  public:
    StepTimer(const RunContext& context, const Steps& steps)
        : observer_(context.observer), steps_(steps) {
        if (observer_ == nullptr) return;
        start_ = Clock::now();
        outer_ = std::exchange(innermost_, this);
        if (outer_ != nullptr) outer_->report(start_);
    }
    ~StepTimer() {
        if (observer_ == nullptr) return;
        const Clock::time_point end = Clock::now();
        report(end);
        innermost_ = outer_;
        if (outer_ != nullptr) outer_->start_ = end;
    }
    StepTimer(const StepTimer&) = delete;
    StepTimer& operator=(const StepTimer&) = delete;

  private:
    using Clock = std::chrono::steady_clock;
    void report(Clock::time_point end) const {
        observer_->on_time(steps_, std::chrono::duration<double>(end - start_).count());
    }
    static inline thread_local StepTimer* innermost_ = nullptr;

    Observer* observer_;
    Steps steps_;
    Clock::time_point start_;
    StepTimer* outer_ = nullptr;
};

}  // namespace moe
