/// @file
/// A block's tile of the result, as its threads hold it in registers.
#pragma once

#include "optimized_gpu/grouped_gemm/tile.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

/// A thread's sums: its warp's part of the tile is 16 kRowBlocks rows by 8 kColumnBlocks
/// columns. With g = lane / 4 and t = lane mod 4, element [i][j][e] is row
/// 16 i + g + 8 (e / 2), column 8 j + 2 t + e mod 2 of the part. So mma.sync leaves them,
/// and wgmma, whose warps have 16 rows each.
template <int kRowBlocks, int kColumnBlocks>
using WarpSums = float[kRowBlocks][kColumnBlocks][4];

/// Which part is a warp's of a tile that has kLines rows.
template <int kRowBlocks, int kColumnBlocks>
struct WarpPart {
    static constexpr int kRows = 16 * kRowBlocks, kColumns = 8 * kColumnBlocks;
    static constexpr int kAcross = kWarps * kRows / kLines;  ///< warps side by side
    static_assert(kAcross > 0 && kWarps * kRows % kLines == 0);

    __device__ static int row() { return warp_index() / kAcross * kRows; }
    __device__ static int column() { return warp_index() % kAcross * kColumns; }
};

template <int kRowBlocks, int kColumnBlocks>
__device__ void set_zero(WarpSums<kRowBlocks, kColumnBlocks>& sums) {
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int j = 0; j < kColumnBlocks; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sums[i][j][e] = 0.0f;
}

}  // namespace moe::optimized
