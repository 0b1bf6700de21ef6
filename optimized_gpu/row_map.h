/// @file
/// Which token's copy stands in which row, decided on the device: a counting sort of the
/// router's choices by expert. The host neither counts nor waits. Source: Megatron,
/// fused_indices_converter and moe_utils.py, permute and pad_routing_map.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "core/tensor.h"
#include "gpu/stream.h"

namespace moe::optimized {

/// The most choices in a token's list, and the most experts, that these kernels take: the
/// lanes of a warp, and what a block's counters hold.
inline constexpr int kMaxTopk = 32, kMaxExperts = 1024;

/// Of which experts a map has the rows, where choices may name others: a rank's own.
struct ExpertWindow {
    int first = 0;  ///< the map's expert 0
    int all = 0;    ///< experts that choices may name; 0: the map's
};

/// Rows of which a map drops the last ones, by expert and token, as if their choices were
/// negative.
struct RowLimit {
    std::int64_t most = -1;                 ///< that stay; negative: all
    unsigned long long* dropped = nullptr;  ///< on the device: grows by the others
};

/// Rows are in ascending order of expert, and of token within an expert; behind those of
/// an expert come its padding rows, which are no token's. How many rows there are is
/// known only on the device, offsets[E]: `capacity` is a bound, and what lies between the
/// two is never written. All tensors are on the device, i32 but for row_probs.
struct RowMap {
    int num_tokens = 0, topk = 0, num_experts = 0;
    int num_choices = 0;  ///< of a token: K, or all experts of a dense map
    int padding = 1;      ///< an expert's rows are a multiple of it, or as many as tokens
    std::int64_t capacity = 0;  ///< rows to allocate
    Tensor row_token;           ///< (capacity) token of row r, -1: padding
    Tensor row_slot;            ///< (capacity) its choice, t * K + k, -1: padding
    /// (capacity) f32, the choice's weight, 0 for padding; undefined without weights
    Tensor row_probs;
    Tensor
        token_rows;  ///< (T, K) rows of token t, ascending: in the order of its experts,
                     ///< whatever their order in the ids; then -1 for dropped choices
    Tensor offsets;  ///< (E + 1) rows [offsets[e], offsets[e + 1]) are expert e's
    Tensor tokens_per_expert;  ///< (E) its rows without padding
    Tensor rows_per_expert;    ///< (E) and with it; the same tensor where there is none
    /// Where tokens lie in regions of `tokens_per_region`, (regions) i32 of them from
    /// each one's start on, and nothing behind them; undefined: everywhere.
    Tensor region_counts;
    int tokens_per_region = 0;
    /// (chunks, E) and (groups, E) how often each expert is chosen in each chunk of
    /// tokens, and in each group of chunks: the sort's own. TUTORIAL: kept, because
    /// cudaFree() would wait for the kernels that use them.
    Tensor chunk_counts, group_counts;
};

/// Two kernels and a memset. The result is the same in every run.
/// InputError, before anything is launched, beyond the limits above and for a padding
/// that nothing asks for. An id that names no expert stops the kernel.
/// @param ids      (T, K) i32 on the device: experts, in any order; negative: none
/// @param num_experts  of the map, from window.first on
/// @param padding  1, 16 or 32
/// @param weights  (T, K) f32 of the choices, or undefined
/// @param limit    without padding
RowMap make_row_map(const Tensor& ids, int num_experts, int padding,
                    const Tensor& weights, cudaStream_t stream = gpu::current_stream(),
                    const ExpertWindow& window = {}, const RowLimit& limit = {});

/// The same for a map with a column for each expert, in which a token may have any number
/// of them: topk is E, and choice t * E + e stands where (t, e) does, so that
/// permute_probs_backward() makes gradients (T, E). token_rows (T, E) begins with the
/// rows that the token has.
/// @param routing_map  (T, E) u8 on the device, not 0: the token goes to the expert
/// @param probs        (T, E) f32, or undefined
RowMap make_row_map_of_dense(const Tensor& routing_map, int padding, const Tensor& probs,
                             cudaStream_t stream = gpu::current_stream());

/// The same where the caller knows that no expert has more tokens than `most_per_expert`,
/// e.g. its capacity: room is allocated for E times as many (padded), not for T E. More
/// tokens than there is room for stop the kernel.
/// @param num_experts  columns that count, from first_expert on; 0: all
RowMap make_row_map_of_dense(const Tensor& routing_map, std::int64_t most_per_expert,
                             int padding, const Tensor& probs,
                             cudaStream_t stream = gpu::current_stream(),
                             int num_experts = 0, int first_expert = 0);

}  // namespace moe::optimized
