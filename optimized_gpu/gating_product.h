/// @file
/// A matrix product on CUDA cores, of which the gate has three: tiles in shared memory,
/// sums in registers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "gpu/convert.h"
#include "gpu/launch.h"
#include "optimized_gpu/chunks.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized::gating {

//! [product]
inline constexpr int kTile = 64;   // rows, and columns, of the result that a block makes
inline constexpr int kDepth = 16;  // of the sums, in one step
inline constexpr int kSide = 16;   // of the square of threads
inline constexpr int kOwn = kTile / kSide;  // rows, and columns, of a thread: every 16th
static_assert(kSide * kSide == kThreads && kTile * kDepth == kOwn * kThreads);

/// A factor of the product: its line l, a row or a column of the result, at depth d is
/// data[l line_stride + d depth_stride]. One of the strides is 1.
template <typename T>
struct Factor {
    const T* data;
    std::int64_t lines, line_stride, depth_stride;
};

/// Tiles of both factors, depth by depth; one pair is filled while the other is used.
template <typename Sum>
struct ProductSmem {
    // TUTORIAL: a warp fills two lines by sixteen depths at once. With rows of 64 their
    // 32 words would lie in two banks; two words more, and each has a bank of its own.
    static constexpr int kWidth = kTile + int(2 * sizeof(float) / sizeof(Sum));
    Sum a[2][kDepth][kWidth], b[2][kDepth][kWidth];
};

/// Which of a tile's elements a thread brings: kOwn of them, `line_step` and `depth_step`
/// apart.
struct Share {
    int line, depth, line_step, depth_step;
};

/// Neighbours in memory go to neighbouring threads. TUTORIAL: memory comes in sectors of
/// 32 bytes, and a warp that reads every 64th element pays for 32 of them.
template <typename T>
__device__ Share share_of(const Factor<T>& factor) {
    const int thread = int(threadIdx.x);
    if (factor.depth_stride == 1)
        return {thread / kDepth, thread % kDepth, kThreads / kDepth, 0};
    return {thread % kTile, thread / kTile, 0, kThreads / kTile};
}

/// The thread's share of a tile, in registers; 0 past the last line or depth.
template <typename Sum, typename T>
__device__ void fetch(Sum (&values)[kOwn], const Factor<T>& from, const Share& share,
                      std::int64_t first_line, std::int64_t first_depth,
                      std::int64_t depth_end) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
        const std::int64_t line = first_line + share.line + i * share.line_step;
        const std::int64_t depth = first_depth + share.depth + i * share.depth_step;
        const bool there = line < from.lines && depth < depth_end;
        const std::int64_t at = line * from.line_stride + depth * from.depth_stride;
        values[i] = there ? static_cast<Sum>(gpu::widen(from.data[at])) : Sum(0);
    }
}

template <typename Sum, int Width>
__device__ void keep(Sum (&tile)[kDepth][Width], const Sum (&values)[kOwn],
                     const Share& share) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
        tile[share.depth + i * share.depth_step][share.line + i * share.line_step] =
            values[i];
}

/// sums += one tile of A times one of B. Each value read from shared memory is used four
/// times.
template <typename Sum, int Width>
__device__ void multiply(Sum (&sums)[kOwn][kOwn], const Sum (&a)[kDepth][Width],
                         const Sum (&b)[kDepth][Width]) {
    const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
#pragma unroll
    for (int depth = 0; depth < kDepth; ++depth) {
        Sum x[kOwn], y[kOwn];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) x[i] = a[depth][row + i * kSide];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) y[j] = b[depth][column + j * kSide];
#pragma unroll
        for (int i = 0; i < kOwn; ++i)
#pragma unroll
            for (int j = 0; j < kOwn; ++j) sums[i][j] += x[i] * y[j];
    }
}

/// finish(row, column, Σ_d A[row, d] B[column, d]) for every element of the result, d in
/// the block's chunk. A block makes one tile: columns first, so that blocks that read the
/// same rows of A, the long factor, run at the same time.
template <typename Sum, typename A, typename B, typename Finish>
__global__ void __launch_bounds__(kThreads)
    product_kernel(Factor<A> a, Factor<B> b, Chunks chunks, Finish finish) {
    auto& smem = gpu::shared_memory<ProductSmem<Sum>>();
    const std::int64_t tiles_across = (b.lines + kTile - 1) / kTile;
    const std::int64_t first_row = blockIdx.x / tiles_across * kTile;
    const std::int64_t first_column = blockIdx.x % tiles_across * kTile;
    const std::int64_t end = chunks.end();
    const Share share_a = share_of(a), share_b = share_of(b);
    Sum sums[kOwn][kOwn] = {}, next_a[kOwn], next_b[kOwn];

    // TUTORIAL: the next tiles are asked for before those that are there are multiplied,
    // and wait in registers. By the time they are needed they have arrived.
    for (std::int64_t depth = chunks.begin() - kDepth; depth < end; depth += kDepth) {
        const int used = int((depth - chunks.begin()) / kDepth) & 1, filled = used ^ 1;
        const bool first = depth < chunks.begin(), more = depth + kDepth < end;
        if (more) {
            fetch(next_a, a, share_a, first_row, depth + kDepth, end);
            fetch(next_b, b, share_b, first_column, depth + kDepth, end);
        }
        if (!first) multiply(sums, smem.a[used], smem.b[used]);
        if (more) {
            keep(smem.a[filled], next_a, share_a);
            keep(smem.b[filled], next_b, share_b);
        }
        __syncthreads();
    }

    const int row = int(threadIdx.x) / kSide, column = int(threadIdx.x) % kSide;
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
            const std::int64_t r = first_row + row + i * kSide;
            const std::int64_t c = first_column + column + j * kSide;
            if (r < a.lines && c < b.lines) finish(r, c, sums[i][j]);
        }
}

inline std::int64_t count_tiles(std::int64_t rows, std::int64_t columns) {
    return (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
}

template <typename Sum, typename A, typename B, typename Finish>
void launch_product(const Factor<A>& a, const Factor<B>& b, const Chunks& chunks,
                    const Finish& finish, cudaStream_t stream) {
    gpu::launch("product_kernel", product_kernel<Sum, A, B, Finish>,
                {dim3(unsigned(count_tiles(a.lines, b.lines)), unsigned(chunks.count)),
                 dim3(kThreads), sizeof(ProductSmem<Sum>), stream},
                a, b, chunks, finish);
}
//! [product]

}  // namespace moe::optimized::gating
