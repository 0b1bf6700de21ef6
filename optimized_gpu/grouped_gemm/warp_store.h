/// @file
/// How a warp of the third rung stores its sums: by itself, in slices of 64 columns, so
/// that no warp waits for another.
#pragma once

#include "optimized_gpu/grouped_gemm/epilogue.h"

namespace moe::optimized {

inline constexpr int kSlice = 64;  ///< columns that a warp stages at a time
inline constexpr int kSliceElements = 16 * kSlice;

/// Puts columns [64 slice, 64 slice + 64) of the warp's 16 rows into shared memory,
/// swizzled as boxes are. All lanes; ends with a barrier of the warp.
/// @param slice  a constant once loops are unrolled
template <int kColumnBlocks>
__device__ void stage_slice(__nv_bfloat16* staged, const WarpSums<1, kColumnBlocks>& sums,
                            int slice) {
    const int lane = lane_index();
#pragma unroll
    for (int j = 0; j < kSlice / 8; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float* const two = &sums[0][slice * (kSlice / 8) + j][2 * half];
            *reinterpret_cast<__nv_bfloat162*>(
                staged + chunk_at<Along::depth>(lane / 4 + 8 * half, j) + lane % 4 * 2) =
                __floats2bfloat162_rn(two[0], two[1]);
        }
    __syncwarp();
}

/// Writes `chunks` chunks of each of the warp's 16 rows, eight columns at a time where
/// rows allow it.
/// @param to     from the warp's first row on
/// @param chunk  called with row and chunk: where that lies in shared memory
template <int kChunks, typename Chunk>
__device__ void store_warp_rows(const Target<__nv_bfloat16>& to, Chunk chunk) {
    const bool whole = to.width % kChunk == 0 && to.columns % kChunk == 0;
#pragma unroll
    for (int i = lane_index(); i < 16 * kChunks; i += kLanes) {
        const int row = i / kChunks, column = i % kChunks * kChunk;
        if (row >= to.rows || column >= to.columns) continue;
        const __nv_bfloat16* const source = chunk(row, i % kChunks);
        __nv_bfloat16* const target = to.data + row * to.width + column;
        if (whole)
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
        else
            for (int k = 0; k < kChunk && column + k < to.columns; ++k)
                target[k] = source[k];
    }
}

/// Writes one slice of the warp's rows. All lanes; ends with a barrier of the warp.
/// @param to  the slice, from the warp's first row on
template <int kColumnBlocks>
__device__ void store_slice(__nv_bfloat16* staged, const WarpSums<1, kColumnBlocks>& sums,
                            int slice, const Target<__nv_bfloat16>& to) {
    if (to.rows <= 0 || to.columns <= 0) return;
    stage_slice(staged, sums, slice);
    store_warp_rows<kSlice / kChunk>(to, [&](int row, int chunk) {
        return staged + chunk_at<Along::depth>(row, chunk);
    });
    __syncwarp();
}

/// In fp32 four lanes hold a sector, so sums go where they belong from registers.
template <int kColumnBlocks>
__device__ void store_slice(__nv_bfloat16*, const WarpSums<1, kColumnBlocks>& sums,
                            int slice, const Target<float>& to) {
    const bool pairs = to.width % 2 == 0 && to.columns % 2 == 0;
    const int lane = lane_index();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = lane / 4 + 8 * half;
        if (row >= to.rows) continue;
        float* const line = to.data + row * to.width;
#pragma unroll
        for (int j = 0; j < kSlice / 8; ++j) {
            const int column = 8 * j + lane % 4 * 2;
            if (column >= to.columns) continue;
            const float* const sum = &sums[0][slice * (kSlice / 8) + j][2 * half];
            const float2 two = {sum[0], sum[1]};
            if (pairs) {
                *reinterpret_cast<float2*>(line + column) = two;
            } else {
                line[column] = two.x;
                if (column + 1 < to.columns) line[column + 1] = two.y;
            }
        }
    }
}

/// Where a tile lies in the map of a result (rows, parts, width), see result_map().
struct ResultPlace {
    const CUtensorMap* map;  ///< null: not for TMA
    int column, part, row;
};

/// How the third rung stores a slice.
struct WarpStore {
    __nv_bfloat16* staged;  ///< kSliceElements of the warp

    /// @param to  the slice, from the warp's first row on
    template <int kColumnBlocks, typename Y>
    __device__ void slice(const WarpSums<1, kColumnBlocks>& sums, int slice,
                          const Target<Y>& to, const ResultPlace&) {
        store_slice(staged, sums, slice, to);
    }
    __device__ void end() {}
};

/// Room for one slice of each consumer warp.
struct SliceStaging {
    alignas(1024) __nv_bfloat16 slices[kWarps][kSliceElements];

    /// The thread's, which producers do not use.
    __device__ WarpStore store() {
        return {slices[threadIdx.x < kThreads ? warp_index() : 0]};
    }
};

/// Stores the warp's rows of a tile, slice by slice.
/// @param to, place  of the block's tile
template <typename Store, int kColumnBlocks, typename Y>
__device__ void store_slices(Store& store, const WarpSums<1, kColumnBlocks>& sums,
                             const Target<Y>& to, const ResultPlace& place) {
    const int row = 16 * warp_index();
#pragma unroll
    for (int slice = 0; slice < kColumnBlocks * 8 / kSlice; ++slice)
        store.slice(
            sums, slice,
            Target<Y>{to.data + row * to.width + slice * kSlice, to.width, to.rows - row,
                      to.columns - slice * kSlice},
            {place.map, place.column + slice * kSlice, place.part, place.row + row});
}

}  // namespace moe::optimized
