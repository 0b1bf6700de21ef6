/// @file
/// How a warp of the fourth rung stores: stmatrix puts its sums into shared memory, and
/// TMA takes them from there, while the warp goes on.
#pragma once

#include <cstdint>
#include <cstring>

#include "optimized_gpu/grouped_gemm/warp_store.h"

namespace moe::optimized {

/// The map of a bf16 result (rows, parts, width) for boxes of 16 rows and 64 columns:
/// what lies beyond a part's width is not written. Parts are the halves of a gated unit's
/// h. Nothing where there are no rows, or where rows do not begin at multiples of 16
/// bytes.
CUtensorMap result_map(const __nv_bfloat16* data, std::int64_t rows, std::int64_t parts,
                       std::int64_t width);
/// There is none of an fp32 result, whose sums go from registers to whole sectors.
inline CUtensorMap result_map(const float*, std::int64_t, std::int64_t, std::int64_t) {
    return {};
}

/// Puts columns [64 slice, 64 slice + 64) of the warp's 16 rows into shared memory,
/// swizzled as boxes are. All lanes; a fence or barrier must follow.
template <int kColumnBlocks>
__device__ void stage_matrices(__nv_bfloat16* staged,
                               const WarpSums<1, kColumnBlocks>& sums, int slice) {
    const int lane = lane_index(), matrix = lane / 8;
    const auto packed = [](const float* two) {
        const __nv_bfloat162 both = __floats2bfloat162_rn(two[0], two[1]);
        std::uint32_t bits;
        memcpy(&bits, &both, sizeof bits);
        return bits;
    };
#pragma unroll
    for (int j = 0; j < kSlice / 8; j += 2) {
        // Four 8 x 8 matrices: rows 0 to 7 and 8 to 15 of 8 columns, and of the next 8
        const int row = matrix % 2 * 8 + lane % 8, chunk = j + matrix / 2;
        const auto& left = sums[0][slice * (kSlice / 8) + j];
        const auto& right = sums[0][slice * (kSlice / 8) + j + 1];
        const std::uint32_t four[4] = {packed(left), packed(left + 2), packed(right),
                                       packed(right + 2)};
        ptx::stmatrix_x4(staged + chunk_at<Along::depth>(row, chunk), four);
    }
}

// TUTORIAL: a store that TMA has been asked for still reads shared memory while the warp
// goes on with its next slice, and with the next tile. So a warp has room for two slices,
// and waits, before it fills one, for the store before the last one alone.
/// How the fourth rung stores a slice: by TMA where all 16 rows are the group's; else, as
/// TMA knows no groups, row by row. Columns are cut off by the map.
class TmaStore {
  public:
    /// @param staged  two slices of the warp
    __device__ explicit TmaStore(__nv_bfloat16 (&staged)[2][kSliceElements])
        : staged_(staged) {}

    template <int kColumnBlocks>
    __device__ void slice(const WarpSums<1, kColumnBlocks>& sums, int slice,
                          const Target<__nv_bfloat16>& to, const ResultPlace& place) {
        if (to.rows <= 0 || to.columns <= 0) return;
        __nv_bfloat16* const staged = staged_[next_];
        next_ ^= 1;
        if (lane_index() == 0) ptx::bulk_wait_read<1>();
        __syncwarp();
        stage_matrices(staged, sums, slice);
        if (place.map != nullptr && to.rows >= 16) {
            ptx::fence_proxy_async();
            __syncwarp();
            if (lane_index() == 0)
                ptx::tma_store_3d(place.map, staged, place.column, place.part, place.row);
        } else {
            __syncwarp();
            store_warp_rows<kSlice / kChunk>(to, [&](int row, int chunk) {
                return staged + chunk_at<Along::depth>(row, chunk);
            });
        }
        // Also of nothing: waits count groups.
        if (lane_index() == 0) ptx::bulk_commit();
    }
    template <int kColumnBlocks>
    __device__ void slice(const WarpSums<1, kColumnBlocks>& sums, int slice,
                          const Target<float>& to, const ResultPlace&) {
        store_slice(nullptr, sums, slice, to);
    }
    __device__ void end() {
        if (lane_index() == 0) ptx::bulk_wait_read<0>();
    }

  private:
    __nv_bfloat16 (&staged_)[2][kSliceElements];
    int next_ = 0;
};

/// Room for two slices of each consumer warp.
struct TmaStaging {
    alignas(1024) __nv_bfloat16 slices[kWarps][2][kSliceElements];

    /// The thread's, which producers do not use.
    __device__ TmaStore store() {
        return TmaStore(slices[threadIdx.x < kThreads ? warp_index() : 0]);
    }
};

}  // namespace moe::optimized
