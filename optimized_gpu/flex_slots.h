/// @file
/// Where rows lie in the ranks' heaps: each source has a region of its own, with a slot
/// for each of its tokens, so that no rank has to know what the others push.
///
/// TUTORIAL: it costs room, W' times the most tokens of a rank, where rows side by side
/// would need what arrives. Knowing that first takes an exchange of counts and a wait,
/// before anything can move; and the heap is one, for all layers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/config.h"
#include "distributed/flex_plan.h"

namespace moe::optimized {

using distributed::HeapSection;

/// Sections of every rank's heap. W' ranks, T' slots for each; slot s T' + r holds row r
/// of source s, in the order of its tokens.
struct FlexSlots {
    int num_ranks = 1;            ///< W'
    std::int64_t per_source = 0;  ///< T', the most tokens of a rank
    std::size_t bytes = 0;        ///< of all sections

    // The source pushes, and the rank itself offers in the same places what it made of
    // that: nobody else comes to these slots
    HeapSection tokens;      ///< (W' T', H) and experts' sums; gradients of both
    HeapSection topk_probs;  ///< (W' T', K') f32, and their gradients
    // The source alone
    HeapSection topk_ids;  ///< (W' T', K') i32 local experts, -1: not here
    HeapSection sources;   ///< (W' T', 2) i32 rank of tp_ep and token
    HeapSection counts;    ///< (W') i32 rows of each source

    std::int64_t num_slots() const { return num_ranks * per_source; }
    /// The same number where all sections lie at the same places.
    std::size_t layout() const;
};

/// @param max_tokens  of any rank @param dtype  of tokens
FlexSlots make_flex_slots(int num_ranks, std::int64_t max_tokens, const MoEConfig& config,
                          DType dtype);

/// A section of all heaps, as a rank sees it that pushes there or pulls from it: its row
/// r for rank d is the (r - first row for d)th of its region. Kernels take it by value.
template <typename T>
struct PeerSlots {
    T* of[distributed::kMaxPeers] = {};  ///< slot 0
    std::int64_t width = 0;
    std::int64_t first_slot = 0;  ///< of my region
};

template <typename T>
PeerSlots<T> peer_slots(const FlexSlots& slots, const HeapSection& section,
                        const distributed::PeerTable& table) {
    PeerSlots<T> peers;
    peers.width = section.row_bytes() / std::int64_t(sizeof(T));
    peers.first_slot = table.rank * slots.per_source;
    for (int d = 0; d < table.size; ++d)
        peers.of[d] = reinterpret_cast<T*>(table.base[d] + section.offset);
    return peers;
}

/// A section of the own heap. @param rows  slots, or ranks
TensorView own_slots(const HeapSection& section, std::int64_t rows,
                     const distributed::PeerTable& table);

}  // namespace moe::optimized
