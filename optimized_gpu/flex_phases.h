/// @file
/// The phases of the flex dispatcher: who gets a row of which token, pushing rows into
/// the peers' heaps, taking what came, and pulling sums out of them. Rows are bf16 or
/// fp32, probabilities fp32. Source: DeepEP, csrc/kernels/layout.cu and intranode.cu;
/// token_dispatcher.py, _DeepepManager.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/tensor.h"
#include "optimized_gpu/flex_slots.h"
#include "optimized_gpu/row_map.h"

namespace moe::optimized {

using distributed::ExpertGrid;

/// The rows that this rank sends, one for every rank that holds at least one of a token's
/// experts, however many: a row map in which ranks are the experts, of T W' choices.
/// Three kernels and a memset. An id that names no expert stops the kernel.
/// @param topk_ids (T, K) i32 experts of the layer; negative: none
RowMap make_rank_map(const Tensor& topk_ids, const ExpertGrid& grid,
                     cudaStream_t stream = gpu::current_stream());

/// Pushes the token's row of `source` (T, H) once for every row of `sent`: a warp reads a
/// slice of it once, and writes it to all ranks.
/// @param peers  as bytes
void push_rows(const PeerSlots<std::byte>& peers, const Tensor& source,
               const RowMap& sent, cudaStream_t stream = gpu::current_stream());

/// Where the parts of a row that are not the token itself go.
struct PeerChoices {
    PeerSlots<std::int32_t> topk_ids, sources;
    PeerSlots<float> topk_probs;
    PeerSlots<std::int32_t> counts;  ///< one for each source
};

/// The same, and with each row its choices as its rank sees them: local experts, -1 for
/// another rank's; and where it comes from. And how many rows each rank gets. Slot k ETP
/// + s is choice k on shard s.
/// @param topk_ids (T, K) i32 @param topk_probs (T, K) f32 @param rank  mine in tp_ep
void push_tokens(const PeerSlots<std::byte>& peers, const PeerChoices& choices,
                 const Tensor& source, const Tensor& topk_ids, const Tensor& topk_probs,
                 const RowMap& sent, const ExpertGrid& grid, int rank,
                 cudaStream_t stream = gpu::current_stream());

/// What came, with this rank's slots as they lie in its heap.
struct TakenTokens {
    Tensor rows;        ///< (W' T', H); undefined where not asked for
    Tensor topk_ids;    ///< (W' T', K') i32, -1 in slots that nobody filled
    Tensor topk_probs;  ///< (W' T', K') f32, undefined there
    Tensor counts;      ///< (W') i32 rows of each source
};
/// Copies it, so that others may write there again. @param with_rows  not only choices
TakenTokens take_tokens(const FlexSlots& slots, const distributed::PeerTable& table,
                        bool with_rows, cudaStream_t stream = gpu::current_stream());

/// A copy of the rows alone. @param counts (W') i32 rows of each source
Tensor take_rows(const FlexSlots& slots, const distributed::PeerTable& table,
                 const Tensor& counts, cudaStream_t stream = gpu::current_stream());

/// Row t is the sum of the token's rows in the peers' heaps, in ascending order of rank,
/// then of the addend, in fp32, rounded once; 0 for a token without rows.
/// @param peers   as bytes of `dtype`
/// @param addend  (T, H) of `dtype`, or undefined
/// @return (T, H)
Tensor pull_rows(const PeerSlots<std::byte>& peers, DType dtype, const RowMap& sent,
                 const Tensor& addend, cudaStream_t stream = gpu::current_stream());

/// Each choice's gradient from the rank that got it; the shards of an expert add up in
/// ascending order of rank. @return (T, K) f32, 0 for dropped choices
Tensor pull_prob_gradients(const PeerSlots<float>& peers, const Tensor& topk_ids,
                           const RowMap& sent, const ExpertGrid& grid,
                           cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
