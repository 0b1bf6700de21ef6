/// @file
/// The flex way of tiers whose host knows every count: it plans where each row lies, and
/// waits for the others between the phases.
#pragma once

#include "distributed/dispatchers/flex.h"
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

/// What a tier shows, besides its FlexLayout.
class PlannedFlexDispatcher : public FlexDispatcher {
  protected:
    using FlexDispatcher::FlexDispatcher;

    std::unique_ptr<FlexExchange> exchange(const Tensor& probs, const Tensor& routing,
                                           const RunContext& context) final;

    virtual FlexLayoutPtr layout(const Tensor& probs, const Tensor& routing) const = 0;
    /// Received rows in the order of the local experts; its probabilities are (N', K').
    /// @param topk_ids (N', K') i32 local experts or -1, @param topk_probs (N', K')
    virtual RowOrderPtr local_permutation(const Tensor& topk_ids,
                                          const Tensor& topk_probs) const = 0;
    /// Waits for the other ranks with all that this rank has to do done: what it wrote
    /// into their heaps is there, what it reads in them is read.
    virtual void barrier() const { groups_->tp_ep->barrier(); }

  private:
    friend class PlannedExchange;
};

}  // namespace moe::distributed
