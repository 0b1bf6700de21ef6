/// @file
/// Who sends how many rows to whom in the all-to-all dispatcher: Megatron's splits,
/// worked out on the host from everybody's counts. The same for every tier.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/config.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

/// Source: token_dispatcher.py, MoEAlltoAllTokenDispatcher.preprocess.
struct ExchangePlan {
    Splits input_splits;      ///< (EP) rows I send to each ep rank
    Splits output_splits;     ///< (EP) rows I get from each ep rank
    Splits output_splits_tp;  ///< (ETP) rows that each expt_tp rank got in its exchange
    std::vector<std::int64_t> tokens_per_expert;  ///< (L) after all gathers
    /// (EP ETP, E) everybody's counts, where the tier has its own; undefined in
    /// drop-and-pad, where all are the same.
    Tensor counts;
    /// Rows as they lie after the gathers, in chunks by expt_tp rank, ep rank and local
    /// expert: (ETP EP L).
    std::vector<std::int64_t> chunk_sizes;
    /// The chunks by local expert, then expt_tp rank and ep rank, …
    std::vector<std::int64_t> chunk_order;
    /// … and what brings them back, with their sizes as they then lie.
    std::vector<std::int64_t> sorted_sizes, restored_order;

    std::int64_t num_sent() const;  ///< N0, the sum of input_splits
    /// True with one source or one local expert: there is nothing to reorder.
    bool arrives_sorted() const {
        return tokens_per_expert.size() == 1 ||
               chunk_sizes.size() == tokens_per_expert.size();
    }
};

/// @param counts  (EP ETP E) rows that each rank of tp_ep, in its order, has for each
///                expert
/// @param ep, expt_tp  this rank's groups
ExchangePlan make_exchange_plan(const std::vector<std::int64_t>& counts,
                                std::int64_t num_experts, const Communicator& ep,
                                const Communicator& expt_tp);

/// The plan of one dispatch: everybody's counts over tp_ep by one small all-gather, then
/// read. The host waits for its device where that counts.
/// @param tokens_per_expert  (E) i32, rows that this rank has for each expert
ExchangePlan plan_exchange(const Tensor& tokens_per_expert, const ProcessGroups& groups);

/// The plan of drop-and-pad, without asking anybody.
/// @param capacity  rows that every rank has for each expert
ExchangePlan plan_padded_exchange(std::int64_t capacity, std::int64_t num_experts,
                                  const ProcessGroups& groups);

/// The integers (i32) of a small tensor; the host waits for the device that counted them.
std::vector<std::int64_t> read_counts(const Tensor& counts);

/// Where Megatron's host has to know the counts: "before_permutation_1",
/// "before_ep_alltoall", "before_finish", or "no_sync" when all are C. Source:
/// token_dispatcher.py, _maybe_update_cuda_sync_point.
std::string cuda_sync_point(const MoEConfig& config, const ProcessGroups& groups);

}  // namespace moe::distributed
