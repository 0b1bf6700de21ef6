/// @file
/// Boxes: the parts in which tiles of operands come to shared memory from the second rung
/// on, by TMA or, where rows are gathered, by cp.async, and how wgmma multiplies them
/// where they lie.
#pragma once

#include "gpu/tensor_map.h"
#include "optimized_gpu/grouped_gemm/tile.h"

namespace moe::optimized {

// TUTORIAL: a row of a box is 128 bytes, whichever way the operand lies, and TMA moves
// chunk c of row r to c ^ (r mod 8) ("swizzle 128B"), as chunk_at() did on the first
// rung. That repeats every 1024 bytes, to which boxes are aligned.
inline constexpr int kBoxLines = 64;  ///< a box has 64 lines, and a tile's whole depth
inline constexpr int kBoxElements = kBoxLines * kDepth;
inline constexpr std::uint32_t kBoxBytes = kBoxElements * sizeof(__nv_bfloat16);
inline constexpr int kBoxChunks = kDepth / kChunk;  ///< of a row of a box

/// The boxes of a tile of 64 kBoxes lines.
template <int kBoxes>
using Boxes = __nv_bfloat16[kBoxes][kBoxElements];

/// The map of an operand (groups, rows, width), in boxes. Of nothing where it holds
/// nothing, or where rows are gathered: then no box is asked for.
CUtensorMap operand_map(const __nv_bfloat16* data, std::int64_t groups, std::int64_t rows,
                        std::int64_t width);

/// Where a block's tiles of one operand come from.
struct TileSource {
    const CUtensorMap* map;
    int line, other_line;  ///< the first lines of the first and second half of the boxes
    int depth;             ///< the first of what is summed over
    int group;
    Operand rows = {};  ///< where it has row_ids, boxes are gathered from it instead
    __device__ bool gathers() const { return rows.row_ids != nullptr; }
};

/// A box's corner.
struct Corner {
    int x, y;  ///< element of a row; row
};
template <Along kAlong, int kBoxes>
__device__ Corner corner_of(const TileSource& from, int box, int step) {
    constexpr int kHalf = (kBoxes + 1) / 2;
    const int line = box < kHalf ? from.line + box * kBoxLines
                                 : from.other_line + (box - kHalf) * kBoxLines;
    const int depth = from.depth + step * kDepth;
    return kAlong == Along::depth ? Corner{depth, line} : Corner{line, depth};
}

/// Asks for a tile's boxes. One thread.
template <Along kAlong, int kBoxes>
__device__ void load_by_tma(Boxes<kBoxes>& tile, const TileSource& from, int step,
                            std::uint64_t* full) {
#pragma unroll
    for (int box = 0; box < kBoxes; ++box) {
        const Corner corner = corner_of<kAlong, kBoxes>(from, box, step);
        ptx::tma_load_3d(tile[box], from.map, full, corner.x, corner.y, from.group);
    }
}

/// What one of kGatherers threads gathers of a tile: chunk t mod 8 of rows t / 8, and so
/// on, of all boxes. Where boxes are side by side in memory, they have the same rows.
template <Along kAlong, int kBoxes, int kGatherers>
struct GatheredRows {
    static constexpr int kApart = kGatherers / kBoxChunks;
    static constexpr int kRows = kBoxLines / kApart;
    static constexpr int kSets = kAlong == Along::depth ? kBoxes : 1;

    int ids[kSets][kRows];  ///< negative: zeros

    __device__ void find(const TileSource& from, int step, int thread) {
#pragma unroll
        for (int set = 0; set < kSets; ++set)
#pragma unroll
            for (int n = 0; n < kRows; ++n) {
                const int row = corner_of<kAlong, kBoxes>(from, set, step).y +
                                thread / kBoxChunks + kApart * n;
                ids[set][n] = row < from.rows.rows ? from.rows.row_ids[row] : -1;
            }
    }

    /// Begins to copy the rows that were found.
    __device__ void copy(Boxes<kBoxes>& tile, const TileSource& from, int step,
                         int thread) const {
        const int chunk = thread % kBoxChunks;
#pragma unroll
        for (int box = 0; box < kBoxes; ++box)
#pragma unroll
            for (int n = 0; n < kRows; ++n) {
                const int id = ids[kSets == 1 ? 0 : box][n];
                const int column =
                    corner_of<kAlong, kBoxes>(from, box, step).x + chunk * kChunk;
                const bool inside = id >= 0 && column < from.rows.width;
                const std::int64_t at =
                    inside ? std::int64_t(id) * from.rows.width + column : 0;
                ptx::cp_async<16>(
                    tile[box] +
                        chunk_at<Along::depth>(thread / kBoxChunks + kApart * n, chunk),
                    from.rows.data + at, inside ? 16 : 0);
            }
    }
};

/// Zeros for the rows from `first` on of one box of a tile that lies along its lines:
/// what is beyond the depth. Thread `thread` of kClearers.
template <int kClearers>
__device__ void clear_rows(__nv_bfloat16* box, int first, int thread) {
    for (int i = first * kBoxChunks + thread; i < kBoxElements / kChunk; i += kClearers)
        reinterpret_cast<uint4*>(box)[i] = uint4{};
}

/// Begins to multiply: sums += 64 lines of A, kColumns of B, and 64 of the depth. A
/// warpgroup.
template <Along kA, Along kB, int kColumns>
__device__ void multiply_boxes(float (&sums)[kColumns / 2], const __nv_bfloat16* a_box,
                               const __nv_bfloat16* b_boxes) {
    // From 16 of the depth to the next, in bytes; see ptx::make_smem_desc()
    constexpr int kAStep = kA == Along::depth ? 32 : 16 * 128;
    constexpr int kBStep = kB == Along::depth ? 32 : 16 * 128;
    constexpr auto major = [](Along along) {
        return along == Along::depth ? ptx::Major::k : ptx::Major::mn;
    };
    const auto descriptor = [](const __nv_bfloat16* boxes) {
        return ptx::make_smem_desc(boxes, kBoxBytes, 8 * 128,
                                   ptx::TileSwizzle::bytes_128);
    };
    const std::uint64_t a = descriptor(a_box), b = descriptor(b_boxes);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i)
        ptx::wgmma_m64k16<kColumns, major(kA), major(kB)>(
            sums, ptx::advance(a, i * kAStep), ptx::advance(b, i * kBStep), true);
    ptx::wgmma_commit();
}

}  // namespace moe::optimized
