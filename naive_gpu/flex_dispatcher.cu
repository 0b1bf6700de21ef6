// flex_dispatcher.cu: one row per token and rank, through the peers' heaps.

#include "naive_gpu/flex_dispatcher.h"

#include "core/transfer.h"
#include "distributed/flex_plan.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "naive_gpu/flex_phases.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/permutation.h"

namespace moe::naive {
namespace {

using distributed::count_rows;
using distributed::enough_tokens_to_pad;
using distributed::FlexPlan;
using distributed::HeapSection;
using distributed::notify_dispatch;
using distributed::offer_rows;
using distributed::peer_rows;
using distributed::PeerRows;
using distributed::reserve_heap;
using distributed::take_rows;

constexpr MemorySpace kSpace = MemorySpace::device;

struct DispatcherSaved : Saved {
    DispatchLayout layout;
    FlexPlan plan;
    Tensor topk_ids;          // (N', K') i64, received
    RowMap map;               // of the received rows and the local experts
    SavedPtr shared_experts;  // with moe_shared_expert_overlap
};

ExpertGrid expert_grid(const MoEConfig& config) {
    const std::int64_t ETP = *config.expert_tensor_parallel_size;
    return {config.expert_model_parallel_size * ETP, ETP, config.num_local_experts()};
}

/// A section of everybody's heap; the heap may have moved since the plan was made.
template <typename E>
PeerRows<E> section_of_peers(const FlexPlan& plan, const HeapSection& section,
                             const distributed::ProcessGroups& groups) {
    return peer_rows<E>(plan, section, groups.heap->table(kSpace));
}

/// Waits for the other ranks with all that this rank's device has to do done: what it
/// wrote into their heaps is there, what it reads in them is read.
void device_barrier(distributed::Communicator& group) {
    gpu::synchronize();
    group.barrier();
}

}  // namespace

template <typename T>
FlexDispatcher<T>::FlexDispatcher(const MoEConfig& config, const GroupsPtr& groups)
    : TokenDispatcher({kSpace, gpu::device_dtype<T>}), config_(config), groups_(groups) {}

//! [flex_dispatch]
template <typename T>
TokenDispatcher::Dispatched FlexDispatcher<T>::dispatch(const Tensor& hidden,
                                                        const Tensor& probs,
                                                        const Tensor& routing_map,
                                                        const RunContext& context) {
    Dispatched result;
    auto saved = std::make_unique<DispatcherSaved>();
    const ExpertGrid grid = expert_grid(config_);
    const std::int64_t slots = grid.num_shards * config_.moe_router_topk;  // K'
    DispatchLayout& layout = saved->layout;
    FlexPlan& plan = saved->plan;
    Tensor received, sources;  // (N', H), (N', 2)
    {
        StepTimer timer(context, Step::dispatch);
        // ⑥ layout, notify: how many rows go where is known to all before any moves
        layout = get_dispatch_layout(probs, routing_map, grid, slots);
        plan = notify_dispatch(layout.sent.tokens_per_expert, config_,
                               gpu::device_dtype<T>, *groups_);
        context.host_wait(Step::dispatch, "flex_dispatch_counts");
        reserve_heap(plan, config_, kSpace, *groups_);

        // ⑥ dispatch: into the peers' heaps. Nobody reads his own any more: he took his
        // rows before he came to notify.
        push_rows(section_of_peers<T>(plan, plan.hidden, *groups_), hidden, layout.sent);
        push_choices({section_of_peers<std::int64_t>(plan, plan.topk_ids, *groups_),
                      section_of_peers<std::int64_t>(plan, plan.sources, *groups_),
                      section_of_peers<float>(plan, plan.topk_probs, *groups_)},
                     layout, grid, groups_->tp_ep->rank());
        count_rows(*groups_->tp_ep, "flex_dispatch", plan.input_splits,
                   plan.hidden.row_bytes() + plan.topk_ids.row_bytes() +
                       plan.topk_probs.row_bytes() + plan.sources.row_bytes());
        if (shared_experts_ != nullptr) {
            saved->shared_experts = shared_experts_->pre_forward_comm(
                transfer(hidden, shared_experts_->placement()), context);
            shared_experts_->linear_fc1_forward_and_act(context);
        }
        device_barrier(*groups_->tp_ep);

        // ⑥ local: what came, expert by expert
        received = take_rows(plan, plan.hidden, *groups_, kSpace);
        sources = take_rows(plan, plan.sources, *groups_, kSpace);
        saved->topk_ids = take_rows(plan, plan.topk_ids, *groups_, kSpace);
        const Multihot local = indices_to_multihot(
            saved->topk_ids, take_rows(plan, plan.topk_probs, *groups_, kSpace),
            grid.num_local);
        saved->map = make_row_map(local.map);
        if (const std::int64_t multiple = get_align_size_for_quantization(config_);
            config_.moe_router_padding_for_quantization &&
            enough_tokens_to_pad(saved->map.tokens_per_expert, plan.received_rows,
                                 multiple))
            saved->map = make_row_map(pad_routing_map(local.map, multiple));
        result.rows = permute<T>(received, saved->map);
        result.row_probs = permute_probs<float>(local.probs, saved->map);
        result.tokens_per_expert = counts_tensor(saved->map.tokens_per_expert);
        gpu::synchronize();
    }
    context.value(Step::dispatch, "row_token", saved->map.row_token);
    if (context.observer != nullptr) {
        const auto show = [&](const char* name, const std::vector<std::int64_t>& values) {
            context.value(Step::dispatch, name,
                          Tensor::from({std::int64_t(values.size())}, values));
        };
        show("input_splits", plan.input_splits);
        show("output_splits", plan.output_splits);
        context.value(Step::dispatch, "sent_hidden_states",
                      permute<T>(hidden, layout.sent));
    }
    context.value(Step::dispatch, "received_hidden_states", received);
    context.value(Step::dispatch, "received_sources", sources);
    context.value(Step::dispatch, "tokens_per_expert", result.tokens_per_expert);
    context.value(Step::dispatch, "dispatched_hidden_states", result.rows.values);
    context.value(Step::dispatch, "dispatched_probs", result.row_probs);
    result.saved = std::move(saved);
    return result;
}

template <typename T>
Tensor FlexDispatcher<T>::combine(const Tensor& rows, const Tensor& shared_output,
                                  const Saved& saved_base, const RunContext& context) {
    const auto& saved = saved_as<DispatcherSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        // ⑩ what the local experts made of each row received, for its owner to pull
        offer_rows(plan, plan.hidden, unpermute<T>(rows, saved.map), *groups_);
        count_rows(*groups_->tp_ep, "flex_combine", plan.output_splits,
                   plan.hidden.row_bytes());
        device_barrier(*groups_->tp_ep);

        // ⑩ combine: a plain sum over the ranks. The last barrier keeps the heap as it is
        // until all have pulled.
        output = pull_rows(section_of_peers<T>(plan, plan.hidden, *groups_),
                           saved.layout.sent);
        device_barrier(*groups_->tp_ep);
        if (shared_experts_ != nullptr) {
            shared_experts_->linear_fc2_forward(context);
            shared_experts_->post_forward_comm(context);
        }
        const Tensor shared =
            shared_experts_ != nullptr
                ? transfer(shared_experts_->get_output(context), placement())
                : shared_output;
        if (shared.defined()) add_to<T>(output, shared);
        gpu::synchronize();
    }
    context.value(Step::combine, "output", output);
    return output;
}
//! [flex_dispatch]

