#include "reference_cpu/given_experts.h"

#include <algorithm>

#include "reference_cpu/rows.h"

namespace moe::cpu {

//! [look_up_experts]
Tensor look_up_experts(const Tensor& tid2eid, const Tensor& token_ids) {
    const std::int64_t T = token_ids.numel(), K = tid2eid.dim(1);
    Tensor topk_idx = Tensor::empty({T, K}, DType::i64);
    for (std::int64_t t = 0; t < T; ++t)
        std::ranges::copy(
            row_of<std::int64_t>(tid2eid, token_ids.data<std::int64_t>()[t]),
            row_of<std::int64_t>(topk_idx, t).begin());
    return topk_idx;
}
//! [look_up_experts]

}  // namespace moe::cpu
