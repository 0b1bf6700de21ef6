/// @file
/// The all-to-all dispatcher: every row travels to its expert's rank and back.
#pragma once

#include "distributed/dispatchers/alltoall.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/row_order.h"

namespace moe::naive {

/// Permute, exchange, sort chunks; the exchange is every tier's. T is float
/// or __nv_bfloat16; probabilities are fp32.
template <typename T>
class AlltoAllDispatcher : public distributed::AlltoAllDispatcher {
  public:
    AlltoAllDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::AlltoAllDispatcher({MemorySpace::device, gpu::device_dtype<T>},
                                          config, groups) {}

  private:
    distributed::RowOrderPtr permutation(const Tensor& routing_map,
                                         const Tensor&) const override {
        return std::make_unique<Permutation<T>>(routing_map, pad_multiple());
    }
    distributed::RowOrderPtr chunk_sort(const distributed::ExchangePlan& plan,
                                        const Tensor&) const override {
        return std::make_unique<distributed::ChunkSort>(
            plan, [](const Tensor& rows, const auto& sizes, const auto& order) {
                return rows.dtype() == DType::f32
                           ? sort_chunks_by_idxs<float>(rows, sizes, order)
                           : sort_chunks_by_idxs<T>(rows, sizes, order);
            });
    }
    void end_step(const RunContext&) const override { gpu::synchronize(); }
};

}  // namespace moe::naive
