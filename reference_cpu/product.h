/// @file
/// Matrix products of one thread, for linear.cpp.
#pragma once

#include <cstdint>

#include "reference_cpu/eigen.h"

namespace moe::cpu {

/// A matrix where it lies: element (i, j) is data[i * row_stride + j * column_stride].
template <typename Scalar>
struct Strided {
    Scalar* data;
    std::int64_t rows, columns, row_stride, column_stride;
};

/// out = left right, for an `out` whose rows are contiguous and overlap neither factor.
///
/// Every element is Σ_k left_ik right_kj with k ascending, summed in parts of 256 terms.
/// So it has the same bits whatever lies beside it: a block of rows can be cut anywhere.
/// With MOE_BLAS the sums are that library's.
template <typename Scalar>
void multiply(const Strided<const Scalar>& left, const Strided<const Scalar>& right,
              const Strided<Scalar>& out);

/// The same for Eigen's maps, their blocks and their transposes.
template <typename Out, typename Left, typename Right>
void set_product(Out&& out, const Left& left, const Right& right) {
    using Scalar = typename Left::Scalar;
    multiply<Scalar>(
        {left.data(), left.rows(), left.cols(), left.rowStride(), left.colStride()},
        {right.data(), right.rows(), right.cols(), right.rowStride(), right.colStride()},
        {out.data(), out.rows(), out.cols(), out.rowStride(), out.colStride()});
}

}  // namespace moe::cpu
