/// @file
/// FC2's input gradient with the activation's backward in its epilogue: what the rungs
/// do with the sums.
#pragma once

#include "optimized_gpu/activation.h"
#include "optimized_gpu/grouped_gemm/epilogue.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {

/// Tiles of what the epilogue reads and writes.
struct BackwardTiles {
    alignas(1024)
        __nv_bfloat16 gate[kLines * kLines];  ///< of h, then of dh; not gated: all
    alignas(1024) __nv_bfloat16 up[kLines * kLines];
    alignas(1024) __nv_bfloat16 a[kLines * kLines];

    /// Where a chunk of a tile lies, in elements.
    __device__ static int at(int row, int chunk) {
        return chunk_at<Along::lines>(row, chunk);
    }
};
/// Tiles of the operands and, once those are multiplied, the epilogue's.
/// @tparam Operands  of a rung, MmaSyncSmem or TmaWgmmaSmem
/// @tparam kAcross   warps that have columns of one row
template <typename Operands, int kAcross>
struct BackwardSmem {
    union {
        Operands operands;
        BackwardTiles results;
    };
    float row_sums[kAcross][kLines];  ///< of dp, each warp's columns
};

template <typename H>
struct BackwardProblem {
    __nv_bfloat16 *dh, *a;
    float* dp;  ///< (column tiles, rows)
    const __nv_bfloat16 *dy, *weight;
    const H* h;
    const float* row_probs;
    const int *row_ids, *offsets;
    int groups, depth, ffn;
    std::int64_t num_rows;
    ExpertActivation activation;

    __host__ __device__ int width() const { return activation.gated ? 2 * ffn : ffn; }
};

// The other rungs, in files of their own; see chosen_rung().
template <typename H>
void tma_wgmma_activation_backward(const BackwardProblem<H>& problem,
                                   cudaStream_t stream);
template <typename H>
void warp_specialized_activation_backward(const BackwardProblem<H>& problem,
                                          cudaStream_t stream);
template <typename H>
void scheduled_activation_backward(const BackwardProblem<H>& problem,
                                   cudaStream_t stream);

/// A block's part of h, dh and a: it starts at this row of all, this column of a.
struct BlockPart {
    std::int64_t row;
    int column;
    int rows, columns;  ///< that are there; more than kLines: all of the tile's
};

/// Brings a tile of h to where its gradients will lie. All threads; ends with a barrier.
template <bool kGated, int Vector>
__device__ void load_h(BackwardTiles& tiles, const BackwardProblem<__nv_bfloat16>& p,
                       const BlockPart& part) {
    const int width = p.width();
    const Operand h = {p.h + part.row * width, nullptr, part.rows, width};
    for (int row = 0; row < kLines; row += kDepth) {
        load_tile<Along::lines, Vector>(tiles.gate + row * kLines, h, part.column, row);
        if constexpr (kGated)
            load_tile<Along::lines, Vector>(tiles.up + row * kLines, h,
                                            p.ffn + part.column, row);
    }
    ptx::cp_async_commit();
    ptx::cp_async_wait<0>();
    __syncthreads();
}
template <bool kGated, int Vector>
__device__ void load_h(BackwardTiles&, const BackwardProblem<float>&, const BlockPart&) {}

/// Two neighbours of h: from shared memory, or, in fp32, from where they are, four lanes
/// a sector.
/// @param half  0, or F: the second half of a row
__device__ inline float2 pair_of_h(const __nv_bfloat16* staged,
                                   const BackwardProblem<__nv_bfloat16>&,
                                   const BlockPart&, int, int, int) {
    return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(staged));
}
__device__ inline float2 pair_of_h(const __nv_bfloat16*, const BackwardProblem<float>& p,
                                   const BlockPart& part, int row, int column, int half) {
    if (row >= part.rows || column >= part.columns) return {};
    const float* const h =
        p.h + (part.row + row) * p.width() + half + part.column + column;
    if (p.ffn % 2 == 0 && begins_at(h, sizeof(float2)))
        return *reinterpret_cast<const float2*>(h);
    return {h[0], column + 1 < part.columns ? h[1] : 0.0f};
}

