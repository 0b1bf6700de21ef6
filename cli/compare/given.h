/// @file
/// What `moe compare` and `moe trace` give a router besides its tokens: their ids, and
/// experts that another run recorded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/compare/comparison.h"
#include "core/config.h"
#include "core/tensor.h"

namespace moe {

/// The bytes of a text as token ids, (T) i64; undefined without
/// moe_router_hash_vocab_size, InputError where that has no id for each byte.
Tensor text_ids(const MoEConfig& config, const TextTokens& text);

/// Seeded ids for tokens without a text, likewise.
Tensor random_ids(const MoEConfig& config, std::int64_t num_tokens, std::uint64_t seed);

/// Ids (T), token t = s B + b, as a layer takes them: (B, S). Undefined stays so.
Tensor by_sequence(const Tensor& ids, std::int64_t seq_len, std::int64_t micro_batch);

/// Writes the experts of each rank's tokens, (T, K) integers each, as a .safetensors
/// file: "topk_idx" (T, K) i32 of one rank, "rank.<r>.topk_idx" of several; `config` as
/// metadata. InputError when it cannot be written.
void save_routing(const std::string& path, const MoEConfig& config,
                  const std::vector<Tensor>& topk_idx);

/// Reads such a file, (T, K) for each rank. InputError for another number of ranks or
/// tokens, of experts or of choices.
std::vector<Tensor> load_routing(const std::string& path, const MoEConfig& config,
                                 int ranks, std::int64_t tokens_per_rank);

}  // namespace moe
