#include "distributed/dispatchers/rank_dispatcher.h"

#include <numeric>

#include "core/latent_projection.h"
#include "core/transfer.h"
#include "distributed/exchange_plan.h"

namespace moe::distributed {
namespace {

/// Rows as they lie, or made for who looks. Room behind the last one is not shown.
void show_rows(const RunContext& context, Step step, const std::string& name,
               const Rows& rows, std::int64_t num_rows) {
    if (rows.ids.defined())
        context.value_beside(step, name, [&] { return rows.plain().first(num_rows); });
    else
        context.value(step, name, rows.values.first(num_rows));
}

std::int64_t num_rows_of(const Tensor& tokens_per_expert) {
    const std::vector<std::int64_t> counts = read_counts(tokens_per_expert);
    return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
}

void show(const Arrived& arrived, const TokenDispatcher::Dispatched& dispatched,
          const RunContext& context) {
    const auto value = [&](const std::string& name, const Tensor& tensor) {
        context.value(Step::dispatch, name, tensor);
    };
    value("row_token", arrived.row_token());
    for (const auto& [name, splits] : arrived.splits())
        value(name, Tensor::from({std::int64_t(splits.size())}, splits));
    value("sent_hidden_states", arrived.sent());
    value("received_hidden_states", arrived.received());
    if (arrived.sources) value("received_sources", arrived.sources());
    value("tokens_per_expert", dispatched.tokens_per_expert);
    const std::int64_t num_rows = num_rows_of(dispatched.tokens_per_expert);
    show_rows(context, Step::dispatch, "dispatched_hidden_states", dispatched.rows,
              num_rows);
    value("dispatched_probs", dispatched.row_probs.first(num_rows));
}

}  // namespace

TokenDispatcher::Dispatched RankDispatcher::dispatch(const Tensor& hidden,
                                                     const Tensor& probs,
                                                     const Tensor& routing,
                                                     const RunContext& context) {
    Dispatched result;
    Arrived arrived;
    {
        StepTimer timer(context, Step::dispatch);
        arrived = dispatch_rows(hidden, probs, routing, context);
        // ⑥ what came from many ranks, expert by expert
        const RowOrder& local = *arrived.saved->local;
        result.rows = local.permute(arrived.rows);
        result.row_probs = local.permute_probs(arrived.probs);
        result.tokens_per_expert = local.tokens_per_expert();
        end_step(context);
    }
    if (context.observer != nullptr) show(arrived, result, context);
    if (routing.dtype() == DType::i32) arrived.saved->topk_ids = routing;
    result.saved = std::move(arrived.saved);
    return result;
}

Tensor RankDispatcher::combine(const Tensor& rows, const Tensor& shared_output,
                               const Saved& saved, const RunContext& context) {
    Tensor output;
    {
        StepTimer timer(context, Step::combine);
        output = combine_rows(rows, shared_output, saved_as<RankSaved>(saved), context);
        end_step(context);
    }
    context.value(Step::combine, name_of_output(config_), output);
    return output;
}

Rows RankDispatcher::combine_backward(const Tensor& doutput, const Saved& saved_base,
                                      const RunContext& context) {
    const auto& saved = saved_as<RankSaved>(saved_base);
    Rows drows;
    {
        StepTimer timer(context, Step::combine_backward);
        drows = combine_rows_backward(doutput, saved, context);
        end_step(context);
    }
    if (context.observer != nullptr)
        show_rows(context, Step::combine_backward, "d_expert_output", drows,
                  num_rows_of(saved.local->tokens_per_expert()));
    return drows;
}

TokenDispatcher::Gradients RankDispatcher::dispatch_backward(const Tensor& drows,
                                                             const Tensor& drow_probs,
                                                             const Saved& saved_base,
                                                             const RunContext& context) {
    const auto& saved = saved_as<RankSaved>(saved_base);
    Gradients gradients;
    {
        StepTimer timer(context, Step::dispatch_backward);
        gradients = dispatch_rows_backward(drows, drow_probs, saved, context);
        end_step(context);
    }
    context.value(Step::dispatch_backward, name_of_dhidden(config_), gradients.dhidden);
    if (saved.topk_ids.defined())
        context.value_beside(Step::dispatch_backward, "d_probs", [&] {
            return dense_dprobs(gradients.dprobs, saved.topk_ids);
        });
    else
        context.value(Step::dispatch_backward, "d_probs", gradients.dprobs);
    return gradients;
}

SavedPtr RankDispatcher::pre_forward_comm(const Tensor& hidden,
                                          const RunContext& context) const {
    if (shared_experts_ == nullptr) return nullptr;
    return shared_experts_->pre_forward_comm(
        transfer(hidden, shared_experts_->placement()), context);
}

void RankDispatcher::linear_fc1_forward_and_act(const RunContext& context) const {
    if (shared_experts_ != nullptr) shared_experts_->linear_fc1_forward_and_act(context);
}

void RankDispatcher::linear_fc2_forward_and_comm(const RunContext& context) const {
    if (shared_experts_ == nullptr) return;
    shared_experts_->linear_fc2_forward(context);
    shared_experts_->post_forward_comm(context);
}

Tensor RankDispatcher::get_shared_output(const Tensor& given,
                                         const RunContext& context) const {
    if (shared_experts_ == nullptr) return given;
    return transfer(shared_experts_->get_output(context), placement());
}

void RankDispatcher::linear_fc2_backward(const Tensor& doutput, const RankSaved& saved,
                                         const RunContext& context) const {
    if (shared_experts_ != nullptr)
        shared_experts_->linear_fc2_backward(
            transfer(doutput, shared_experts_->placement()), *saved.shared_experts,
            context);
}

void RankDispatcher::linear_fc1_backward(const RunContext& context) const {
    if (shared_experts_ != nullptr) shared_experts_->linear_fc1_backward(context);
}

}  // namespace moe::distributed
