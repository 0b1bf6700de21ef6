/// @file
/// From sums in registers to results in global memory.
#pragma once

#include "optimized_gpu/grouped_gemm/sums.h"

namespace moe::optimized {

/// Where a block's tile goes: rows and columns that remain from its first element on.
template <typename Y>
struct Target {
    Y* data;             ///< the tile's first element
    std::int64_t width;  ///< from one row to the next
    int rows, columns;
};

/// Several elements may be moved at once from there on, or to there.
__device__ inline bool begins_at(const void* data, unsigned bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
}

/// Calls visit(i, j, half, row, column) for each two neighbours among the thread's sums,
/// [i][j][2 half] in this column and the next one in the next.
template <int kRowBlocks, int kColumnBlocks, typename Visit>
__device__ void for_each_pair(const WarpSums<kRowBlocks, kColumnBlocks>&, Visit visit) {
    using Part = WarpPart<kRowBlocks, kColumnBlocks>;
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
            for (int half = 0; half < 2; ++half)
                visit(i, j, half, Part::row() + 16 * i + lane / 4 + half * 8,
                      Part::column() + 8 * j + lane % 4 * 2);
}

/// Calls visit(i, j, e, row, column) for each of the thread's sums.
template <int kRowBlocks, int kColumnBlocks, typename Visit>
__device__ void for_each_sum(const WarpSums<kRowBlocks, kColumnBlocks>& sums,
                             Visit visit) {
    for_each_pair(sums, [&](int i, int j, int half, int row, int column) {
        visit(i, j, 2 * half, row, column);
        visit(i, j, 2 * half + 1, row, column + 1);
    });
}

/// sums += row_scale_r bias_c, of rows and columns that are there.
/// @param bias  of the tile's first column, or null
/// @param row_scale  of the tile's first row, or null: 1
template <int kRowBlocks, int kColumnBlocks>
__device__ void add_bias(WarpSums<kRowBlocks, kColumnBlocks>& sums,
                         const __nv_bfloat16* bias, const float* row_scale, int rows,
                         int columns) {
    if (bias == nullptr) return;
    for_each_sum(sums, [&](int i, int j, int e, int row, int column) {
        if (row >= rows || column >= columns) return;
        const float scale = row_scale == nullptr ? 1.0f : row_scale[row];
        sums[i][j][e] += scale * __bfloat162float(bias[column]);
    });
}

// Four lanes hold eight columns of a row, 32 bytes in fp32: a whole sector.
template <int kRowBlocks, int kColumnBlocks>
__device__ void store_tile(__nv_bfloat16*,
                           const WarpSums<kRowBlocks, kColumnBlocks>& sums,
                           const Target<float>& to) {
    const bool pairs = to.width % 2 == 0 && begins_at(to.data, sizeof(float2));
    for_each_pair(sums, [&](int i, int j, int half, int row, int column) {
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
/// @param staged  room for kLines x kLines, which nobody reads any longer
/// @tparam kHalf  of each warp's columns the first half alone: the tile is half as wide
template <bool kHalf = false, int kRowBlocks, int kColumnBlocks>
__device__ void stage_tile(__nv_bfloat16* staged,
                           const WarpSums<kRowBlocks, kColumnBlocks>& sums) {
    using Part = WarpPart<kRowBlocks, kColumnBlocks>;
    constexpr int kBlocks = kHalf ? kColumnBlocks / 2 : kColumnBlocks;
    constexpr Along kWide = kHalf ? Along::depth : Along::lines;
    for_each_pair(sums, [&](int i, int j, int half, int row, int column) {
        if (j >= kBlocks) return;
        const int chunk = Part::column() / Part::kColumns * kBlocks + j;
        *reinterpret_cast<__nv_bfloat162*>(staged + chunk_at<kWide>(row, chunk) +
                                           column % kChunk) =
            __floats2bfloat162_rn(sums[i][j][2 * half], sums[i][j][2 * half + 1]);
    });
    __syncthreads();
}

/// Writes a tile of kLines columns that lies in shared memory, eight columns at a time
/// where rows allow it. All threads.
__device__ inline void store_staged(const __nv_bfloat16* staged,
                                    const Target<__nv_bfloat16>& to) {
    constexpr int kChunks = kLines / kChunk;  // of a row
    const bool whole = to.width % kChunk == 0 && to.columns % kChunk == 0 &&
                       begins_at(to.data, sizeof(uint4));
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

template <int kRowBlocks, int kColumnBlocks>
__device__ void store_tile(__nv_bfloat16* staged,
                           const WarpSums<kRowBlocks, kColumnBlocks>& sums,
                           const Target<__nv_bfloat16>& to) {
    stage_tile(staged, sums);
    store_staged(staged, to);
}

/// How the first two rungs store the block's tile.
struct BlockStore {
    __nv_bfloat16* staged;  ///< room for kLines x kLines, which nobody reads any longer

    template <typename Sums, typename Y>
    __device__ void operator()(const Sums& sums, const Target<Y>& to) const {
        store_tile(staged, sums, to);
    }
};

}  // namespace moe::optimized
