/// @file
/// The all-to-all dispatcher: every row travels to its expert's rank and back.
#pragma once

#include "distributed/dispatchers/alltoall.h"
#include "reference_cpu/row_order.h"

namespace moe::cpu {

/// Permute, exchange, sort chunks; the exchange is every tier's.
template <typename Scalar>
class AlltoAllDispatcher : public distributed::AlltoAllDispatcher {
  public:
    AlltoAllDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::AlltoAllDispatcher({MemorySpace::host, dtype_of<Scalar>}, config,
                                          groups) {}

  private:
    distributed::RowOrderPtr permutation(const Tensor& routing_map,
                                         const Tensor&) const override {
        return std::make_unique<Permutation<Scalar>>(routing_map, pad_multiple());
    }
    distributed::RowOrderPtr chunk_sort(const distributed::ExchangePlan& plan,
                                        const Tensor&) const override {
        return std::make_unique<distributed::ChunkSort>(plan,
                                                        sort_chunks_by_idxs<Scalar>);
    }
};

}  // namespace moe::cpu
