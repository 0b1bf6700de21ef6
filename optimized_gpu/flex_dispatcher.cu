// flex_dispatcher.cu: the dispatcher over FlexExchange.

#include "optimized_gpu/flex_dispatcher.h"

#include "optimized_gpu/flex_exchange.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/watched.h"

namespace moe::optimized {

std::unique_ptr<distributed::FlexExchange> FlexDispatcher::exchange(const Tensor& probs,
                                                                    const Tensor& routing,
                                                                    const RunContext&) {
    return std::make_unique<FlexExchange>(probs, routing, config_, placement().dtype,
                                          groups_);
}

void FlexDispatcher::end_step(const RunContext& context) const {
    synchronize_if_watched(context);
}

Tensor FlexDispatcher::dense_dprobs(const Tensor& dprobs, const Tensor& topk_ids) const {
    return indices_to_multihot(topk_ids, dprobs, int(config_.num_experts())).probs;
}

}  // namespace moe::optimized
