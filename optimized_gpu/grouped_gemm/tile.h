/// @file
/// Tiles of operands in shared memory: how they come there by cp.async, and how ldmatrix
/// finds its rows.
#pragma once

#include <cuda_bf16.h>

#include <cstdint>

#include "gpu/ptx.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

namespace ptx = gpu::ptx;

inline constexpr int kLines = 128;  ///< of a tile: rows, or columns, of the result
inline constexpr int kDepth = 64;   ///< of a tile: what is summed over
inline constexpr int kChunk = 8;    ///< elements in 16 bytes, what one copy moves

/// A matrix in global memory, of which blocks take tiles. The result's rows (or columns)
/// are its lines; they are its rows in memory, or its columns.
struct Operand {
    const __nv_bfloat16* data;
    const int* row_ids;  ///< row r lies at row_ids[r], or null: at r; negative: zeros
    int rows, width;     ///< what lies beyond counts as zero
    /// F, for the weights of a gated unit (2F, width): lines are then 16 of the gate, 16
    /// of what it gates, and so on, see gated_row(). 0: lines are rows.
    int half = 0;
};

/// The rows of a group whose first of all rows is `first`.
/// @param row_ids  of all rows, or null
__device__ inline Operand rows_of_group(const __nv_bfloat16* data, const int* row_ids,
                                        std::int64_t first, int rows, int width) {
    if (row_ids == nullptr) return {data + first * width, nullptr, rows, width};
    return {data, row_ids + first, rows, width};
}

// TUTORIAL: act(gate) * up wants both factors in one thread, but checkpoints hold all
// gates first. A warp's columns of the result are some gates and as many that they gate,
// because the tile is filled in that order: no weight is moved in memory, and no lane
// asks another.
/// The row of the weights (2 half, width) of a gated unit that is line `line` of the
/// result, which has kUnit gates, what they gate, and so on; -1: there is none.
template <int kUnit>
__device__ int gated_row(int line, int half) {
    const int f = line / (2 * kUnit) * kUnit + line % kUnit;
    return f >= half ? -1 : line / kUnit % 2 == 0 ? f : half + f;
}

/// The row in memory of line `line`, or -1: there is none.
__device__ inline int row_of(const Operand& from, int line) {
    if (from.half == 0) return line < from.rows ? line : -1;
    return gated_row<16>(line, from.half);
}

/// Which way an operand lies in memory.
enum class Along {
    depth,  ///< what is summed over is contiguous: (lines, depth)
    lines   ///< the other way: (depth, lines)
};

/// How many lines an operand has.
template <Along kAlong>
__device__ int lines_of(const Operand& from) {
    if (kAlong == Along::lines) return from.width;
    return from.half == 0 ? from.rows : (from.half + 15) / 16 * 32;
}

// TUTORIAL: a row of a tile is 128 or 256 bytes, so all its rows begin in the same bank,
// and eight rows of one column, which ldmatrix reads at once, would take eight turns.
// Hence chunk c of row r lies where chunk c ^ (r mod 8) would: eight rows, eight chunks,
// all 32 banks, and no byte of padding.
/// Where a chunk of a tile lies, in elements.
template <Along kAlong>
__device__ int chunk_at(int row, int chunk) {
    constexpr int kWidth = kAlong == Along::depth ? kDepth : kLines;
    return row * kWidth + (chunk ^ row % 8) * kChunk;
}

/// Copies `bytes` of a chunk, and zeros for the rest; Vector elements at a time.
template <int Vector>
__device__ void copy_chunk(__nv_bfloat16* target, const __nv_bfloat16* source,
                           int count) {
    if constexpr (Vector == 8) {
        ptx::cp_async<16>(target, source, count > 0 ? 16 : 0);
    } else if constexpr (Vector == 2) {
        for (int i = 0; i < kChunk; i += 2)
            ptx::cp_async<4>(target + i, i < count ? source + i : source,
                             i < count ? 4 : 0);
    } else {  // rows begin anywhere: no copy by cp.async is that narrow
        for (int i = 0; i < kChunk; ++i)
            target[i] = i < count ? source[i] : __float2bfloat16_rn(0.0f);
    }
}

/// Begins to copy the tile whose first line and depth these are. All threads.
/// @tparam Vector  elements at a time: 8, 2 or 1; divides the operand's width
template <Along kAlong, int Vector>
__device__ void load_tile(__nv_bfloat16* tile, const Operand& from, int first_line,
                          int first_depth) {
    constexpr int kWidth = kAlong == Along::depth ? kDepth : kLines;
    constexpr int kChunks = kWidth / kChunk;  // of a row
    const int first_row = kAlong == Along::depth ? first_line : first_depth;
    const int first_column = kAlong == Along::depth ? first_depth : first_line;
    for (int i = int(threadIdx.x); i < kLines * kDepth / kChunk; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int source_row = row_of(from, first_row + row);
        const int column = first_column + chunk * kChunk;
        const bool gathers = from.row_ids != nullptr && source_row >= 0;
        const int id = gathers ? from.row_ids[source_row] : source_row;
        const bool inside = id >= 0;
        const std::int64_t at = inside ? std::int64_t(id) * from.width + column : 0;
        copy_chunk<Vector>(tile + chunk_at<kAlong>(row, chunk), from.data + at,
                           inside ? from.width - column : 0);
    }
}

/// Four 8 x 8 blocks: lines from `line` on, 16 of each. In registers 0 to 3: both
/// blocks of lines at the first 8 of the depth, then both at the next 8. That is A of
/// mma.m16n8k16.
template <Along kAlong>
__device__ void load_a(std::uint32_t (&a)[4], const __nv_bfloat16* tile, int line,
                       int depth) {
    const int lane = int(threadIdx.x) % 32, block = lane / 8, row = lane % 8;
    if constexpr (kAlong == Along::depth)
        ptx::ldmatrix_x4(a, tile + chunk_at<kAlong>(line + block % 2 * 8 + row,
                                                    depth / kChunk + block / 2));
    else
        ptx::ldmatrix_x4_trans(a, tile + chunk_at<kAlong>(depth + block / 2 * 8 + row,
                                                          line / kChunk + block % 2));
}

/// The same, in registers 0 and 1 both halves of the depth of the first 8 lines, then of
/// the next 8: B of two mma.m16n8k16.
template <Along kAlong>
__device__ void load_b(std::uint32_t (&b)[4], const __nv_bfloat16* tile, int line,
                       int depth) {
    const int lane = int(threadIdx.x) % 32, block = lane / 8, row = lane % 8;
    if constexpr (kAlong == Along::depth)
        ptx::ldmatrix_x4(b, tile + chunk_at<kAlong>(line + block / 2 * 8 + row,
                                                    depth / kChunk + block % 2));
    else
        ptx::ldmatrix_x4_trans(b, tile + chunk_at<kAlong>(depth + block % 2 * 8 + row,
                                                          line / kChunk + block / 2));
}

}  // namespace moe::optimized
