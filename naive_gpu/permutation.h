/// @file
/// Permutation: token rows into expert order and back. T is the type of the elements,
/// float or __nv_bfloat16; probabilities are Accumulator<T>. Source: moe_utils.py,
/// permute, unpermute, sort_chunks_by_idxs.
#pragma once

#include <cstdint>
#include <vector>

#include "core/tensor.h"

namespace moe::naive {

/// Where each routed (token, expert) pair goes: rows are in ascending order of expert,
/// and of token within an expert. The same lists serve dropless routing and drop-and-pad,
/// whose map has exactly C entries in every column.
struct RowMap {
    std::int64_t num_tokens = 0, num_experts = 0;
    Tensor row_token;   ///< (N) i64 on the device, token of row r
    Tensor row_expert;  ///< (N) i64 on the device, expert of row r
    Tensor token_row;   ///< (T, E) i64 on the device, row of the pair, -1: not routed
    std::vector<std::int64_t> tokens_per_expert;  ///< (E)

    std::int64_t num_rows() const { return row_token.numel(); }
};

/// @param routing_map (T, E) u8
RowMap make_row_map(const Tensor& routing_map);

/// The map with each column filled up to a multiple of `pad_multiple` tokens: the first
/// that are not routed there. Too few of them: the column has all, and no multiple.
/// Source: moe_utils.py, pad_routing_map, which changes the map that it is given.
/// @param routing_map (T, E) u8 @return a new one
Tensor pad_routing_map(const Tensor& routing_map, std::int64_t pad_multiple);

/// dprobs (T, E) without what fell to padding, which is no choice of the router's.
/// @param routing_map (T, E) u8, before padding
void pad_routing_map_backward(Tensor& dprobs, const Tensor& routing_map);

/// A copy of each token for each of its experts.
/// @param tokens (T, H) @return rows (N, H)
template <typename T>
Tensor permute(const Tensor& tokens, const RowMap& map);

/// dtokens_t = sum of the gradients of its rows. @param drows (N, H) @return (T, H)
template <typename T>
Tensor permute_backward(const Tensor& drows, const RowMap& map);

/// The entries of a (T, E) tensor in row order. @return (N)
template <typename Prob>
Tensor permute_probs(const Tensor& probs, const RowMap& map);

/// Scatters (N) row gradients to (T, E); zero where not routed.
template <typename Prob>
Tensor permute_probs_backward(const Tensor& drow_probs, const RowMap& map);

/// out_t = sum of the token's rows in ascending expert order; 0 for a token without rows.
/// @param rows (N, H) @return (T, H)
template <typename T>
Tensor unpermute(const Tensor& rows, const RowMap& map);

/// drow_r = dout of the row's token. @param doutput (T, H) @return (N, H)
template <typename T>
Tensor unpermute_backward(const Tensor& doutput, const RowMap& map);

/// Cuts rows into consecutive chunks of the given sizes and concatenates them in the
/// given order. Its backward is itself with the inverse order (and the sizes as they then
/// lie).
/// @param rows  (N, H) or (N); the sizes sum to N @param order  a permutation of the
/// chunks
template <typename T>
Tensor sort_chunks_by_idxs(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                           const std::vector<std::int64_t>& order);

}  // namespace moe::naive
