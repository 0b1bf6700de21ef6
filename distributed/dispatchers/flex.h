/// @file
/// The flex way of every tier: a row per token and rank, through the peers' heaps.
#pragma once

#include "distributed/dispatchers/rank_dispatcher.h"
#include "distributed/flex_plan.h"

namespace moe::distributed {

/// Which rank gets a row of which token, and moving those rows: a tier's phases of one
/// dispatch. Rows are by rank, then token.
class FlexLayout {
  public:
    virtual ~FlexLayout() = default;
    /// (W') rows that this rank pushes to each rank of tp_ep.
    virtual Splits input_splits() const = 0;
    /// The rows themselves, for who looks. @param source (T, H)
    virtual Tensor sent_rows(const Tensor& source) const = 0;

    /// Each token's row of `source` (T, H) into the heaps of its ranks.
    virtual void push_rows(const FlexPlan& plan, const Tensor& source) const = 0;
    /// With it the choices, as the rank sees them, and where the row comes from.
    virtual void push_choices(const FlexPlan& plan) const = 0;
    /// Row t is the sum of the token's rows in the peers' heaps, in ascending order of
    /// rank, and of the addend. @param addend (T, H) or undefined @return (T, H)
    virtual Tensor pull_rows(const FlexPlan& plan, const Tensor& addend) const = 0;
    /// The gradients of all choices. @return as the probabilities came
    virtual Tensor pull_prob_gradients(const FlexPlan& plan) const = 0;
};
using FlexLayoutPtr = std::unique_ptr<const FlexLayout>;

/// A token travels once to every rank that holds one of its experts, straight into that
/// rank's heap, and what those ranks made of it is summed out of their heaps. One group
/// tp_ep: shards of an expert are ranks like all others. Source: token_dispatcher.py,
/// MoEFlexTokenDispatcher with _DeepepManager; DeepEP, intranode normal mode.
///
/// | phase | what | barrier after it |
/// |---|---|---|
/// | layout | rows of mine for each rank | |
/// | notify | all counts to all; room in the heaps | the exchange of counts is one |
/// | dispatch | push rows, choices, sources | all have pushed |
/// | local | take them, order them by local expert | |
/// | combine | offer partial sums | all have offered |
/// | | pull them, sum by rank | all have pulled |
///
/// Combine backward pushes, dispatch backward pulls, both by the saved plan.
class FlexDispatcher : public RankDispatcher {
  protected:
    using RankDispatcher::RankDispatcher;

    Arrived dispatch_rows(const Tensor& hidden, const Tensor& probs,
                          const Tensor& routing, const RunContext& context) override;
    Tensor combine_rows(const Tensor& rows, const Tensor& shared_output,
                        const RankSaved& saved, const RunContext& context) override;
    Rows combine_rows_backward(const Tensor& doutput, const RankSaved& saved,
                               const RunContext& context) override;
    Gradients dispatch_rows_backward(const Tensor& drows, const Tensor& drow_probs,
                                     const RankSaved& saved,
                                     const RunContext& context) override;

    virtual FlexLayoutPtr layout(const Tensor& probs, const Tensor& routing) const = 0;
    /// Received rows in the order of the local experts; its probabilities are (N', K').
    /// @param topk_ids (N', K') i32 local experts or -1, @param topk_probs (N', K')
    virtual RowOrderPtr local_permutation(const Tensor& topk_ids,
                                          const Tensor& topk_probs) const = 0;
    /// Waits for the other ranks with all that this rank has to do done: what it wrote
    /// into their heaps is there, what it reads in them is read.
    virtual void barrier() const { groups_->tp_ep->barrier(); }

  private:
    Tensor take(const FlexPlan& plan, const HeapSection& section) const {
        return take_rows(plan, section, *groups_, placement().space);
    }
};

}  // namespace moe::distributed
