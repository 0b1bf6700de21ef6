/// @file
/// The phases of the flex dispatcher: who gets a row of which token, pushing rows into
/// the peers' heaps, and pulling sums out of them. Source: DeepEP, csrc/kernels/layout.cu
/// and intranode.cu; token_dispatcher.py, _DeepepManager.
#pragma once

#include <cstdint>

#include "core/tensor.h"
#include "distributed/flex_plan.h"
#include "reference_cpu/permutation.h"

namespace moe::cpu {

using distributed::ExpertGrid;

/// What each token chose, and the rows that this means: one for every rank that holds at
/// least one of its experts, however many.
struct DispatchLayout {
    Tensor topk_ids;    ///< (T, K') i64 w * L + l, ascending, then -1
    Tensor topk_probs;  ///< (T, K'), 0 where the id is -1
    /// Of the (T, W') map of tokens and ranks: row r goes to rank row_expert[r], in the
    /// order of rank and token.
    RowMap sent;
};

/// The routing map decides, also for a probability of 0: Megatron's topk over the
/// probabilities finds the same experts, in another order, as long as none underflowed.
/// @param probs (T, E), @param routing_map (T, E) u8 with at most K per token
/// @param slots  K' = ETP K
template <typename Scalar>
DispatchLayout get_dispatch_layout(const Tensor& probs, const Tensor& routing_map,
                                   const ExpertGrid& grid, std::int64_t slots);

/// Pushes the token's row of `source` (T, H) once for every row of `sent`.
template <typename Scalar>
void push_rows(const distributed::PeerRows<Scalar>& peers, const Tensor& source,
               const RowMap& sent);

/// Where the parts of a row that are not the token itself go.
template <typename Scalar>
struct PeerChoices {
    distributed::PeerRows<std::int32_t> topk_ids, sources;
    distributed::PeerRows<Scalar> topk_probs;
};

/// Pushes each row's choices, as its rank sees them: local experts, -1 for another
/// rank's; and where the row comes from.
/// @param rank  mine in tp_ep
template <typename Scalar>
void push_choices(const PeerChoices<Scalar>& peers, const DispatchLayout& layout,
                  const ExpertGrid& grid, std::int64_t rank);

/// Received choices as a routing map and probabilities.
struct Multihot {
    Tensor map;    ///< (N', L) u8
    Tensor probs;  ///< (N', L)
};

/// Source: token_dispatcher.py, _indices_to_multihot.
/// @param topk_ids (N', K') i32 local experts or -1, @param topk_probs (N', K')
template <typename Scalar>
Multihot indices_to_multihot(const Tensor& topk_ids, const Tensor& topk_probs,
                             std::int64_t num_local);

/// @param dprobs (N', L) @return (N', K'), 0 where the id is -1
template <typename Scalar>
Tensor indices_to_multihot_backward(const Tensor& dprobs, const Tensor& topk_ids);

/// Row t is the sum of the token's rows in the peers' heaps, in ascending order of rank;
/// 0 for a token without rows. @return (T, H)
template <typename Scalar>
Tensor pull_rows(const distributed::PeerRows<Scalar>& peers, const RowMap& sent);

/// Each choice's gradient from the rank that got it; the shards of an expert add up in
/// ascending order of rank. @return dprobs (T, E), 0 where not routed
template <typename Scalar>
Tensor pull_prob_gradients(const distributed::PeerRows<Scalar>& peers,
                           const DispatchLayout& layout, const ExpertGrid& grid,
                           std::int64_t num_experts);

}  // namespace moe::cpu
