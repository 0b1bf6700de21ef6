/// @file
/// The rows that a rank pushes, and pulls sums for, as kernels see them.
#pragma once

#include "gpu/tensor.h"
#include "optimized_gpu/flex_slots.h"
#include "optimized_gpu/row_map.h"
#include "optimized_gpu/token_slices.h"

namespace moe::optimized {

/// Of a map in which ranks are the experts.
struct SentRows {
    const int *token_rows, *row_slot, *offsets;  // (T, W'), (T W'), (W' + 1)
    int num_tokens, num_ranks;

    explicit SentRows(const RowMap& sent)
        : token_rows(gpu::device_data<int>(sent.token_rows)),
          row_slot(gpu::device_data<int>(sent.row_slot)),
          offsets(gpu::device_data<int>(sent.offsets)),
          num_tokens(sent.num_tokens),
          num_ranks(sent.num_experts) {}

    __device__ int rank_of(int row) const { return row_slot[row] % num_ranks; }
    /// The token's row for a rank; it has one.
    __device__ int row_of(int token, int rank) const {
        const int* rows = token_rows + std::int64_t(token) * num_ranks;
        while (rank_of(*rows) != rank) ++rows;
        return *rows;
    }
    /// A row of mine, in the heap of its rank.
    template <typename E>
    __device__ E* in_heap(const PeerSlots<E>& peers, int rank, int row) const {
        return peers.of[rank] + (peers.first_slot + row - offsets[rank]) * peers.width;
    }
};

/// Bytes as wider pieces that divide them.
template <typename Vector>
PeerSlots<Vector> in_vectors(const PeerSlots<std::byte>& bytes) {
    PeerSlots<Vector> vectors;
    vectors.width = bytes.width / std::int64_t(sizeof(Vector));
    vectors.first_slot = bytes.first_slot;
    for (int w = 0; w < distributed::kMaxPeers; ++w)
        vectors.of[w] = reinterpret_cast<Vector*>(bytes.of[w]);
    return vectors;
}

inline std::uintptr_t bits_of(const Tensor& tensor) {
    return tensor.defined() ? reinterpret_cast<std::uintptr_t>(tensor.view().bytes) : 0;
}

}  // namespace moe::optimized
