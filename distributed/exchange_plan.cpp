#include "distributed/exchange_plan.h"

#include <numeric>

#include "core/transfer.h"
#include "distributed/mappings.h"

namespace moe::distributed {

std::int64_t ExchangePlan::num_sent() const {
    return std::accumulate(input_splits.begin(), input_splits.end(), std::int64_t{0});
}

ExchangePlan make_exchange_plan(const std::vector<std::int64_t>& counts,
                                std::int64_t num_experts, const Communicator& ep,
                                const Communicator& expt_tp) {
    const int EP = ep.size(), ETP = expt_tp.size();
    const std::int64_t E = num_experts, L = E / EP;
    MOE_CHECK_EQ(std::int64_t(counts.size()), EP * ETP * E);
    // tp_ep varies fastest along expt_tp
    const auto count = [&](int tp_rank, int ep_rank, std::int64_t expert) {
        return counts[(std::int64_t(ep_rank) * ETP + tp_rank) * E + expert];
    };
    ExchangePlan plan;
    plan.input_splits.resize(EP, 0);
    plan.output_splits.resize(EP, 0);
    plan.output_splits_tp.resize(ETP, 0);
    plan.tokens_per_expert.resize(L, 0);
    for (std::int64_t e = 0; e < E; ++e)
        plan.input_splits[e / L] += count(expt_tp.rank(), ep.rank(), e);
    for (int tp = 0; tp < ETP; ++tp)
        for (int source = 0; source < EP; ++source)
            for (std::int64_t l = 0; l < L; ++l) {
                const std::int64_t rows = count(tp, source, ep.rank() * L + l);
                plan.chunk_sizes.push_back(rows);
                plan.tokens_per_expert[l] += rows;
                plan.output_splits_tp[tp] += rows;
                if (tp == expt_tp.rank()) plan.output_splits[source] += rows;
            }
    const std::int64_t sources = EP * ETP;
    for (std::int64_t l = 0; l < L; ++l)
        for (std::int64_t s = 0; s < sources; ++s) {
            plan.chunk_order.push_back(s * L + l);
            plan.sorted_sizes.push_back(plan.chunk_sizes[s * L + l]);
        }
    for (std::int64_t s = 0; s < sources; ++s)
        for (std::int64_t l = 0; l < L; ++l)
            plan.restored_order.push_back(l * sources + s);
    return plan;
}

ExchangePlan plan_exchange(const Tensor& tokens_per_expert, const ProcessGroups& groups) {
    const std::int64_t E = tokens_per_expert.numel();
    const Tensor counts = gather_from_sequence_parallel_region(
        *groups.tp_ep, tokens_per_expert.reshaped({1, E}));
    ExchangePlan plan =
        make_exchange_plan(read_counts(counts), E, *groups.ep, *groups.expt_tp);
    plan.counts = counts;
    return plan;
}

ExchangePlan plan_padded_exchange(std::int64_t capacity, std::int64_t num_experts,
                                  const ProcessGroups& groups) {
    const std::vector<std::int64_t> counts(groups.tp_ep->size() * num_experts, capacity);
    return make_exchange_plan(counts, num_experts, *groups.ep, *groups.expt_tp);
}

std::vector<std::int64_t> read_counts(const Tensor& counts) {
    const Tensor read = transfer(counts, {MemorySpace::host, DType::i32});
    return {read.data<std::int32_t>(), read.data<std::int32_t>() + read.numel()};
}

std::string cuda_sync_point(const MoEConfig& config, const ProcessGroups& groups) {
    if (config.moe_pad_expert_input_to_capacity) return "no_sync";
    if (config.moe_expert_capacity_factor || config.moe_router_padding_for_quantization)
        return "before_permutation_1";
    return groups.tp_ep->size() > 1 ? "before_ep_alltoall" : "before_finish";
}

}  // namespace moe::distributed
