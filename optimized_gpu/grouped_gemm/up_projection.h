/// @file
/// FC1 with the activation in its epilogue: what the rungs do with the sums.
#pragma once

#include "optimized_gpu/activation.h"
#include "optimized_gpu/grouped_gemm/epilogue.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {

template <typename H>
struct UpProblem {
    H* h;
    __nv_bfloat16* a;
    const __nv_bfloat16 *x, *weight, *bias;
    const float* row_probs;
    const int *row_ids, *offsets;
    int groups, depth, ffn;
    std::int64_t rows;
    ExpertActivation activation;

    __host__ __device__ int width() const { return activation.gated ? 2 * ffn : ffn; }
};

// The other rungs, in files of their own; see chosen_rung().
template <typename H>
void tma_wgmma_up_projection(const UpProblem<H>& problem, cudaStream_t stream);
template <typename H>
void warp_specialized_up_projection(const UpProblem<H>& problem, cudaStream_t stream);
template <typename H>
void scheduled_up_projection(const UpProblem<H>& problem, cudaStream_t stream);

/// A block's tile. Its lines are columns of h; of a gated unit each warp has some gates
/// and then what they gate, see gated_row().
template <bool kGated, int kRowBlocks, int kColumnBlocks>
struct UpTile {
    using Sums = WarpSums<kRowBlocks, kColumnBlocks>;
    static constexpr int kUnit = WarpPart<kRowBlocks, kColumnBlocks>::kColumns / 2;

    Sums& sums;
    std::int64_t row;     ///< the tile's first, of all
    int rows, line, ffn;  ///< rows that remain; the first line

    /// The column of h that a line of the tile is; -1: none.
    __device__ int column_of_h(int tile_line) const {
        if constexpr (kGated) return gated_row<kUnit>(line + tile_line, ffn);
        return line + tile_line < ffn ? line + tile_line : -1;
    }
    __device__ std::int64_t width() const { return kGated ? 2 * ffn : ffn; }

    /// @param bias  of the group, or null
    __device__ void add_bias(const __nv_bfloat16* bias) {
        if (bias == nullptr) return;
        for_each_sum(sums, [&](int i, int j, int e, int, int tile_line) {
            const int column = column_of_h(tile_line);
            if (column >= 0) sums[i][j][e] += __bfloat162float(bias[column]);
        });
    }

    /// Columns that are left of a half of h, or of all of it, from column `first` of h
    /// on.
    __device__ int left_of(int first) const {
        return int(first < ffn ? ffn : width()) - first;
    }

    /// Writes 8 columns that lie in shared memory, or those of `left` that there are.
    __device__ void store_chunk(__nv_bfloat16* target, const __nv_bfloat16* source,
                                int left) const {
        if (ffn % kChunk == 0 && begins_at(target, sizeof(uint4)))
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
        else
            for (int k = 0; k < kChunk && k < left; ++k) target[k] = source[k];
    }

    /// Writes h as a tile of its own columns, eight at a time where rows allow it.
    /// @param staging  room for kLines x kLines
    __device__ void store_h(__nv_bfloat16* h, __nv_bfloat16* staging) const {
        constexpr int kChunks = kLines / kChunk;
        stage_tile(staging, sums);
        for (int i = int(threadIdx.x); i < kLines * kChunks; i += kThreads) {
            const int r = i / kChunks, chunk = i % kChunks;
            const int first = column_of_h(chunk * kChunk);
            if (r >= rows || first < 0) continue;
            store_chunk(h + (row + r) * width() + first,
                        staging + chunk_at<Along::lines>(r, chunk), left_of(first));
        }
    }
    __device__ void store_h(float* h, __nv_bfloat16*) const {
        for_each_sum(sums, [&](int i, int j, int e, int r, int tile_line) {
            const int column = column_of_h(tile_line);
            if (r < rows && column >= 0) h[(row + r) * width() + column] = sums[i][j][e];
        });
    }

    /// The activation of a thread's sums takes the place of the gates, or of all of h.
    __device__ void activate(const ExpertActivation& activation, const float* row_probs) {
        for_each_sum(sums, [&](int i, int j, int e, int r, int) {
            const float p = row_probs == nullptr || r >= rows ? 1.0f : row_probs[row + r];
            float& sum = sums[i][j][e];
            if constexpr (kGated) {
                if (j < kColumnBlocks / 2)
                    sum = p * activation.forward(sum, sums[i][j + kColumnBlocks / 2][e]);
            } else {
                sum = p * activation.forward(sum);
            }
        });
    }

    /// Writes a; of a gated unit the gates' lines are its columns.
    __device__ void store_a(__nv_bfloat16* a, __nv_bfloat16* staging) const {
        constexpr Along kWide = kGated ? Along::depth : Along::lines;
        constexpr int kChunks = (kGated ? kLines / 2 : kLines) / kChunk;
        constexpr int kUnitChunks = kUnit / kChunk;
        stage_tile<kGated>(staging, sums);
        for (int i = int(threadIdx.x); i < kLines * kChunks; i += kThreads) {
            const int r = i / kChunks, n = i % kChunks;
            const int chunk =
                kGated ? n / kUnitChunks * 2 * kUnitChunks + n % kUnitChunks : n;
            const int first = column_of_h(chunk * kChunk);
            if (r >= rows || first < 0) continue;
            store_chunk(a + (row + r) * ffn + first, staging + chunk_at<kWide>(r, n),
                        ffn - first);
        }
    }
};

/// Writes the block's tile of h and of a. Its first line is `line`.
template <bool kGated, int kRowBlocks, int kColumnBlocks, typename H>
__device__ void finish_up_projection(WarpSums<kRowBlocks, kColumnBlocks>& sums,
                                     __nv_bfloat16* staging, const UpProblem<H>& p,
                                     const GroupTile& tile, int line) {
    const int row = tile.tile * kLines;
    UpTile<kGated, kRowBlocks, kColumnBlocks> up = {sums, tile.first_row + row,
                                                    tile.rows - row, line, p.ffn};
    up.add_bias(p.bias == nullptr ? nullptr
                                  : p.bias + std::int64_t(tile.group) * p.width());
    up.store_h(p.h, staging);
    __syncthreads();
    up.activate(p.activation, p.row_probs);
    up.store_a(p.a, staging);
}

}  // namespace moe::optimized