/// One pair of the thread's sums: dh and a of it go to shared memory.
/// @return its part of dp
template <bool kGated, typename Tiles, typename H>
__device__ float backward_pair(Tiles& tiles, const BackwardProblem<H>& p,
                               const BlockPart& part, int row, int column, float2 da,
                               float prob) {
    const int at = Tiles::at(row, column / kChunk) + column % kChunk;
    const auto set = [&](__nv_bfloat16* tile, float x, float y) {
        *reinterpret_cast<__nv_bfloat162*>(tile + at) = __floats2bfloat162_rn(x, y);
    };
    const float2 gate = pair_of_h(tiles.gate + at, p, part, row, column, 0);
    ActivationGradient x, y;
    if constexpr (kGated) {
        const float2 up = pair_of_h(tiles.up + at, p, part, row, column, p.ffn);
        x = p.activation.backward(gate.x, up.x, prob * da.x);
        y = p.activation.backward(gate.y, up.y, prob * da.y);
        set(tiles.up, x.dup, y.dup);
    } else {
        x = p.activation.backward(gate.x, prob * da.x);
        y = p.activation.backward(gate.y, prob * da.y);
    }
    set(tiles.gate, x.dgate, y.dgate);
    set(tiles.a, prob * x.value, prob * y.value);
    // Beyond the last column is anything, of which 0 times need not be 0.
    return (column < part.columns ? x.value * da.x : 0.0f) +
           (column + 1 < part.columns ? y.value * da.y : 0.0f);
}

/// All of the thread's sums, da'; what a warp's columns add to dp as well.
template <bool kGated, int kRowBlocks, int kColumnBlocks, typename Tiles, int kAcross,
          typename H>
__device__ void backward_tile(const WarpSums<kRowBlocks, kColumnBlocks>& da, Tiles& tiles,
                              float (&row_sums)[kAcross][kLines],
                              const BackwardProblem<H>& p, const BlockPart& part) {
    using Part = WarpPart<kRowBlocks, kColumnBlocks>;
    static_assert(kAcross == Part::kAcross);
    const int lane = lane_index();
#pragma unroll
    for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = Part::row() + 16 * i + lane / 4 + 8 * half;
            const bool has_prob = p.row_probs != nullptr && row < part.rows;
            const float prob = has_prob ? p.row_probs[part.row + row] : 1.0f;
            float sum = 0.0f;
#pragma unroll
            for (int j = 0; j < kColumnBlocks; ++j)
                sum += backward_pair<kGated>(
                    tiles, p, part, row, Part::column() + 8 * j + lane % 4 * 2,
                    {da[i][j][2 * half], da[i][j][2 * half + 1]}, prob);
            sum += __shfl_xor_sync(kAllLanes, sum, 1);
            sum += __shfl_xor_sync(kAllLanes, sum, 2);
            if (lane % 4 == 0) row_sums[Part::column() / Part::kColumns][row] = sum;
        }
}

/// Writes dh, a and the block's part of dp.
template <bool kGated, int kAcross, typename H>
__device__ void store_results(const BackwardTiles& tiles,
                              const float (&row_sums)[kAcross][kLines],
                              const BackwardProblem<H>& p, const BlockPart& part) {
    const int width = p.width();
    __nv_bfloat16* const dh = p.dh + part.row * width + part.column;
    store_staged(tiles.gate, {dh, width, part.rows, part.columns});
    if constexpr (kGated)
        store_staged(tiles.up, {dh + p.ffn, width, part.rows, part.columns});
    store_staged(tiles.a,
                 {p.a + part.row * p.ffn + part.column, p.ffn, part.rows, part.columns});
    const int row = int(threadIdx.x);
    if (row >= kLines || row >= part.rows) return;
    float sum = 0.0f;
    for (int i = 0; i < kAcross; ++i) sum += row_sums[i][row];
    p.dp[blockIdx.x * p.num_rows + part.row + row] = sum;
}

// TUTORIAL: da is read once, by the thread that made it, so it need never be written: in
// bf16 it would cost two bytes each way per element, and its rounding.
/// Writes the block's tile of dh and of a, whose first column of a is `column`, and its
/// part of dp.
/// @tparam Vector  elements of h that are copied at a time; divides F
template <bool kGated, int Vector, typename Sums, typename Smem, typename H>
__device__ void finish_activation_backward(const Sums& da, Smem& s,
                                           const BackwardProblem<H>& p,
                                           const GroupTile& tile, int column) {
    const int row = tile.tile * kLines;
    const BlockPart part = {tile.first_row + row, column, tile.rows - row,
                            p.ffn - column};
    load_h<kGated, Vector>(s.results, p, part);
    backward_tile<kGated>(da, s.results, s.row_sums, p, part);
    __syncthreads();
    store_results<kGated>(s.results, s.row_sums, p, part);
}

}  // namespace moe::optimized
