// judge.cpp: a supplier's values against the reference's, step by step.

#include "cli/compare/judge.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cli/compare/closeness.h"
#include "core/transfer.h"

namespace moe {
namespace {

/// How close a choice was that differs: it may lie below what the precision can tell
/// apart.
std::string describe_choice(const Closeness& closeness, const Tensor& logits,
                            std::int64_t topk) {
    if (closeness.worst < 0) return "";
    const std::vector<double> x = to_doubles(logits);  // (T, E)
    const std::int64_t token = closeness.worst / topk, E = logits.dim(1);
    for (double expert : {closeness.worst_got, closeness.worst_expected})
        if (!(expert >= 0.0 && expert < double(E))) return "; there is no such expert";
    const double gap = std::abs(x[token * E + std::int64_t(closeness.worst_got)] -
                                x[token * E + std::int64_t(closeness.worst_expected)]);
    return fmt::format("; in fp64 the logits of these two experts differ by {:.1e}", gap);
}

/// Values without the rows that only fill experts up to a multiple: which tokens they are
/// carries no meaning, and tiers differ in it.
std::map<Step, TensorMap> without_padding(std::map<Step, TensorMap> values) {
    const std::vector<double> probs =
        to_doubles(values.at(Step::dispatch).at("dispatched_probs"));
    const auto N = std::int64_t(probs.size());
    const auto select = [&](const Tensor& tensor) {
        const std::size_t row_bytes = tensor.size_bytes() / std::size_t(N);
        Tensor selected = tensor.clone();
        std::int64_t count = 0;
        for (std::int64_t r = 0; r < N; ++r)
            if (probs[r] != 0.0)
                std::memcpy(
                    static_cast<std::byte*>(selected.view().bytes) + count++ * row_bytes,
                    static_cast<const std::byte*>(tensor.view().bytes) + r * row_bytes,
                    row_bytes);
        return selected.first(count);
    };
    for (auto& [step, tensors] : values)
        if (step >= Step::dispatch && step <= Step::dispatch_backward)
            for (auto& [name, tensor] : tensors)
                if (!tensor.shape().empty() && tensor.dim(0) == N && N > 0)
                    tensor = select(tensor);
    return values;
}

/// @param where  begins the detail of what differs: "micro-batch 1: "
void judge_steps(ColumnOutcome& column, const MoEConfig& config, std::int64_t num_tokens,
                 const std::map<Step, TensorMap>& values,
                 const std::map<Step, TensorMap>& reference, const std::string& where) {
    const DType dtype = column.spec.coarsest_dtype();
    for (const auto& [step, tensors] : reference) {
        StepOutcome& outcome = column.steps[static_cast<int>(step) - 1];
        outcome.bound = tier_bound(config, dtype, is_backward(step), num_tokens);
        for (const auto& [name, expected] : tensors) {
            const Tensor& got = values.at(step).at(name);
            const Closeness closeness =
                measure_closeness(got, expected, noise_of(name, config, num_tokens));
            const bool exact = !is_floating(expected.dtype());
            const bool ok = closeness.within(exact ? 0.0 : outcome.bound);
            if (!ok && outcome.detail.empty())
                outcome.detail =
                    where + name + ": " + describe_worst(closeness, got, expected) +
                    (name == "topk_idx"
                         ? describe_choice(closeness,
                                           used_logits(reference.at(Step::gating)),
                                           expected.dim(1))
                         : "");
            if (exact)
                outcome.integers_equal = outcome.integers_equal && ok;
            else
                outcome.error = std::max(
                    outcome.error, ok || closeness.finite ? closeness.error : INFINITY);
            column.ok = column.ok && ok;
        }
    }
}

}  // namespace

const Tensor& used_logits(const TensorMap& gating) {
    const auto random = gating.find("random_logits");
    return random == gating.end() ? gating.at("logits") : random->second;
}

void judge(ColumnOutcome& column, const MoEConfig& config, std::int64_t num_tokens,
           const Recorded& recorded, const Recorded& reference) {
    const std::size_t count = reference.of_micro_batch.size();
    for (std::size_t i = 0; i < count; ++i) {
        const std::string where = count == 1 ? "" : fmt::format("micro-batch {}: ", i);
        const auto& got = recorded.of_micro_batch[i];
        const auto& expected = reference.of_micro_batch[i];
        if (config.moe_router_padding_for_quantization)
            judge_steps(column, config, num_tokens, without_padding(got),
                        without_padding(expected), where);
        else
            judge_steps(column, config, num_tokens, got, expected, where);
    }
    judge_steps(column, config, num_tokens, recorded.of_step, reference.of_step, "");
}

ChangedExperts count_changed_experts(const Recorded& got, const Recorded& reference,
                                     const Tensor& expert_bias, const MoEConfig& config) {
    ChangedExperts all;
    for (std::size_t i = 0; i < got.of_micro_batch.size(); ++i) {
        const auto& expected = reference.of_micro_batch[i];
        all += count_changed_experts(
            got.of_micro_batch[i].at(Step::routing).at("topk_idx"),
            expected.at(Step::routing).at("topk_idx"),
            selection_keys(used_logits(expected.at(Step::gating)), expert_bias, config));
    }
    return all;
}

}  // namespace moe
