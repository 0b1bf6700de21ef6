#include "distributed/flex_plan.h"

#include <algorithm>
#include <limits>

#include "core/components.h"
#include "core/transfer.h"
#include "distributed/mappings.h"

namespace moe::distributed {
namespace {

/// Appends a section for the rows of the busiest rank, so that every rank's heap has the
/// same layout.
HeapSection append_section(FlexPlan& plan, DType dtype, std::int64_t width) {
    constexpr std::size_t kAlignment = 256;
    const HeapSection section{plan.heap_bytes, dtype, width};
    // Where nobody receives anything there is a heap all the same
    const std::size_t bytes =
        std::max(plan.heap_rows, std::int64_t{1}) * section.row_bytes();
    plan.heap_bytes += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return section;
}

/// A section of my own heap, (N', width).
TensorView own_rows(const FlexPlan& plan, const HeapSection& section,
                    const ProcessGroups& groups, MemorySpace space) {
    const PeerTable& table = groups.heap->table(space);
    return {table.base[table.rank] + section.offset,
            section.dtype,
            {plan.received_rows, section.width},
            space};
}

}  // namespace

ExpertGrid expert_grid(const MoEConfig& config) {
    const std::int64_t ETP = *config.expert_tensor_parallel_size;
    return {config.expert_model_parallel_size * ETP, ETP, config.num_local_experts()};
}

FlexPlan make_flex_plan(const Splits& counts, const MoEConfig& config, DType dtype,
                        const Communicator& tp_ep) {
    const int W = tp_ep.size(), mine = tp_ep.rank();
    MOE_CHECK_EQ(int(counts.size()), W * W);
    FlexPlan plan;
    for (int d = 0; d < W; ++d) {
        plan.input_splits.push_back(counts[mine * W + d]);
        plan.output_splits.push_back(counts[d * W + mine]);
        std::int64_t received = 0;
        for (int s = 0; s < W; received += counts[s++ * W + d])
            if (s == mine) plan.first_rows.push_back(received);
        if (d == mine) plan.received_rows = received;
        if (received > plan.heap_rows) {
            plan.heap_rows = received;
            plan.busiest = d;
        }
    }
    const std::int64_t slots =
        *config.expert_tensor_parallel_size * config.moe_router_topk;
    plan.hidden = append_section(plan, dtype, config.latent_size());
    plan.topk_ids = append_section(plan, DType::i32, slots);
    plan.topk_probs =
        append_section(plan, probs_placement({MemorySpace::host, dtype}).dtype, slots);
    plan.sources = append_section(plan, DType::i32, 2);
    return plan;
}

FlexPlan notify_dispatch(const Splits& input_splits, const MoEConfig& config, DType dtype,
                         const ProcessGroups& groups) {
    // A collective, not writes into the peers' heaps: the counts decide how large the
    // heaps must be. It is a barrier as well: nobody has counts before all have come.
    const Tensor all = gather_from_sequence_parallel_region(
        *groups.tp_ep,
        Tensor::from({1, std::int64_t(input_splits.size())}, input_splits));
    const std::int64_t* counts = all.data<std::int64_t>();
    return make_flex_plan({counts, counts + all.numel()}, config, dtype, *groups.tp_ep);
}

std::int64_t max_tokens_per_rank(std::int64_t num_tokens, const MoEConfig& config,
                                 Communicator& tp_ep) {
    if (const auto given = config.moe_flex_max_tokens_per_rank) {
        if (num_tokens > *given)
            reject("moe_flex_max_tokens_per_rank", *given,
                   fmt::format("must be at least {}, the tokens of rank {}", num_tokens,
                               tp_ep.world_rank(tp_ep.rank())));
        return *given;
    }
    const Tensor all = gather_from_sequence_parallel_region(
        tp_ep, Tensor::from<std::int64_t>({1}, {num_tokens}));
    const std::int64_t* tokens = all.data<std::int64_t>();
    return *std::max_element(tokens, tokens + all.numel());
}

KeptChoices drop_over_capacity(const Tensor& topk_ids, std::int64_t capacity) {
    Tensor ids = transfer(topk_ids, {MemorySpace::host}).clone();
    std::int32_t* const all = ids.data<std::int32_t>();
    const std::int32_t experts =
        ids.numel() == 0 ? 0 : *std::max_element(all, all + ids.numel()) + 1;
    std::int64_t rows = 0;
    for (std::int32_t e = 0; e < experts; ++e)
        for (std::int64_t i = 0; i < ids.numel(); ++i)  // by row: a row has e once
            if (all[i] == e && ++rows > capacity) all[i] = -1;
    return {transfer(ids, {topk_ids.space()}),
            std::max(rows - capacity, std::int64_t{0})};
}

std::size_t heap_limit(const MoEConfig& config) {
    const auto given = config.moe_flex_peer_heap_bytes;
    return given ? std::size_t(*given) : std::numeric_limits<std::size_t>::max();
}

bool enough_tokens_to_pad(const std::vector<std::int64_t>& tokens_per_expert,
                          std::int64_t received_rows, std::int64_t pad_multiple) {
    return std::all_of(
        tokens_per_expert.begin(), tokens_per_expert.end(), [&](std::int64_t count) {
            const std::int64_t multiples = (count + pad_multiple - 1) / pad_multiple;
            return multiples * pad_multiple <= received_rows;
        });
}

void reserve_heap(const FlexPlan& plan, const MoEConfig& config, MemorySpace space,
                  const ProcessGroups& groups) {
    const std::size_t limit = heap_limit(config);
    if (plan.heap_bytes > limit)
        reject("moe_flex_peer_heap_bytes", limit,
               fmt::format("must be at least {} for the {} rows that rank {} receives",
                           plan.heap_bytes, plan.heap_rows,
                           groups.tp_ep->world_rank(plan.busiest)));
    groups.heap->reserve(plan.heap_bytes, limit, space);
}

Tensor take_rows(const FlexPlan& plan, const HeapSection& section,
                 const ProcessGroups& groups, MemorySpace space) {
    const TensorView own = own_rows(plan, section, groups, space);
    const Tensor taken = Tensor::empty(own.shape, own.dtype, own.space);
    if (own.size_bytes() > 0) copy(taken, own);
    return taken;
}

void offer_rows(const FlexPlan& plan, const HeapSection& section, const Tensor& rows,
                const ProcessGroups& groups) {
    if (rows.size_bytes() > 0) copy(own_rows(plan, section, groups, rows.space()), rows);
}

void count_rows(Communicator& group, const std::string& name, const Splits& rows,
                std::int64_t row_bytes) {
    for (int r = 0; r < group.size(); ++r)
        if (r != group.rank() && rows[r] > 0)
            group.ledger().count_sent(name, group.world_rank(r), rows[r] * row_bytes);
}

}  // namespace moe::distributed
