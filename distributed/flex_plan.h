/// @file
/// Who pushes how many rows to whom in the flex dispatcher, and where they lie in the
/// ranks' symmetric heaps: worked out on the host from everybody's counts. The same for
/// every tier.
#pragma once

#include <cstdint>
#include <string>

#include "core/config.h"
#include "distributed/process_groups.h"

namespace moe::distributed {

/// A part of the heap: one row of `width` elements for every row that a rank receives.
struct HeapSection {
    std::size_t offset = 0;  ///< from the heap's start, the same on every rank
    DType dtype = DType::f32;
    std::int64_t width = 0;
    std::int64_t row_bytes() const { return width * std::int64_t(size_of(dtype)); }
};

/// DeepEP's handle: what the counts say, kept for combine and the backward. W' is the
/// size of tp_ep. Received rows lie by source rank, then in the source's order of tokens.
/// Source: deep_ep/buffer.py, dispatch.
struct FlexPlan {
    Splits input_splits;   ///< (W') rows that I push to each rank
    Splits output_splits;  ///< (W') rows that each rank pushes to me
    Splits first_rows;     ///< (W') which of the rows that a rank receives is my first
    std::int64_t received_rows = 0;  ///< N', the sum of output_splits
    std::int64_t heap_rows = 0;      ///< the most that any rank receives …
    int busiest = 0;                 ///< … and who does, in tp_ep
    HeapSection hidden;      ///< (N', H) tokens, partial sums, and their gradients
    HeapSection topk_ids;    ///< (N', K') i32 local experts, -1: not here
    HeapSection topk_probs;  ///< (N', K') their probabilities, and the gradients
    HeapSection sources;     ///< (N', 2) i32 rank of tp_ep and token
    std::size_t heap_bytes = 0;
};

/// @param counts  (W' W') rows that each rank (slow) pushes to each rank
/// @param dtype   of the rows; probabilities have at least fp32
FlexPlan make_flex_plan(const Splits& counts, const MoEConfig& config, DType dtype,
                        const Communicator& tp_ep);

/// Notify: everybody's counts to everybody, and the plan they give.
/// @param input_splits  (W') rows that this rank pushes to each rank
FlexPlan notify_dispatch(const Splits& input_splits, const MoEConfig& config, DType dtype,
                         const ProcessGroups& groups);

/// The most tokens of any rank of tp_ep, of which this one has `num_tokens`:
/// moe_flex_max_tokens_per_rank, or else the ranks tell each other. InputError for more
/// than it allows. Source: token_dispatcher.py, _HybridEPManager, which takes the maximum
/// as well.
std::int64_t max_tokens_per_rank(std::int64_t num_tokens, const MoEConfig& config,
                                 Communicator& tp_ep);

/// The choices of received rows for whose row there is room: of all of them by local
/// expert, then received row, the first `capacity`; the others become -1.
/// @param topk_ids (N', K') i32 local experts or -1, in any memory
struct KeptChoices {
    Tensor topk_ids;
    std::int64_t num_dropped;
};
KeptChoices drop_over_capacity(const Tensor& topk_ids, std::int64_t capacity);

/// Most bytes that a rank's heap may have.
std::size_t heap_limit(const MoEConfig& config);

/// False where some expert would need more tokens than a rank received for its rows to
/// reach the multiple: then it pads none. So it is with a single local expert, to whom
/// all received tokens go. Source: token_dispatcher.py,
/// _DeepepManager._pad_routing_map.
/// @param tokens_per_expert  (L) of the received rows @param received_rows  N'
bool enough_tokens_to_pad(const std::vector<std::int64_t>& tokens_per_expert,
                          std::int64_t received_rows, std::int64_t pad_multiple);

/// Room for the plan in everybody's heap. InputError, the same on every rank before
/// anybody has written, when moe_flex_peer_heap_bytes is too small.
void reserve_heap(const FlexPlan& plan, const MoEConfig& config, MemorySpace space,
                  const ProcessGroups& groups);

/// A section of all heaps, as the pushing rank sees it: its row r, in the order of
/// destination and token, lies at of[d] + (shift[d] + r) * width when it goes to rank d.
/// Kernels take it by value.
template <typename T>
struct PeerRows {
    T* of[kMaxPeers] = {};
    std::int64_t shift[kMaxPeers] = {};
    std::int64_t width = 0;
};
template <typename T>
PeerRows<T> peer_rows(const FlexPlan& plan, const HeapSection& section,
                      const PeerTable& table);

/// How the experts lie over tp_ep: all ETP ranks of an ep rank hold shards of the same L.
/// Rank w = ep * ETP + etp, local expert l: expert w * L + l of the W' L that the group
/// seems to have.
struct ExpertGrid {
    std::int64_t num_ranks = 1;   ///< W' = ETP EP
    std::int64_t num_shards = 1;  ///< ETP
    std::int64_t num_local = 1;   ///< L
    /// Expert of the layer behind local expert l of rank w, for the host.
    std::int64_t expert(std::int64_t w, std::int64_t l) const {
        return w / num_shards * num_local + l;
    }
};
ExpertGrid expert_grid(const MoEConfig& config);

/// Copies what lies in a section of my own heap, (N', width), so that others may write
/// there once all have done so.
Tensor take_rows(const FlexPlan& plan, const HeapSection& section,
                 const ProcessGroups& groups, MemorySpace space);

/// Lays rows (N', width) there for others to pull.
void offer_rows(const FlexPlan& plan, const HeapSection& section, const Tensor& rows,
                const ProcessGroups& groups);

/// Books rows of `row_bytes` to the other ranks of the group that get them, pushed or
/// pulled.
/// @param rows  for each rank of the group
void count_rows(Communicator& group, const std::string& name, const Splits& rows,
                std::int64_t row_bytes);

template <typename T>
PeerRows<T> peer_rows(const FlexPlan& plan, const HeapSection& section,
                      const PeerTable& table) {
    PeerRows<T> peers;
    peers.width = section.width;
    std::int64_t pushed = 0;  // to the ranks before
    for (int d = 0; d < table.size; pushed += plan.input_splits[d++]) {
        peers.of[d] = reinterpret_cast<T*>(table.base[d] + section.offset);
        peers.shift[d] = plan.first_rows[d] - pushed;
    }
    return peers;
}

}  // namespace moe::distributed
