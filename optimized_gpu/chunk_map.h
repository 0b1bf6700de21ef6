/// @file
/// Chunks of rows from many ranks, in the order of the local experts: the row map of
/// what arrives. Source: moe_utils.py, sort_chunks_by_idxs; TransformerEngine,
/// sort_chunks_by_index_with_probs.
#pragma once

#include "distributed/exchange_plan.h"
#include "optimized_gpu/row_map.h"

namespace moe::optimized {

/// A row map whose "tokens" are the N rows that arrived, each with one expert; expert e
/// is the e-th local one. One launch. Where rows arrive in that order already, there are
/// offsets and counts only.
/// @param plan  with counts (EP ETP, E) i32 on the device, or none: all chunks are alike
/// @param first_expert   of this rank
/// @param arrived_probs  (N) f32
RowMap make_chunk_map(const distributed::ExchangePlan& plan, int ep_size, int etp_size,
                      int first_expert, const Tensor& arrived_probs,
                      cudaStream_t stream = gpu::current_stream());

}  // namespace moe::optimized
