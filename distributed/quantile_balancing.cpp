#include "distributed/quantile_balancing.h"

#include "core/error.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

std::int64_t even_share(std::int64_t num_tokens, std::int64_t topk,
                        std::int64_t num_experts) {
    if (num_tokens * topk % num_experts != 0)
        reject("tokens * moe_router_topk", num_tokens * topk,
               fmt::format("must be a multiple of num_moe_experts ({}) to train with "
                           "quantile_balancing ({} tokens here)",
                           num_experts, num_tokens));
    return num_tokens * topk / num_experts;
}

void refuse_padding_mask(const Tensor& padding_mask) {
    if (padding_mask.defined())
        reject("padding_mask", moe::to_string(padding_mask.shape()),
               "must be left out with quantile_balancing");
}

Tensor gather_margins(const GroupsPtr& groups, const Tensor& margins) {
    return groups == nullptr
               ? margins
               : gather_from_sequence_parallel_region(*groups->tp_cp, margins);
}

QuantileSum sum_quantiles(const GroupsPtr& groups, const Tensor& quantiles) {
    if (groups == nullptr) return {quantiles, 1};
    return {reduce_from_tensor_model_parallel_region(*groups->dp_cp, quantiles),
            groups->dp_cp->size()};
}

}  // namespace moe::distributed