//! [flex_dispatch_backward]
template <typename T>
Rows FlexDispatcher<T>::combine_backward(const Tensor& doutput, const Saved& saved_base,
                                         const RunContext& context) {
    const auto& saved = saved_as<DispatcherSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    Tensor drows;
    {
        StepTimer timer(context, Step::combine_backward);
        if (shared_experts_ != nullptr)
            shared_experts_->linear_fc2_backward(
                transfer(doutput, shared_experts_->placement()), *saved.shared_experts,
                context);
        // ⑪ dispatch of the gradients. The counts are known, and with them goes notify's
        // barrier: without this one a peer may still be taking an earlier push.
        device_barrier(*groups_->tp_ep);
        push_rows(section_of_peers<T>(plan, plan.hidden, *groups_), doutput,
                  saved.layout.sent);
        count_rows(*groups_->tp_ep, "flex_combine_backward", plan.input_splits,
                   plan.hidden.row_bytes());
        device_barrier(*groups_->tp_ep);

        // ⑪ a sum hands its gradient to every term
        drows = unpermute_backward<T>(take_rows(plan, plan.hidden, *groups_, kSpace),
                                      saved.map);
        gpu::synchronize();
    }
    context.value(Step::combine_backward, "d_expert_output", drows);
    return drows;
}

template <typename T>
TokenDispatcher::Gradients FlexDispatcher<T>::dispatch_backward(
    const Tensor& drows, const Tensor& drow_probs, const Saved& saved_base,
    const RunContext& context) {
    const auto& saved = saved_as<DispatcherSaved>(saved_base);
    const FlexPlan& plan = saved.plan;
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        if (shared_experts_ != nullptr) shared_experts_->linear_fc1_backward(context);
        // ⑮ each received row's gradient, and those of its choices
        offer_rows(plan, plan.hidden, permute_backward<T>(drows, saved.map), *groups_);
        offer_rows(
            plan, plan.topk_probs,
            indices_to_multihot_backward(
                permute_probs_backward<float>(drow_probs, saved.map), saved.topk_ids),
            *groups_);
        count_rows(*groups_->tp_ep, "flex_dispatch_backward", plan.output_splits,
                   plan.hidden.row_bytes() + plan.topk_probs.row_bytes());
        device_barrier(*groups_->tp_ep);

        // ⑮ combine of the gradients: the token's owner sums them over the ranks
        gradients.dhidden = pull_rows(section_of_peers<T>(plan, plan.hidden, *groups_),
                                      saved.layout.sent);
        gradients.dprobs = pull_prob_gradients(
            section_of_peers<float>(plan, plan.topk_probs, *groups_), saved.layout,
            expert_grid(config_), config_.num_experts());
        device_barrier(*groups_->tp_ep);
    }
    context.value(Step::dispatch_backward, "d_hidden_states_routed", gradients.dhidden);
    context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}
//! [flex_dispatch_backward]

template class FlexDispatcher<float>;
template class FlexDispatcher<__nv_bfloat16>;

}  // namespace moe::naive
