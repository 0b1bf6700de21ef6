/// @file
/// An optimizer step as `moe trace` prints it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cli/trace/token.h"
#include "core/moe_layer.h"

namespace moe {

/// A micro-batch, and the text that it comes from, if any.
struct TraceInput {
    Tensor hidden, doutput;  // (S, B, H) fp32
    std::optional<TextTokens> text;
    Tensor token_ids;  // (T), with moe_router_hash_vocab_size
    std::int64_t seq_len() const { return hidden.dim(0); }
    std::int64_t micro_batch() const { return hidden.dim(1); }
    std::int64_t tokens() const { return seq_len() * micro_batch(); }
};

/// Runs the micro-batches, forward and backward, and prints every value; then what they
/// add up to, and the buffers after the step.
/// @param token  of which alone rows are shown, if any
void trace_step(MoELayer& layer, const std::vector<TraceInput>& inputs, bool training,
                std::optional<std::int64_t> token);

}  // namespace moe
