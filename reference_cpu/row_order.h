/// @file
/// The orders of rows that the dispatchers ask for, by the functions of permutation.h.
#pragma once

#include "distributed/dispatchers/row_order.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/permutation.h"

namespace moe::cpu {

/// Tokens' rows by expert, as a routing map wants them.
template <typename Scalar>
class Permutation : public distributed::RowOrder {
  public:
    /// @param routing_map   (T, E) u8
    /// @param pad_multiple  rows of each expert are filled up to it
    explicit Permutation(const Tensor& routing_map, std::int64_t pad_multiple = 1) {
        if (pad_multiple > 1) unpadded_map_ = routing_map;
        map_ = make_row_map(pad_multiple > 1 ? pad_routing_map(routing_map, pad_multiple)
                                             : routing_map);
    }
    const RowMap& map() const { return map_; }

    Tensor row_token() const override {
        return Tensor::from({map_.num_rows()}, map_.row_token);
    }
    Tensor tokens_per_expert() const override {
        return counts_tensor(map_.tokens_per_expert);
    }
    Rows permute(const Tensor& tokens) const override {
        return cpu::permute<Scalar>(tokens, map_);
    }
    Tensor permute_probs(const Tensor& probs) const override {
        return cpu::permute_probs<Scalar>(probs, map_);
    }
    Tensor unpermute(const Tensor& rows, const Tensor& addend) const override {
        Tensor sums = cpu::unpermute<Scalar>(rows, map_);
        if (addend.defined()) as_matrix<Scalar>(sums) += as_matrix<Scalar>(addend);
        return sums;
    }
    Rows unpermute_backward(const Tensor& doutput) const override {
        return cpu::unpermute_backward<Scalar>(doutput, map_);
    }
    Tensor permute_backward(const Tensor& drows) const override {
        return cpu::permute_backward<Scalar>(drows, map_);
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        Tensor dprobs = cpu::permute_probs_backward<Scalar>(drow_probs, map_);
        if (unpadded_map_.defined())
            pad_routing_map_backward<Scalar>(dprobs, unpadded_map_);
        return dprobs;
    }

  private:
    RowMap map_;
    Tensor unpadded_map_;  // (T, E) u8, where rows are padded
};

}  // namespace moe::cpu
