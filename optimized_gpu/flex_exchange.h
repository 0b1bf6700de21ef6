/// @file
/// One dispatch through the peers' heaps, without a host that waits.
#pragma once

#include "distributed/dispatchers/flex.h"
#include "distributed/peer_memory/flagged_heap.h"
#include "optimized_gpu/flex_slots.h"
#include "optimized_gpu/row_map.h"

namespace moe::optimized {

/// | phase | kernels |
/// |---|---|
/// | push | who gets a row (3), then rows, choices and counts at once |
/// | all have pushed | 1, see PeerBarrier |
/// | receive | rows and choices out of the heap, then the row map (2) |
/// | offer | sums of each row's experts, straight into the heap |
/// | all have offered | 1 |
/// | pull | sums over the ranks, and the addend |
///
/// Rows received are slots of FlexSlots, and not all are filled. With moe_permute_fusion
/// the experts find theirs by number; without it, or with
/// moe_expert_rank_capacity_factor, where rows are fewer than slots, each gets its copy
/// straight out of the heap.
class FlexExchange : public distributed::FlexExchange {
  public:
    /// @param probs, routing  (T, K) f32 and i32, or (T, E) f32 and u8
    /// @param dtype  of tokens
    FlexExchange(const Tensor& probs, const Tensor& routing, const MoEConfig& config,
                 DType dtype, const GroupsPtr& groups);

    void push(const Tensor& hidden) override;
    Received receive() override;
    void offer(const Tensor& rows, const distributed::RowOrder& local) override;
    Tensor pull(const Tensor& addend) override;
    void push_gradients(const Tensor& doutput) override;
    Tensor receive_gradients() override;
    void offer_gradients(const Tensor& drows, const Tensor& drow_probs,
                         const distributed::RowOrder& local) override;
    TokenDispatcher::Gradients pull_gradients() override;

    distributed::Splits input_splits() const override;
    distributed::Splits output_splits() const override;
    Tensor sent_rows(const Tensor& hidden) const override;
    Tensor received_rows(const Tensor& rows) const override;
    Tensor sources() const override;
    Tensor row_token(const distributed::RowOrder& local) const override;

  private:
    using Turn = distributed::FlaggedHeap::Turn;

    template <typename E>
    PeerSlots<E> peers(const HeapSection& section) const {
        return peer_slots<E>(slots_, section, heap_->table());
    }
    TensorView own(const HeapSection& section) const {
        return own_slots(section, slots_.num_slots(), heap_->table());
    }
    distributed::RowsMoved moved(const Tensor& rows, std::int64_t row_bytes) const;
    RowMap local_map(const Tensor& topk_ids, const Tensor& topk_probs) const;

    MoEConfig config_;
    DType dtype_;
    std::shared_ptr<distributed::FlaggedHeap> heap_;
    int rank_;                      // in tp_ep
    bool is_dense_ = false;         // the choices came as a map of another tier's router
    Tensor topk_ids_, topk_probs_;  // (T, K)
    FlexSlots slots_;
    RowMap sent_;                 // rows of mine, ranks as experts
    Tensor counts_;               // (W') i32 rows that each rank pushed to me
    RowMap local_;                // slots, by local expert
    std::int64_t max_rows_ = -1;  // of the local experts; -1: any number
};

}  // namespace moe::optimized
