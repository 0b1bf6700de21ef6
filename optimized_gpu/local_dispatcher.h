/// @file
/// The token dispatcher of one rank.
#pragma once

#include "core/components.h"
#include "core/config.h"

namespace moe::optimized {

/// What every moe_token_dispatcher_type comes to where all experts are on one rank: token
/// rows into expert order and back, and nothing to exchange. Rows are bf16 or fp32 (the
/// dtype it is made for), probabilities fp32. The host waits for nothing: how many rows
/// an expert gets stays on the device. Source: token_dispatcher.py.
///
/// With moe_permute_fusion no row is copied: the experts get the tokens and the row ids,
/// and gather as they load; so they do in the backward.
class LocalDispatcher : public TokenDispatcher {
  public:
    LocalDispatcher(const MoEConfig& config, DType dtype);

    bool takes_topk() const override { return true; }
    Dispatched dispatch(const Tensor& hidden, const Tensor& probs, const Tensor& routing,
                        const RunContext& context) override;
    Tensor combine(const Tensor& rows, const Tensor& shared_output, const Saved& saved,
                   const RunContext& context) override;
    Rows combine_backward(const Tensor& doutput, const Saved& saved,
                          const RunContext& context) override;
    Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                const Saved& saved, const RunContext& context) override;

  private:
    MoEConfig config_;
};

}  // namespace moe::optimized
