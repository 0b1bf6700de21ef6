#include "core/given_experts.h"

#include <algorithm>
#include <vector>

#include "core/transfer.h"

namespace moe {
namespace {

/// i32 or i64 of that shape, as i64 on the host.
Tensor read_integers(const std::string& field, const Tensor& given, const Shape& shape,
                     const std::string& axes) {
    const bool integers = given.dtype() == DType::i64 || given.dtype() == DType::i32;
    if (!integers || given.shape() != shape)
        reject(field, to_string(given.dtype()) + " " + to_string(given.shape()),
               "must be int64 or int32 " + axes + " = " + to_string(shape));
    const Tensor host = transfer(given, {MemorySpace::host, DType::f32});
    if (host.dtype() == DType::i64) return host;
    const auto* values = host.data<std::int32_t>();
    return Tensor::from<std::int64_t>(shape, {values, values + host.numel()});
}

}  // namespace

Tensor read_experts(const std::string& field, const Tensor& given, std::int64_t rows,
                    const MoEConfig& config) {
    const std::int64_t K = config.moe_router_topk, E = config.num_experts();
    const Tensor experts = read_integers(field, given, {rows, K}, "(N, K)");
    const auto* of_row = experts.data<std::int64_t>();
    std::vector<std::int64_t> last_row(E, -1);  // that named the expert
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t k = 0; k < K; ++k) {
            const std::int64_t e = of_row[row * K + k];
            const auto at = [&] { return fmt::format("{}[{}, {}]", field, row, k); };
            if (e < 0 || e >= E)
                reject(at(), e, fmt::format("must be an expert, from 0 to {}", E - 1));
            if (last_row[e] == row)
                reject(at(), e, "must not name an expert of its row again");
            last_row[e] = row;
        }
    return experts;
}

Tensor read_token_ids(const MoEConfig& config, const RunContext& context, std::int64_t S,
                      std::int64_t B) {
    const std::int64_t vocab = *config.moe_router_hash_vocab_size;
    if (!context.token_ids.defined())
        reject("token_ids", "absent", "required with moe_router_hash_vocab_size");
    const Tensor ids = read_integers("token_ids", context.token_ids, {B, S}, "(B, S)");
    const auto* id = ids.data<std::int64_t>();
    for (std::int64_t i = 0; i < ids.numel(); ++i)
        if (id[i] < 0 || id[i] >= vocab)
            reject(fmt::format("token_ids[{}, {}]", i / S, i % S), id[i],
                   fmt::format("must be from 0 to {}, below moe_router_hash_vocab_size",
                               vocab - 1));
    return swap_blocks(ids, 1, B, S).reshaped({S * B});
}

Tensor read_target_topk_idx(const MoEConfig& config, const RunContext& context,
                            std::int64_t num_tokens) {
    if (!context.target_topk_idx.defined()) return {};
    if (!config.moe_enable_routing_replay)
        reject("target_topk_idx", to_string(context.target_topk_idx.shape()),
               "needs moe_enable_routing_replay");
    return read_experts("target_topk_idx", context.target_topk_idx, num_tokens, config);
}

}  // namespace moe
