// given.cpp: token ids, and experts on their way from one run to another.

#include "cli/compare/given.h"

#include <fmt/format.h>

#include "core/given_experts.h"
#include "core/rng.h"
#include "core/safetensors.h"
#include "core/transfer.h"

namespace moe {
namespace {

constexpr const char* kFormat = "moe-routing-1";

std::string name_of(int rank, int ranks) {
    return ranks == 1 ? "topk_idx" : fmt::format("rank.{}.topk_idx", rank);
}

/// What was written must be what is asked for.
void require_metadata(const SafetensorsFile& file, const std::string& key,
                      const std::string& expected, const std::string& allowed) {
    const auto found = file.metadata().find(key);
    if (found == file.metadata().end() || found->second != expected)
        reject(file.path() + ": __metadata__." + key,
               found == file.metadata().end() ? "absent" : found->second, allowed);
}

}  // namespace

Tensor text_ids(const MoEConfig& config, const TextTokens& text) {
    if (!config.moe_router_hash_vocab_size) return {};
    if (*config.moe_router_hash_vocab_size < 256)
        reject("moe_router_hash_vocab_size", *config.moe_router_hash_vocab_size,
               "must be at least 256 with a text: its bytes are the tokens' ids");
    return Tensor::from<std::int64_t>({std::int64_t(text.bytes.size())},
                                      {text.bytes.begin(), text.bytes.end()});
}

Tensor random_ids(const MoEConfig& config, std::int64_t num_tokens, std::uint64_t seed) {
    if (!config.moe_router_hash_vocab_size) return {};
    const Rng rng(seed, 300);
    Tensor ids = Tensor::empty({num_tokens}, DType::i64);
    for (std::int64_t t = 0; t < num_tokens; ++t)
        ids.data<std::int64_t>()[t] =
            rng.below(t, std::uint32_t(*config.moe_router_hash_vocab_size));
    return ids;
}

Tensor by_sequence(const Tensor& ids, std::int64_t seq_len, std::int64_t micro_batch) {
    if (!ids.defined()) return {};
    return swap_blocks(ids, 1, seq_len, micro_batch).reshaped({micro_batch, seq_len});
}

void save_routing(const std::string& path, const MoEConfig& config,
                  const std::vector<Tensor>& topk_idx) {
    TensorMap tensors;
    const int ranks = int(topk_idx.size());
    for (int rank = 0; rank < ranks; ++rank) {
        const std::vector<double> ids = to_doubles(topk_idx[rank]);
        tensors[name_of(rank, ranks)] =
            Tensor::from<std::int32_t>(topk_idx[rank].shape(), {ids.begin(), ids.end()});
    }
    save_safetensors(path, tensors,
                     {{"format", kFormat},
                      {"num_moe_experts", fmt::to_string(config.num_experts())},
                      {"world_size", fmt::to_string(ranks)}});
}

std::vector<Tensor> load_routing(const std::string& path, const MoEConfig& config,
                                 int ranks, std::int64_t tokens_per_rank) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    require_metadata(file, "format", kFormat,
                     fmt::format("must be {}: what --record-routing writes", kFormat));
    require_metadata(file, "world_size", fmt::to_string(ranks),
                     fmt::format("must be {}, as many ranks as now", ranks));
    require_metadata(
        file, "num_moe_experts", fmt::to_string(config.num_experts()),
        fmt::format("must be {}, num_moe_experts of the layer", config.num_experts()));
    std::vector<Tensor> topk_idx;
    for (int rank = 0; rank < ranks; ++rank) {
        const std::string name = name_of(rank, ranks);
        topk_idx.push_back(
            read_experts(path + ": " + name, file.tensor(name), tokens_per_rank, config));
    }
    return topk_idx;
}

}  // namespace moe
