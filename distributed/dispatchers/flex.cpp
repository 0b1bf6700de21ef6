// flex.cpp: one row per token and rank, through the peers' heaps.

#include "distributed/dispatchers/flex.h"

namespace moe::distributed {
namespace {

struct FlexSaved : RankSaved {
    std::shared_ptr<FlexExchange> exchange;
};

}  // namespace

//! [flex_dispatch]
Arrived FlexDispatcher::dispatch_rows(const Tensor& hidden, const Tensor& probs,
                                      const Tensor& routing, const RunContext& context) {
    auto saved = std::make_unique<FlexSaved>();
    saved->exchange = exchange(probs, routing, context);
    const auto exchange = saved->exchange;
    // ⑥ dispatch: into the peers' heaps
    exchange->push(hidden);
    saved->shared_experts = pre_forward_comm(hidden, context);
    linear_fc1_forward_and_act(context);

    // ⑥ local: what came
    FlexExchange::Received received = exchange->receive();
    Arrived arrived{nullptr, received.rows, received.probs};
    arrived.row_token = [exchange, &local = *received.local] {
        return exchange->row_token(local);
    };
    arrived.splits = [exchange] {
        return Arrived::NamedSplits{{"input_splits", exchange->input_splits()},
                                    {"output_splits", exchange->output_splits()}};
    };
    arrived.sent = [exchange, hidden] { return exchange->sent_rows(hidden); };
    arrived.received = [exchange, rows = received.rows] {
        return exchange->received_rows(rows);
    };
    arrived.sources = [exchange] { return exchange->sources(); };
    saved->local = std::move(received.local);
    arrived.saved = std::move(saved);
    return arrived;
}

Tensor FlexDispatcher::combine_rows(const Tensor& rows, const Tensor& shared_output,
                                    const RankSaved& saved_base,
                                    const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    // ⑩ what the local experts made of each row received, for its owner to pull
    saved.exchange->offer(rows, *saved.local);
    linear_fc2_forward_and_comm(context);
    // ⑩ combine: a plain sum over the ranks, and what shared experts made
    return saved.exchange->pull(get_shared_output(shared_output, context));
}
//! [flex_dispatch]

//! [flex_dispatch_backward]
Rows FlexDispatcher::combine_rows_backward(const Tensor& doutput,
                                           const RankSaved& saved_base,
                                           const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    linear_fc2_backward(doutput, saved, context);
    // ⑪ dispatch of the gradients, by the same exchange: the way back of a sum
    saved.exchange->push_gradients(doutput);
    return saved.local->unpermute_backward(saved.exchange->receive_gradients());
}

TokenDispatcher::Gradients FlexDispatcher::dispatch_rows_backward(
    const Tensor& drows, const Tensor& drow_probs, const RankSaved& saved_base,
    const RunContext& context) {
    const auto& saved = saved_as<FlexSaved>(saved_base);
    linear_fc1_backward(context);
    // ⑮ combine of the gradients: the token's owner sums them over the ranks
    saved.exchange->offer_gradients(drows, drow_probs, *saved.local);
    return saved.exchange->pull_gradients();
}
//! [flex_dispatch_backward]

}  // namespace moe::distributed
