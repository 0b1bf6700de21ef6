// flex_phases.cpp: what the flex dispatcher does with the peers' heaps.

#include "reference_cpu/flex_phases.h"

#include <algorithm>

#include "reference_cpu/eigen.h"
#include "reference_cpu/rows.h"

namespace moe::cpu {
namespace {

using distributed::PeerRows;

/// Row r of what I push, in the heap of its rank.
template <typename T>
std::span<T> peer_row(const PeerRows<T>& peers, std::int64_t rank, std::int64_t r) {
    return {peers.of[rank] + (peers.shift[rank] + r) * peers.width,
            std::size_t(peers.width)};
}

}  // namespace

//! [get_dispatch_layout]
template <typename Scalar>
DispatchLayout get_dispatch_layout(const Tensor& probs, const Tensor& routing_map,
                                   const ExpertGrid& grid, std::int64_t slots) {
    const std::int64_t T = routing_map.dim(0), W = grid.num_ranks;
    DispatchLayout layout;
    layout.topk_ids = Tensor::empty({T, slots}, DType::i64);
    layout.topk_probs = Tensor::zeros({T, slots}, dtype_of<Scalar>);
    Tensor is_token_in_rank = Tensor::zeros({T, W}, DType::u8);
    for (std::int64_t t = 0; t < T; ++t) {
        const auto routed = row_of<std::uint8_t>(routing_map, t);
        const auto p = row_of<Scalar>(probs, t);
        const auto ids = row_of<std::int64_t>(layout.topk_ids, t);
        std::fill(ids.begin(), ids.end(), -1);
        std::int64_t k = 0;
        for (std::int64_t w = 0; w < W; ++w) {
            for (std::int64_t l = 0; l < grid.num_local; ++l) {
                const std::int64_t e = grid.expert(w, l);
                if (!routed[e]) continue;
                MOE_CHECK(k < slots);  // at most K experts per token
                ids[k] = w * grid.num_local + l;
                row_of<Scalar>(layout.topk_probs, t)[k] = p[e];
                row_of<std::uint8_t>(is_token_in_rank, t)[w] = 1;
                ++k;
            }
        }
    }
    layout.sent = make_row_map(is_token_in_rank);
    return layout;
}
//! [get_dispatch_layout]

//! [push_rows]
template <typename Scalar>
void push_rows(const PeerRows<Scalar>& peers, const Tensor& source, const RowMap& sent) {
    for (std::int64_t r = 0; r < sent.num_rows(); ++r) {
        const auto row = row_of<Scalar>(source, sent.row_token[r]);
        std::copy(row.begin(), row.end(), peer_row(peers, sent.row_expert[r], r).begin());
    }
}

template <typename Scalar>
void push_choices(const PeerChoices<Scalar>& peers, const DispatchLayout& layout,
                  const ExpertGrid& grid, std::int64_t rank) {
    const RowMap& sent = layout.sent;
    const std::int64_t slots = layout.topk_ids.dim(1);
    for (std::int64_t r = 0; r < sent.num_rows(); ++r) {
        const std::int64_t t = sent.row_token[r], w = sent.row_expert[r];
        const auto ids = row_of<std::int64_t>(layout.topk_ids, t);
        const auto p = row_of<Scalar>(layout.topk_probs, t);
        const auto peer_ids = peer_row(peers.topk_ids, w, r);
        const auto peer_p = peer_row(peers.topk_probs, w, r);
        for (std::int64_t k = 0; k < slots; ++k) {
            const bool here = ids[k] >= 0 && ids[k] / grid.num_local == w;
            peer_ids[k] = here ? std::int32_t(ids[k] % grid.num_local) : -1;
            peer_p[k] = here ? p[k] : Scalar(0);
        }
        const auto source = peer_row(peers.sources, w, r);
        source[0] = std::int32_t(rank);
        source[1] = std::int32_t(t);
    }
}
//! [push_rows]

//! [indices_to_multihot]
template <typename Scalar>
Multihot indices_to_multihot(const Tensor& topk_ids, const Tensor& topk_probs,
                             std::int64_t num_local) {
    const std::int64_t N = topk_ids.dim(0), slots = topk_ids.dim(1);
    Multihot multihot{Tensor::zeros({N, num_local}, DType::u8),
                      Tensor::zeros({N, num_local}, dtype_of<Scalar>)};
    for (std::int64_t n = 0; n < N; ++n) {
        const auto ids = row_of<std::int32_t>(topk_ids, n);
        for (std::int64_t k = 0; k < slots; ++k) {
            if (ids[k] < 0) continue;
            row_of<std::uint8_t>(multihot.map, n)[ids[k]] = 1;
            row_of<Scalar>(multihot.probs, n)[ids[k]] = row_of<Scalar>(topk_probs, n)[k];
        }
    }
    return multihot;
}

template <typename Scalar>
Tensor indices_to_multihot_backward(const Tensor& dprobs, const Tensor& topk_ids) {
    const std::int64_t N = topk_ids.dim(0), slots = topk_ids.dim(1);
    Tensor dtopk_probs = Tensor::zeros({N, slots}, dtype_of<Scalar>);
    for (std::int64_t n = 0; n < N; ++n) {
        const auto ids = row_of<std::int32_t>(topk_ids, n);
        for (std::int64_t k = 0; k < slots; ++k)
            if (ids[k] >= 0)
                row_of<Scalar>(dtopk_probs, n)[k] = row_of<Scalar>(dprobs, n)[ids[k]];
    }
    return dtopk_probs;
}
//! [indices_to_multihot]

//! [pull_rows]
template <typename Scalar>
Tensor pull_rows(const PeerRows<Scalar>& peers, const RowMap& sent) {
    Tensor sums = Tensor::empty({sent.num_tokens, peers.width}, dtype_of<Scalar>);
    for (std::int64_t t = 0; t < sent.num_tokens; ++t) {
        auto sum = row_at<Scalar>(sums, t);
        sum.setZero();
        for (std::int64_t i = sent.token_offsets[t]; i < sent.token_offsets[t + 1]; ++i) {
            const std::int64_t r = sent.token_rows[i];
            const auto row = peer_row(peers, sent.row_expert[r], r);
            sum += ConstRowVectorMap<Scalar>(row.data(), peers.width);
        }
    }
    return sums;
}

template <typename Scalar>
Tensor pull_prob_gradients(const PeerRows<Scalar>& peers, const DispatchLayout& layout,
                           const ExpertGrid& grid, std::int64_t num_experts) {
    const RowMap& sent = layout.sent;
    Tensor dprobs = Tensor::zeros({sent.num_tokens, num_experts}, dtype_of<Scalar>);
    for (std::int64_t t = 0; t < sent.num_tokens; ++t) {
        const auto ids = row_of<std::int64_t>(layout.topk_ids, t);
        const auto dp = row_of<Scalar>(dprobs, t);
        for (std::int64_t i = sent.token_offsets[t]; i < sent.token_offsets[t + 1]; ++i) {
            const std::int64_t r = sent.token_rows[i], w = sent.row_expert[r];
            const auto row = peer_row(peers, w, r);
            for (std::size_t k = 0; k < ids.size(); ++k)
                if (ids[k] >= 0 && ids[k] / grid.num_local == w)
                    dp[grid.expert(w, ids[k] % grid.num_local)] += row[k];
        }
    }
    return dprobs;
}
//! [pull_rows]

#define INSTANTIATE(Scalar)                                                             \
    template DispatchLayout get_dispatch_layout<Scalar>(                                \
        const Tensor&, const Tensor&, const ExpertGrid&, std::int64_t);                 \
    template void push_rows<Scalar>(const PeerRows<Scalar>&, const Tensor&,             \
                                    const RowMap&);                                     \
    template void push_choices<Scalar>(const PeerChoices<Scalar>&,                      \
                                       const DispatchLayout&, const ExpertGrid&,        \
                                       std::int64_t);                                   \
    template Multihot indices_to_multihot<Scalar>(const Tensor&, const Tensor&,         \
                                                  std::int64_t);                        \
    template Tensor indices_to_multihot_backward<Scalar>(const Tensor&, const Tensor&); \
    template Tensor pull_rows<Scalar>(const PeerRows<Scalar>&, const RowMap&);          \
    template Tensor pull_prob_gradients<Scalar>(const PeerRows<Scalar>&,                \
                                                const DispatchLayout&,                  \
                                                const ExpertGrid&, std::int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::cpu
