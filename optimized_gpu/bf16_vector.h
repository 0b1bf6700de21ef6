/// @file
/// Neighbours in a row that one instruction moves.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

/// N of a row's elements; N = 8, 2 or 1 divides the row's width.
template <int N>
struct alignas(2 * N) Bf16Vector {
    __nv_bfloat16 values[N];

    __device__ float operator[](int i) const { return __bfloat162float(values[i]); }
};

/// The vectors of a row (width).
template <int N>
__device__ const Bf16Vector<N>* vectors_of(const __nv_bfloat16* rows, std::int64_t row,
                                           int width) {
    return reinterpret_cast<const Bf16Vector<N>*>(rows + row * width);
}
template <int N>
__device__ Bf16Vector<N>* vectors_of(__nv_bfloat16* rows, std::int64_t row, int width) {
    return reinterpret_cast<Bf16Vector<N>*>(rows + row * width);
}

/// <x, y> of two rows, in every lane of a warp.
template <int N>
__device__ float dot(const Bf16Vector<N>* x, const Bf16Vector<N>* y, int width) {
    float sum = 0.0f;
    for (int i = lane_index(); i < width / N; i += kLanes) {
        const Bf16Vector<N> a = x[i], b = y[i];
        for (int k = 0; k < N; ++k) sum += a[k] * b[k];
    }
    return warp_sum(sum);
}

}  // namespace moe::optimized
