/// @file
/// Experts that somebody else gives: a table by the token's id (hash routing), or a
/// recorded run (routing replay). Either replaces the router's own top-k, and nothing
/// else: scores, weights, losses and gradients are as ever, over the experts given.
///
/// What is given is checked here, on the host, for all tiers; where it lies on a device,
/// the host waits for it.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "core/steps.h"
#include "core/tensor.h"

namespace moe {

/// "router.tid2eid": the experts of each token id, (V, K). Source:
/// modeling_deepseek_v4.py of transformers, DeepseekV4HashRouter.
inline const std::string kTid2Eid = "router.tid2eid";

/// K experts for each of some tokens, as (N, K) i64 on the host. InputError, naming
/// `field`, unless `given` is i32 or i64 of that shape, every row K different experts.
Tensor read_experts(const std::string& field, const Tensor& given, std::int64_t rows,
                    const MoEConfig& config);

/// context.token_ids as (T) i64 on the host, token t = s B + b. InputError unless they
/// are (B, S) ids below moe_router_hash_vocab_size.
Tensor read_token_ids(const MoEConfig& config, const RunContext& context, std::int64_t S,
                      std::int64_t B);

/// context.target_topk_idx as (T, K) i64 on the host; undefined where there is none.
/// InputError for experts as above, and for a target without moe_enable_routing_replay.
Tensor read_target_topk_idx(const MoEConfig& config, const RunContext& context,
                            std::int64_t num_tokens);

}  // namespace moe
