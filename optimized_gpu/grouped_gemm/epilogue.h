/// @file
/// From sums in registers to results in global memory.
#pragma once

#include "optimized_gpu/grouped_gemm/mma_sync.h"

namespace moe::optimized {

/// Where a block's tile goes: rows and columns that remain from its first element on.
template <typename Y>
struct Target {
    Y* data;             ///< the tile's first element
    std::int64_t width;  ///< from one row to the next
    int rows, columns;
};

/// Calls visit(i, j, half, row, column) for each two neighbours among the thread's sums,
/// [i][j][2 half] in this column and the next one in the next.
template <typename Visit>
__device__ void for_each_pair(Visit visit) {
    const int lane = int(threadIdx.x) % kLanes;
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                visit(i, j, half, warp_row() + 16 * i + lane / 4 + half * 8,
                      warp_column() + 8 * j + lane % 4 * 2);
}

/// Calls visit(i, j, e, row, column) for each of the thread's sums.
template <typename Visit>
__device__ void for_each_sum(Visit visit) {
    for_each_pair([&](int i, int j, int half, int row, int column) {
        visit(i, j, 2 * half, row, column);
        visit(i, j, 2 * half + 1, row, column + 1);
    });
}

/// sums += row_scale_r bias_c, of rows and columns that are there.
/// @param bias  of the tile's first column, or null
/// @param row_scale  of the tile's first row, or null: 1
__device__ inline void add_bias(Sums& sums, const __nv_bfloat16* bias,
                                const float* row_scale, int rows, int columns) {
    if (bias == nullptr) return;
    for_each_sum([&](int i, int j, int e, int row, int column) {
        if (row >= rows || column >= columns) return;
        const float scale = row_scale == nullptr ? 1.0f : row_scale[row];
        sums[i][j][e] += scale * __bfloat162float(bias[column]);
    });
}

// Four lanes hold eight columns of a row, 32 bytes in fp32: a whole sector.
__device__ inline void store_tile(MmaSyncSmem&, const Sums& sums,
                                  const Target<float>& to) {
    const bool pairs = to.width % 2 == 0;
    for_each_pair([&](int i, int j, int half, int row, int column) {
        if (row >= to.rows || column >= to.columns) return;
        float* const target = to.data + row * to.width + column;
        const float2 two = {sums[i][j][2 * half], sums[i][j][2 * half + 1]};
        if (pairs) {
            *reinterpret_cast<float2*>(target) = two;
        } else {
            target[0] = two.x;
            if (column + 1 < to.columns) target[1] = two.y;
        }
    });
}

// TUTORIAL: in bf16 those eight columns are half a sector. So the tile is put together in
// shared memory, swizzled as operands are, and leaves it 16 bytes at a time.
/// The block's tile in shared memory, see chunk_at(). All threads; ends with a barrier.
/// @tparam kBlocks  of 8 columns, each warp's first: 4 is all, and the tile kLines wide;
/// 2
///                  is half of it
template <int kBlocks = kColumnBlocks>
__device__ __nv_bfloat16* stage_tile(MmaSyncSmem& s, const Sums& sums) {
    static_assert(kBlocks == 4 || kBlocks == 2);
    constexpr Along kWide = kBlocks == 4 ? Along::lines : Along::depth;
    __nv_bfloat16* const staged = s.a[0];  // and s.a[1]
    static_assert(kStages * kDepth >= kLines, "the tile fits over A's stages");
    for_each_pair([&](int i, int j, int half, int row, int column) {
        if (j >= kBlocks) return;
        const int chunk = warp_column() / kWarpColumns * kBlocks + j;
        *reinterpret_cast<__nv_bfloat162*>(staged + chunk_at<kWide>(row, chunk) +
                                           column % kChunk) =
            __floats2bfloat162_rn(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
    });
    __syncthreads();
    return staged;
}

/// Writes a tile of kLines columns that lies in shared memory, eight columns at a time
/// where rows allow it. All threads.
__device__ inline void store_staged(const __nv_bfloat16* staged,
                                    const Target<__nv_bfloat16>& to) {
    constexpr int kChunks = kLines / kChunk;  // of a row
    const bool whole = to.width % kChunk == 0 && to.columns % kChunk == 0;
    for (int i = int(threadIdx.x); i < kLines * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks, column = chunk * kChunk;
        if (row >= to.rows || column >= to.columns) continue;
        const __nv_bfloat16* const source = staged + chunk_at<Along::lines>(row, chunk);
        __nv_bfloat16* const target = to.data + row * to.width + column;
        if (whole) {
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
        } else {
            for (int k = 0; k < kChunk && column + k < to.columns; ++k)
                target[k] = source[k];
        }
    }
}

__device__ inline void store_tile(MmaSyncSmem& s, const Sums& sums,
                                  const Target<__nv_bfloat16>& to) {
    store_staged(stage_tile(s, sums), to);
}

}  // namespace moe::optimized
