#include "cli/compare/own_choice.h"

#include "core/transfer.h"
#include "reference_cpu/routing.h"

namespace moe {
namespace {

bool logits_choose(const MoEConfig& config) {
    return !config.is_sinkhorn() && !config.is_quantile_balancing() &&
           !config.moe_router_hash_vocab_size && !config.moe_enable_routing_replay;
}

const Tensor& choice_of(const std::map<Step, TensorMap>& values) {
    return values.at(Step::routing).at("topk_idx");
}

/// What the reference chooses by these logits.
Tensor choose(const Tensor& logits, const Tensor& expert_bias, const MoEConfig& config) {
    const Placement host = {MemorySpace::host, DType::f64};
    return cpu::route<double>(transfer(logits, host),
                              transfer(expert_bias, {MemorySpace::host, DType::f32}),
                              config)
        .topk_idx;
}

/// Tokens whose K experts, in their order, differ.
std::int64_t count_differing(const Tensor& a, const Tensor& b) {
    const std::vector<double> x = to_doubles(a), y = to_doubles(b);
    const std::int64_t T = a.dim(0), K = a.dim(1);
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < T; ++t)
        count +=
            !std::equal(x.begin() + t * K, x.begin() + (t + 1) * K, y.begin() + t * K);
    return count;
}

}  // namespace

OwnChoices own_choices(const Recorded& got, const Recorded& reference,
                       const Tensor& expert_bias, const MoEConfig& config) {
    OwnChoices own;
    if (!logits_choose(config)) return own;
    for (std::size_t i = 0; i < got.of_micro_batch.size(); ++i) {
        const Tensor &mine = choice_of(got.of_micro_batch[i]),
                     &expected = choice_of(reference.of_micro_batch[i]);
        if (mine.shape() != expected.shape()) return {};
        const Tensor by_logits = choose(
            used_logits(got.of_micro_batch[i].at(Step::gating)), expert_bias, config);
        if (count_differing(mine, by_logits) > 0) return {};
        own.tokens += count_differing(mine, expected);
        own.topk_idx.push_back(by_logits);
    }
    if (own.tokens == 0) own.topk_idx.clear();
    return own;
}

}  // namespace moe
