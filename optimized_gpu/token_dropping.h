/// @file
/// Capacity: an expert takes at most C tokens from a rank; the device finds the last one
/// that it takes. Source: moe_utils.py, apply_router_token_dropping.
///
/// The expert prefers larger values, of equal ones the token with the lower index. Policy
/// "probs": the value is the routing weight, and 0 for the tokens that were not routed to
/// it, which take places too; so a weight of 0 may lose against a token that was not
/// routed, and a negative one does against all. Policy "position": routed tokens are
/// equal, and before all others.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/config.h"
#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// C = get_capacity(config, num_tokens). InputError when experts are to be padded and
/// C > T: no column could hold C tokens.
std::int64_t capacity_of_experts(const MoEConfig& config, std::int64_t num_tokens);

/// What the choice of tokens is made from. TUTORIAL: the results below keep it, because
/// cudaFree() would wait for the kernels that use it.
struct TokenPreferences {
    Tensor values;  ///< (E, T) f32, a row for each expert
    Tensor last;  ///< (E) i64, value and token of the last that an expert takes, as a key
};

struct KeptTokens {
    Tensor ids;  ///< (T, K) i32 as they were; -1 where the expert did not take the token
    TokenPreferences preferences;
};

/// Drops what is over capacity. A memset and three launches; the same bits every time. An
/// id that names no expert stops the kernel.
/// @param ids       (T, K) i32, the experts of a token all different; negative: none
/// @param weights   (T, K) f32, no NaN; their own are not changed by what is dropped
/// @param capacity  C; may be more than T
/// @param by_probs  policy "probs", else "position"
KeptTokens drop_tokens(const Tensor& ids, const Tensor& weights, int num_experts,
                       std::int64_t capacity, bool by_probs,
                       cudaStream_t stream = gpu::current_stream());

struct PaddedTokens {
    Tensor map;    ///< (T, E) u8, exactly C ones per column
    Tensor probs;  ///< (T, E) f32 weights where kept; else 0, as for fillers
    TokenPreferences preferences;
};

/// Drops what is over capacity, and fills up what is under it: with tokens that were not
/// routed to the expert, in its order. A memset and four launches. Parameters as for
/// drop_tokens(), but the capacity is at most T, see capacity_of_experts().
PaddedTokens pad_to_capacity(const Tensor& ids, const Tensor& weights, int num_experts,
                             std::int64_t capacity, bool by_probs,
                             cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
