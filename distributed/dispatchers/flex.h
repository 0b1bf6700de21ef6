/// @file
/// The flex way of every tier: a row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/rank_dispatcher.h"

namespace moe::distributed {

/// One dispatch and what comes back: what a tier does with the heaps. Kept until the
/// backward is done. N' rows are received.
class FlexExchange {
  public:
    virtual ~FlexExchange() = default;

    /// ⑥ Each token to the heaps of its ranks, with its choices as they see them.
    /// @param hidden (T, H)
    virtual void push(const Tensor& hidden) = 0;
    /// What came, for who can find its experts in it.
    struct Received {
        Tensor rows, probs;  ///< (N', H), and (N', K') of the choices
        RowOrderPtr local;   ///< by local expert
    };
    /// ⑥ Once all have pushed.
    virtual Received receive() = 0;

    /// ⑩ For each row received the sum of what the local experts made of it.
    /// @param rows (N, H) by local expert
    virtual void offer(const Tensor& rows, const RowOrder& local) = 0;
    /// ⑩ Once all have offered: each token's sums, in ascending order of rank, and the
    /// addend. @param addend (T, H) or undefined @return (T, H)
    virtual Tensor pull(const Tensor& addend) = 0;

    /// ⑪ A sum hands its gradient to every term. @param doutput (T, H)
    virtual void push_gradients(const Tensor& doutput) = 0;
    /// ⑪ @return (N', H), good until the experts' backward is done
    virtual Tensor receive_gradients() = 0;

    /// ⑮ For each row received its gradient, and those of its choices.
    virtual void offer_gradients(const Tensor& drows, const Tensor& drow_probs,
                                 const RowOrder& local) = 0;
    /// ⑮ The sums over the ranks. @return dprobs as the probabilities came
    virtual TokenDispatcher::Gradients pull_gradients() = 0;

    // For who looks, after receive()
    virtual Splits input_splits() const = 0, output_splits() const = 0;
    /// The rows that this rank pushed, by rank, then token.
    virtual Tensor sent_rows(const Tensor& hidden) const = 0;
    /// Those that came, by rank, then token. @param rows as received
    virtual Tensor received_rows(const Tensor& rows) const { return rows; }
    /// (N', 2) i32 rank of tp_ep and token of each.
    virtual Tensor sources() const = 0;
    /// (N) which of them each of the local experts' rows is.
    virtual Tensor row_token(const RowOrder& local) const { return local.row_token(); }
};

/// A token travels once to every rank that holds one of its experts, straight into that
/// rank's heap, and what those ranks made of it is summed out of their heaps. One group
/// tp_ep: shards of an expert are ranks like all others. Source: token_dispatcher.py,
/// MoEFlexTokenDispatcher with _DeepepManager; DeepEP, intranode normal mode.
///
/// | phase | what | when all have done so |
/// |---|---|---|
/// | dispatch | push rows, choices, sources into the heaps of others | they read |
/// | local | order what came by local expert | |
/// | combine | offer partial sums in the own heap | the others pull them, sum by rank |
///
/// Combine backward pushes, dispatch backward offers, over the same exchange. Where a row
/// lies in a heap, and who waits for whom by what, is a tier's: see PlannedExchange, and
/// optimized_gpu's, of which no host knows the counts.
class FlexDispatcher : public RankDispatcher {
  protected:
    using RankDispatcher::RankDispatcher;

    Arrived dispatch_rows(const Tensor& hidden, const Tensor& probs,
                          const Tensor& routing, const RunContext& context) final;
    Tensor combine_rows(const Tensor& rows, const Tensor& shared_output,
                        const RankSaved& saved, const RunContext& context) final;
    Rows combine_rows_backward(const Tensor& doutput, const RankSaved& saved,
                               const RunContext& context) final;
    Gradients dispatch_rows_backward(const Tensor& drows, const Tensor& drow_probs,
                                     const RankSaved& saved,
                                     const RunContext& context) final;

    /// ⑥ Which ranks get which tokens; room in the heaps.
    virtual std::unique_ptr<FlexExchange> exchange(const Tensor& probs,
                                                   const Tensor& routing,
                                                   const RunContext& context) = 0;
};

}  // namespace moe::distributed
