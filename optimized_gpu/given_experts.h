/// @file
/// Experts that somebody else gives, as route() takes them: by a table of token ids, or
/// of a recorded run. Source: modeling_deepseek_v4.py of transformers,
/// DeepseekV4HashRouter; router_replay.py, RouterReplay.
#pragma once

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// Experts or token ids, checked (core/given_experts.h), as i32 on the device. The host
/// waits for the copy.
/// @param given  i64 on the host
Tensor to_device_ids(const Tensor& given);

/// The experts of each token. One launch.
/// @param ids (T, K) i32, written @param tid2eid (V, K) i32 @param token_ids (T) i32
void look_up_experts(Tensor& ids, const Tensor& tid2eid, const Tensor& token_ids,
                     cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
