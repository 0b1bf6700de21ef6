// routed_tokens.cu: the buffers of what the router hands on, and the late word on its
// logits.

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/transfer.h"
#include "distributed/mappings.h"
#include "distributed/process_groups.h"
#include "gpu/tensor.h"
#include "optimized_gpu/routing.h"
#include "optimized_gpu/token_range.h"

namespace moe::optimized {

TokenRange make_token_range(std::int64_t num_tokens, std::int64_t populations) {
    constexpr std::int64_t kBusyWarps = 8192;  // 62 for each of 132 multiprocessors
    const auto rounds = std::clamp<std::int64_t>(num_tokens / kBusyWarps, 1, 16);
    return {num_tokens, int(populations), int(rounds)};
}

namespace {

/// Some of the i32 sums.
Tensor part_of(const Tensor& counters, std::int64_t first, Shape shape) {
    int* data = gpu::device_data<int>(const_cast<Tensor&>(counters)) + first;
    return Tensor::borrow({data, DType::i32, std::move(shape), MemorySpace::device});
}

}  // namespace

RoutedTokens make_routed_tokens(const RoutingRule& rule, std::int64_t num_tokens,
                                std::int64_t populations) {
    const std::int64_t T = num_tokens, E = rule.num_experts, P = populations;
    MOE_CHECK(T <= std::numeric_limits<int>::max());
    RoutedTokens routed;
    routed.weights = gpu::device_empty<float>({T, rule.topk});
    routed.ids = gpu::device_empty<int>({T, rule.topk});
    routed.counters = gpu::device_empty<int>({E + 3 + P * E});
    routed.tokens_per_expert = part_of(routed.counters, 0, {E});
    routed.non_finite = part_of(routed.counters, E, {1});
    if (P == 0) return routed;
    MOE_CHECK_EQ(T % P, 0);
    const std::int64_t blocks = P * make_token_range(T, P).num_blocks();
    LossStatistics& losses = routed.losses;
    losses.num_valid = part_of(routed.counters, E + 1, {1});
    losses.blocks_done = part_of(routed.counters, E + 2, {1});
    losses.assignments = part_of(routed.counters, E + 3, {P, E});
    losses.partial_scores = gpu::device_empty<float>({blocks, E});
    losses.partial_squares = gpu::device_empty<float>({blocks});
    return routed;
}

void reduce_loss_counts(RoutedTokens& routed, const MoEConfig& config,
                        const distributed::ProcessGroups& groups) {
    LossStatistics& losses = routed.losses;
    if (!losses.num_valid.defined()) return;
    const std::int64_t E = routed.tokens_per_expert.numel();
    const auto reduce = [&](distributed::Communicator& group, Tensor& assignments,
                            Tensor& valid) {
        // One exchange for both: they lie side by side
        const Tensor sums = distributed::reduce_from_tensor_model_parallel_region(
            group, part_of(routed.counters, E + 1, {2 + losses.assignments.numel()}));
        valid = sums.first(1);
        assignments = part_of(sums, 2, losses.assignments.shape());
    };
    if (config.aux_loss_coeff("aux_loss") > 0.0 ||
        config.aux_loss_coeff("seq_aux_loss") > 0.0)
        reduce(*groups.tp_cp, losses.tp_cp_assignments, losses.tp_cp_valid);
    if (config.aux_loss_coeff("global_aux_loss") > 0.0)
        reduce(*groups.tp_dp_cp, losses.tp_dp_cp_assignments, losses.tp_dp_cp_valid);
}

void require_finite(const RoutedTokens& routed, const Tensor& logits) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const int from_end =
        *transfer(routed.non_finite, {MemorySpace::host, DType::i32}).data<int>();
    if (from_end == 0) return;
    const std::int64_t t = T - from_end;
    const std::vector<double> x = to_doubles(logits);
    for (std::int64_t e = 0; e < E; ++e)
        if (!std::isfinite(x[t * E + e]))
            reject(fmt::format("logits[token {}, expert {}]", t, e), x[t * E + e],
                   "every router logit must be finite in fp32, as scores are");
}

}  // namespace moe::optimized
