/// @file
/// What the dispatchers of all tiers share, whatever their way: times, the stages of
/// overlapped shared experts, and what observers see.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/tier.h"
#include "distributed/dispatchers/row_order.h"

namespace moe::distributed {

/// What every way keeps for the backward.
struct RankSaved : Saved {
    RowOrderPtr local;        ///< rows of the local experts
    Tensor topk_ids;          ///< (T, K), where the router's choices came as such
    SavedPtr shared_experts;  ///< with moe_shared_expert_overlap
};

/// What ⑥ has brought to this rank, in the order that `saved->local` takes; and what
/// observers see of the way here.
struct Arrived {
    std::unique_ptr<RankSaved> saved;
    Tensor rows = {}, probs = {};
    // Made only for who looks
    using NamedSplits = std::vector<std::pair<std::string, Splits>>;
    std::function<Tensor()> row_token = {}, sent = {};
    std::function<NamedSplits()> splits = [] { return NamedSplits(); };
    std::function<Tensor()> received = {};  ///< (N', H)
    std::function<Tensor()> sources = {};   ///< (N', 2), if the way tells
};

/// A dispatcher of one rank of several. AllGather, AlltoAll and Flex derive from it and
/// say once what happens in ⑥, ⑩, ⑪ and ⑮; a tier derives from those, to show how it
/// moves rows.
class RankDispatcher : public TokenDispatcher {
  public:
    Dispatched dispatch(const Tensor& hidden, const Tensor& probs, const Tensor& routing,
                        const RunContext& context) final;
    Tensor combine(const Tensor& rows, const Tensor& shared_output, const Saved& saved,
                   const RunContext& context) final;
    Rows combine_backward(const Tensor& doutput, const Saved& saved,
                          const RunContext& context) final;
    Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                const Saved& saved, const RunContext& context) final;

  protected:
    RankDispatcher(const Placement& placement, const MoEConfig& config,
                   const GroupsPtr& groups)
        : TokenDispatcher(placement), config_(config), groups_(groups) {}

    /// ⑥, ⑩, ⑪ and ⑮ of a way.
    virtual Arrived dispatch_rows(const Tensor& hidden, const Tensor& probs,
                                  const Tensor& routing, const RunContext& context) = 0;
    virtual Tensor combine_rows(const Tensor& rows, const Tensor& shared_output,
                                const RankSaved& saved, const RunContext& context) = 0;
    virtual Rows combine_rows_backward(const Tensor& doutput, const RankSaved& saved,
                                       const RunContext& context) = 0;
    virtual Gradients dispatch_rows_backward(const Tensor& drows,
                                             const Tensor& drow_probs,
                                             const RankSaved& saved,
                                             const RunContext& context) = 0;

    /// The end of a step. Where a device does its work, the tier waits for it here, for
    /// the step's time if for nothing else.
    virtual void end_step(const RunContext&) const {}

    /// The gradient of (T, K) probabilities as (T, E), for observers of a tier that
    /// takes_topk(). @param topk_ids (T, K)
    virtual Tensor dense_dprobs(const Tensor& dprobs,
                                [[maybe_unused]] const Tensor& topk_ids) const {
        return dprobs;
    }

    /// Rows of an expert are filled up to it: 1 without padding for quantization.
    std::int64_t pad_multiple() const {
        return config_.moe_router_padding_for_quantization
                   ? get_align_size_for_quantization(config_)
                   : 1;
    }

    /// The stages of SharedExperts with moe_shared_expert_overlap; without it these do
    /// nothing, and the first returns null.
    SavedPtr pre_forward_comm(const Tensor& hidden, const RunContext& context) const;
    void linear_fc1_forward_and_act(const RunContext& context) const;
    void linear_fc2_forward_and_comm(const RunContext& context) const;
    /// What they made of the tokens; without overlap as given. (T, H) or undefined
    Tensor get_shared_output(const Tensor& given, const RunContext& context) const;
    void linear_fc2_backward(const Tensor& doutput, const RankSaved& saved,
                             const RunContext& context) const;
    void linear_fc1_backward(const RunContext& context) const;

    MoEConfig config_;
    GroupsPtr groups_;
};

}  // namespace moe::distributed
