/// @file
/// The all-to-all dispatcher, at world size 1.
#pragma once

#include "core/components.h"
#include "core/config.h"
#include "gpu/tensor.h"

namespace moe::naive {

/// Dispatch: rows into expert order. Combine: back, summed per token. With a single rank
/// there is nobody to exchange with, and the chunks that arrive are already in expert
/// order, so permutation is all that is left of Megatron's steps. T is float or
/// __nv_bfloat16; probabilities are fp32. Source: token_dispatcher.py,
/// MoEAlltoAllTokenDispatcher.
template <typename T>
class AlltoAllDispatcher : public TokenDispatcher {
  public:
    AlltoAllDispatcher() : TokenDispatcher({MemorySpace::device, gpu::device_dtype<T>}) {}

    Dispatched dispatch(const Tensor& hidden, const Tensor& probs,
                        const Tensor& routing_map, const RunContext& context) override;
    Tensor combine(const Tensor& rows, const Tensor& shared_output, const Saved& saved,
                   const RunContext& context) override;
    Tensor combine_backward(const Tensor& doutput, const Saved& saved,
                            const RunContext& context) override;
    Gradients dispatch_backward(const Tensor& drows, const Tensor& drow_probs,
                                const Saved& saved, const RunContext& context) override;
};

}  // namespace moe::naive
