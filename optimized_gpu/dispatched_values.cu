// dispatched_values.cu: what observers see of a dispatch on one rank.

#include "optimized_gpu/dispatched_values.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/permutation.h"

namespace moe::optimized {
namespace {

/// Some rows of a tensor (T, H), on the host.
Tensor select_rows(const Tensor& source, const std::vector<std::int64_t>& rows) {
    const Tensor all = transfer(source, {MemorySpace::host, source.dtype()});
    Tensor selected =
        Tensor::empty({std::int64_t(rows.size()), source.dim(1)}, source.dtype());
    const std::size_t bytes = source.dim(1) * size_of(source.dtype());
    const auto* from = static_cast<const std::byte*>(all.view().bytes);
    auto* to = static_cast<std::byte*>(selected.view().bytes);
    for (std::size_t r = 0; r < rows.size(); ++r)
        std::memcpy(to + r * bytes, from + rows[r] * bytes, bytes);
    return selected;
}

/// The flex dispatcher sends a token once, however many experts it has, and not at all
/// without one.
struct FlexRows {
    std::vector<std::int64_t> tokens;  ///< of the rows sent
    std::vector<std::int32_t> row_of;  ///< (T) where each token was received, -1: nowhere
};

FlexRows flex_rows(const std::vector<std::int32_t>& row_token, std::int64_t num_tokens) {
    FlexRows rows{{}, std::vector<std::int32_t>(num_tokens, -1)};
    for (const std::int32_t t : row_token)
        if (t >= 0) rows.row_of[t] = 0;  // else padding
    for (std::int64_t t = 0; t < num_tokens; ++t) {
        if (rows.row_of[t] < 0) continue;
        rows.row_of[t] = std::int32_t(rows.tokens.size());
        rows.tokens.push_back(t);
    }
    return rows;
}

void show_flex(const RunContext& context, std::vector<std::int32_t> row_token,
               const Tensor& hidden) {
    const FlexRows rows = flex_rows(row_token, hidden.dim(0));
    const auto count = std::int64_t(rows.tokens.size());
    for (std::int32_t& t : row_token)
        if (t >= 0) t = rows.row_of[t];
    context.value(Step::dispatch, "row_token",
                  Tensor::from({std::int64_t(row_token.size())}, row_token));
    for (const char* name : {"input_splits", "output_splits"})
        context.value(Step::dispatch, name, Tensor::from<std::int64_t>({1}, {count}));
    Tensor sources = Tensor::zeros({count, 2}, DType::i64);  // of rank 0
    for (std::int64_t r = 0; r < count; ++r)
        sources.data<std::int64_t>()[2 * r + 1] = rows.tokens[r];
    for (const char* name : {"sent_hidden_states", "received_hidden_states"})
        context.value_beside(Step::dispatch, name,
                             [&] { return select_rows(hidden, rows.tokens); });
    context.value(Step::dispatch, "received_sources", sources);
}

}  // namespace

void show_dispatched(const RunContext& context, const MoEConfig& config,
                     const RowMap& map, const Tensor& hidden, const Tensor& row_probs) {
    if (context.observer == nullptr) return;
    const std::int64_t N = gpu::to_host<std::int32_t>(map.offsets).back();
    const auto permuted = [&] { return permute(hidden, map).first(N); };
    const std::string& type = config.moe_token_dispatcher_type;
    if (type == "flex") {
        show_flex(context, gpu::to_host<std::int32_t>(map.row_token.first(N)), hidden);
    } else {
        context.value(Step::dispatch, "row_token", map.row_token.first(N));
        if (type == "alltoall")
            for (const char* name : {"input_splits", "output_splits", "output_splits_tp"})
                context.value(Step::dispatch, name, Tensor::from<std::int64_t>({1}, {N}));
        for (const char* name : {"sent_hidden_states", "received_hidden_states"})
            context.value_beside(Step::dispatch, name, [&] {
                return type == "alltoall" ? permuted() : hidden;
            });
    }
    context.value(Step::dispatch, "tokens_per_expert", map.rows_per_expert);
    context.value_beside(Step::dispatch, "dispatched_hidden_states", permuted);
    context.value(Step::dispatch, "dispatched_probs", row_probs.first(N));
}

}  // namespace moe::optimized
