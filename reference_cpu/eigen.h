/// @file
/// Eigen as this tier uses it: row-major maps over tensors, and one thread. Matrix
/// products are in product.h.
#pragma once

// TUTORIAL: Eigen can thread its own matrix products, but how it cuts them, and so how
// the sums round, depends on the number of threads.
#ifndef EIGEN_DONT_PARALLELIZE
#define EIGEN_DONT_PARALLELIZE
#endif
#include <Eigen/Core>

#include "core/tensor.h"

namespace moe::cpu {

template <typename Scalar>
using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
template <typename Scalar>
using MatrixMap = Eigen::Map<Matrix<Scalar>>;
template <typename Scalar>
using ConstMatrixMap = Eigen::Map<const Matrix<Scalar>>;
template <typename Scalar>
using RowVectorMap = Eigen::Map<Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>;
template <typename Scalar>
using ConstRowVectorMap = Eigen::Map<const Eigen::Matrix<Scalar, 1, Eigen::Dynamic>>;

/// A (R, C) tensor as a matrix.
template <typename Scalar>
MatrixMap<Scalar> as_matrix(Tensor& tensor) {
    return {tensor.data<Scalar>(), tensor.dim(0), tensor.dim(1)};
}
template <typename Scalar>
ConstMatrixMap<Scalar> as_matrix(const Tensor& tensor) {
    return {tensor.data<Scalar>(), tensor.dim(0), tensor.dim(1)};
}

/// Matrix `index` of a (G, R, C) tensor, e.g. one expert's weight.
template <typename Scalar>
MatrixMap<Scalar> matrix_at(Tensor& tensor, std::int64_t index) {
    const std::int64_t rows = tensor.dim(1), cols = tensor.dim(2);
    return {tensor.data<Scalar>() + index * rows * cols, rows, cols};
}
template <typename Scalar>
ConstMatrixMap<Scalar> matrix_at(const Tensor& tensor, std::int64_t index) {
    const std::int64_t rows = tensor.dim(1), cols = tensor.dim(2);
    return {tensor.data<Scalar>() + index * rows * cols, rows, cols};
}

/// Row `index` of a (R, C) tensor, e.g. one expert's bias.
template <typename Scalar>
RowVectorMap<Scalar> row_at(Tensor& tensor, std::int64_t index) {
    return {tensor.data<Scalar>() + index * tensor.dim(1), tensor.dim(1)};
}
template <typename Scalar>
ConstRowVectorMap<Scalar> row_at(const Tensor& tensor, std::int64_t index) {
    return {tensor.data<Scalar>() + index * tensor.dim(1), tensor.dim(1)};
}

}  // namespace moe::cpu
