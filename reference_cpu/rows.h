/// @file
/// Rows of a (R, C) tensor as spans, for loops over single elements.
#pragma once

#include <cstddef>
#include <span>

#include "core/tensor.h"

namespace moe::cpu {

template <typename T>
std::span<T> row_of(Tensor& tensor, std::int64_t row) {
    return {tensor.data<T>() + row * tensor.dim(1), std::size_t(tensor.dim(1))};
}
template <typename T>
std::span<const T> row_of(const Tensor& tensor, std::int64_t row) {
    return {tensor.data<T>() + row * tensor.dim(1), std::size_t(tensor.dim(1))};
}

}  // namespace moe::cpu
