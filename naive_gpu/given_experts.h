/// @file
/// Hash routing: a table gives the experts of each token id. Source:
/// modeling_deepseek_v4.py of transformers, DeepseekV4HashRouter (Hash Layers, arXiv
/// 2106.04426).
#pragma once

#include "core/tensor.h"

namespace moe::naive {

/// The experts of each token. Ids and experts have been checked, core/given_experts.h.
/// @param tid2eid (V, K) i64 @param token_ids (T) i64 @return (T, K) i64
Tensor look_up_experts(const Tensor& tid2eid, const Tensor& token_ids);

}  // namespace moe::naive
