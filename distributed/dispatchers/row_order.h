/// @file
/// What a tier can do with rows: lay them in another order, and bring them back. The
/// dispatchers of this folder say when; how is what the tiers show.
#pragma once

#include <functional>
#include <memory>

#include "core/components.h"
#include "distributed/exchange_plan.h"

namespace moe::distributed {

/// An order of rows, made in dispatch and kept until dispatch_backward. All tensors lie
/// where the tier works.
class RowOrder {
  public:
    virtual ~RowOrder() = default;

    /// (N) the source row of each row; only for who looks, and only of tokens.
    virtual Tensor row_token() const { return {}; }
    /// Rows of each expert: (E) i32, of the router's experts or of the local ones.
    virtual Tensor tokens_per_expert() const = 0;

    /// ⑥ A copy of each source row wherever the order wants it, or where to find it.
    /// @param source (T, H) @return (N, H)
    virtual Rows permute(const Tensor& source) const = 0;
    /// ⑥ Their probabilities. @param probs as the source of the order came @return (N)
    virtual Tensor permute_probs(const Tensor& probs) const = 0;
    /// ⑩ For each source row the sum of its rows in ascending order, 0 where there are
    /// none, plus the addend. @param rows (N, H) @param addend (T, H) or undefined
    virtual Tensor unpermute(const Tensor& rows, const Tensor& addend = {}) const = 0;

    /// ⑪ A sum hands its gradient to every term …
    virtual Rows unpermute_backward(const Tensor& doutput) const {
        return permute(doutput);
    }
    /// ⑮ … and what was copied sums up the gradients of its copies.
    virtual Tensor permute_backward(const Tensor& drows) const {
        return unpermute(drows);
    }
    /// ⑮ @param drow_probs (N) @return as `probs` came, 0 where not routed
    virtual Tensor permute_probs_backward(const Tensor& drow_probs) const = 0;
};
using RowOrderPtr = std::unique_ptr<const RowOrder>;

/// Chunks of rows as they arrive, by source, in the order of the local experts.
class ChunkSort : public RowOrder {
  public:
    /// Megatron's sort_chunks_by_idxs, for rows and for probabilities.
    using Sort =
        std::function<Tensor(const Tensor& rows, const std::vector<std::int64_t>& sizes,
                             const std::vector<std::int64_t>& order)>;
    ChunkSort(const ExchangePlan& plan, Sort sort)
        : plan_(plan), sort_(std::move(sort)) {}

    Tensor tokens_per_expert() const override {
        return counts_tensor(plan_.tokens_per_expert);
    }
    Rows permute(const Tensor& arrived) const override { return sort(arrived); }
    Tensor permute_probs(const Tensor& arrived) const override { return sort(arrived); }
    Tensor unpermute(const Tensor& rows, const Tensor&) const override {
        return restore(rows);
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        return restore(drow_probs);
    }

  private:
    Tensor sort(const Tensor& rows) const {
        if (plan_.arrives_sorted()) return rows;
        return sort_(rows, plan_.chunk_sizes, plan_.chunk_order);
    }
    Tensor restore(const Tensor& rows) const {
        if (plan_.arrives_sorted()) return rows;
        return sort_(rows, plan_.sorted_sizes, plan_.restored_order);
    }
    ExchangePlan plan_;
    Sort sort_;
};

}  // namespace moe::distributed
