/// @file
/// The all-gather dispatcher: everybody gets all tokens, and adds up what its experts
/// made.
#pragma once

#include "distributed/dispatchers/allgather.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/row_order.h"

namespace moe::naive {

/// Columns [first, first + num_local) of a (T, E) tensor.
template <typename E>
Tensor slice_experts(const Tensor& source, std::int64_t first, std::int64_t num_local);

/// The inverse for gradients, fp32: zero outside the slice. @return (T, num_experts)
Tensor slice_experts_backward(const Tensor& dslice, std::int64_t first,
                              std::int64_t num_experts);

/// All tokens' rows by local expert; the probabilities are those of all experts.
template <typename T>
class LocalPermutation : public Permutation<T> {
  public:
    LocalPermutation(const Tensor& routing_map, std::int64_t first, std::int64_t count)
        : Permutation<T>(slice_experts<std::uint8_t>(routing_map, first, count)),
          first_(first),
          num_experts_(routing_map.dim(1)) {}

    Tensor permute_probs(const Tensor& probs) const override {
        return Permutation<T>::permute_probs(
            slice_experts<float>(probs, first_, this->map().num_experts));
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        return slice_experts_backward(Permutation<T>::permute_probs_backward(drow_probs),
                                      first_, num_experts_);
    }

  private:
    std::int64_t first_, num_experts_;
};

/// Gather, select and permute; the gathering is every tier's. T is float
/// or __nv_bfloat16; probabilities are fp32.
template <typename T>
class AllGatherDispatcher : public distributed::AllGatherDispatcher {
  public:
    AllGatherDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::AllGatherDispatcher({MemorySpace::device, gpu::device_dtype<T>},
                                           config, groups) {}

  private:
    distributed::RowOrderPtr local_permutation(const Tensor& routing_map, const Tensor&,
                                               std::int64_t first) const override {
        return std::make_unique<LocalPermutation<T>>(routing_map, first,
                                                     config_.num_local_experts());
    }
    void add(Tensor& sum, const Tensor& term) const override { add_to<T>(sum, term); }
    void end_step(const RunContext&) const override { gpu::synchronize(); }
};

}  // namespace moe::naive
