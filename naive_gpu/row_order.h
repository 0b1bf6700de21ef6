/// @file
/// The orders of rows that the dispatchers ask for, by the functions of permutation.h.
#pragma once

#include "distributed/dispatchers/row_order.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/permutation.h"

namespace moe::naive {

/// Tokens' rows by expert, as a routing map wants them.
template <typename T>
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

    Tensor row_token() const override { return map_.row_token; }
    Tensor tokens_per_expert() const override {
        return counts_tensor(map_.tokens_per_expert);
    }
    Rows permute(const Tensor& tokens) const override {
        return naive::permute<T>(tokens, map_);
    }
    Tensor permute_probs(const Tensor& probs) const override {
        return naive::permute_probs<float>(probs, map_);
    }
    Tensor unpermute(const Tensor& rows, const Tensor& addend) const override {
        Tensor sums = naive::unpermute<T>(rows, map_);
        if (addend.defined()) add_to<T>(sums, addend);
        return sums;
    }
    Rows unpermute_backward(const Tensor& doutput) const override {
        return naive::unpermute_backward<T>(doutput, map_);
    }
    Tensor permute_backward(const Tensor& drows) const override {
        return naive::permute_backward<T>(drows, map_);
    }
    Tensor permute_probs_backward(const Tensor& drow_probs) const override {
        Tensor dprobs = naive::permute_probs_backward<float>(drow_probs, map_);
        if (unpadded_map_.defined()) pad_routing_map_backward(dprobs, unpadded_map_);
        return dprobs;
    }

  private:
    RowMap map_;
    Tensor unpadded_map_;  // (T, E) u8, where rows are padded
};

}  // namespace moe::naive
