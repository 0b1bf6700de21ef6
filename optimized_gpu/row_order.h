/// @file
/// The orders of rows that the dispatchers ask for, by row maps on the device.
#pragma once

#include <utility>

#include "core/config.h"
#include "distributed/dispatchers/row_order.h"
#include "optimized_gpu/permutation.h"

namespace moe::optimized {

/// Rows by a map. With moe_permute_fusion none is copied for the experts: they get the
/// source and the row ids, and gather as they load; so they do in the backward.
class MappedRows : public distributed::RowOrder {
  public:
    enum class Of { tokens, arrivals };  ///< probabilities come (T, K), or (N)

    /// @param map  with row_probs; without row_token, rows lie in its order already
    MappedRows(RowMap map, bool fused, Of of = Of::tokens)
        : map_(std::move(map)), fused_(fused), arrived_(of == Of::arrivals) {}

    Tensor row_token() const override;
    Tensor tokens_per_expert() const override { return map_.rows_per_expert; }
    Rows permute(const Tensor& source) const override;
    Tensor permute_probs(const Tensor&) const override { return map_.row_probs; }
    Tensor unpermute(const Tensor& rows, const Tensor& addend) const override;
    Tensor permute_probs_backward(const Tensor& drow_probs) const override;

  private:
    bool is_sorted() const { return !map_.row_token.defined(); }
    RowMap map_;
    bool fused_, arrived_;
};

/// The map of a router's choices. Where another tier supplies them as a dense map and no
/// capacity bounds their number, the host waits for it.
/// @param routing (T, K) i32 ids or (T, E) u8, @param probs of the same shape
RowMap map_of_choices(const Tensor& routing, const Tensor& probs,
                      const MoEConfig& config);

}  // namespace moe::optimized
