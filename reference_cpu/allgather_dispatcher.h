/// @file
/// The all-gather dispatcher: everybody gets all tokens, and adds up what its experts
/// made.
#pragma once

#include "distributed/dispatchers/allgather.h"
#include "reference_cpu/row_order.h"

namespace moe::cpu {

/// Columns [first, first + count) of a (T, E) tensor.
template <typename T>
Tensor slice_experts(const Tensor& source, std::int64_t first, std::int64_t count) {
    Tensor result = Tensor::empty({source.dim(0), count}, dtype_of<T>);
    as_matrix<T>(result) = as_matrix<T>(source).middleCols(first, count);
    return result;
}

/// The inverse for gradients: zero outside the slice. @return (T, E)
template <typename T>
Tensor slice_experts_backward(const Tensor& dslice, std::int64_t first, std::int64_t E) {
    Tensor result = Tensor::zeros({dslice.dim(0), E}, dtype_of<T>);
    as_matrix<T>(result).middleCols(first, dslice.dim(1)) = as_matrix<T>(dslice);
    return result;
}

/// All tokens' rows by local expert; the probabilities are those of all experts.
template <typename Scalar>
class LocalPermutation : public Permutation<Scalar> {
  public:
    LocalPermutation(const Tensor& routing_map, std::int64_t first, std::int64_t count)
        : Permutation<Scalar>(slice_experts<std::uint8_t>(routing_map, first, count)),
          first_(first),
          num_experts_(routing_map.dim(1)) {}

    Tensor permute_probs(const Tensor& probs) const override {
        return Permutation<Scalar>::permute_probs(
            slice_experts<Scalar>(probs, first_, this->map().num_experts));
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        return slice_experts_backward<Scalar>(
            Permutation<Scalar>::permute_probs_backward(drow_probs), first_,
            num_experts_);
    }

  private:
    std::int64_t first_, num_experts_;
};

/// Gather, select and permute; the gathering is every tier's.
template <typename Scalar>
class AllGatherDispatcher : public distributed::AllGatherDispatcher {
  public:
    AllGatherDispatcher(const MoEConfig& config, const GroupsPtr& groups)
        : distributed::AllGatherDispatcher({MemorySpace::host, dtype_of<Scalar>}, config,
                                           groups) {}

  private:
    distributed::RowOrderPtr local_permutation(const Tensor& routing_map, const Tensor&,
                                               std::int64_t first) const override {
        return std::make_unique<LocalPermutation<Scalar>>(routing_map, first,
                                                          config_.num_local_experts());
    }
    void add(Tensor& sum, const Tensor& term) const override {
        as_matrix<Scalar>(sum) += as_matrix<Scalar>(term);
    }
};

}  // namespace moe::cpu
