#include "cli/compare/changed_experts.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <vector>

#include "core/transfer.h"
#include "reference_cpu/scores.h"

namespace moe {
namespace {

using ExpertSet = std::set<std::int64_t>;

/// Row t of (T, K).
ExpertSet experts_of(const std::vector<double>& topk_idx, std::int64_t t,
                     std::int64_t K) {
    return {topk_idx.begin() + t * K, topk_idx.begin() + (t + 1) * K};
}

/// From the worst of the experts that only one has to the best that only the other has.
double gap(const ExpertSet& expected, const ExpertSet& got, const double* keys) {
    double lost = INFINITY, gained = -INFINITY;
    for (const std::int64_t e : expected)
        if (!got.contains(e)) lost = std::min(lost, keys[e]);
    for (const std::int64_t e : got)
        if (!expected.contains(e)) gained = std::max(gained, keys[e]);
    return std::abs(lost - gained);
}

}  // namespace

ChangedExperts& ChangedExperts::operator+=(const ChangedExperts& more) {
    if (more.tokens == 0) return *this;
    closest = tokens == 0 ? more.closest : std::min(closest, more.closest);
    farthest = std::max(farthest, more.farthest);
    tokens += more.tokens;
    return *this;
}

Tensor selection_keys(const Tensor& logits, const Tensor& expert_bias,
                      const MoEConfig& config) {
    std::vector<double> keys = to_doubles(logits);
    if (config.moe_router_score_function == "softmax")
        return Tensor::from(logits.shape(), keys);
    const auto function = cpu::parse_score_function(config.moe_router_score_function);
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const std::vector<double> bias =
        expert_bias.defined() ? to_doubles(expert_bias) : std::vector<double>(E);
    for (std::int64_t t = 0; t < T; ++t) {
        const std::vector<float> x(keys.begin() + t * E, keys.begin() + (t + 1) * E);
        std::vector<float> s(E);
        cpu::compute_scores(s, function, x);
        for (std::int64_t e = 0; e < E; ++e) keys[t * E + e] = double(s[e]) + bias[e];
    }
    return Tensor::from(logits.shape(), keys);
}

ChangedExperts count_changed_experts(const Tensor& topk_idx, const Tensor& reference_idx,
                                     const Tensor& keys) {
    MOE_CHECK(topk_idx.shape() == reference_idx.shape());
    const std::int64_t T = topk_idx.dim(0), K = topk_idx.dim(1), E = keys.dim(1);
    const std::vector<double> got = to_doubles(topk_idx),
                              expected = to_doubles(reference_idx);
    const std::vector<double> all_keys = to_doubles(keys);
    ChangedExperts changed;
    for (std::int64_t t = 0; t < T; ++t) {
        const ExpertSet before = experts_of(expected, t, K), now = experts_of(got, t, K);
        const bool known = std::all_of(now.begin(), now.end(),
                                       [&](std::int64_t e) { return e >= 0 && e < E; });
        if (!known || now.size() != before.size() || now == before) continue;
        const double apart = gap(before, now, all_keys.data() + t * E);
        changed += {1, apart, apart};
    }
    return changed;
}

std::string in_words(const ChangedExperts& changed) {
    if (changed.tokens == 0) return "     0";
    if (changed.tokens == 1)
        return fmt::format("{:>6}: in fp64 the experts exchanged are {:.1e} apart", 1,
                           changed.closest);
    return fmt::format(
        "{:>6}: in fp64 the experts exchanged are from {:.1e} to {:.1e} apart",
        changed.tokens, changed.closest, changed.farthest);
}

}  // namespace moe
