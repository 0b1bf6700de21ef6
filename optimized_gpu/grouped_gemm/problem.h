/// @file
/// What the products of grouped_gemm.h work on, and what starts them on each rung.
#pragma once

#include "optimized_gpu/grouped_gemm/epilogue.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {

/// y_r = W_g x_r plus the bias, or y_r = W_gᵀ x_r.
template <typename Y>
struct RowsProblem {
    Y* y;
    const __nv_bfloat16 *x, *weight, *bias;  ///< W's rows are y's columns, or the depth
    const float* row_scale;
    const int *row_ids, *offsets;
    int groups, depth, columns;  ///< summed over; of y
    std::int64_t rows;           ///< of y
};

/// dW_g = sum over its rows of dy_r x_rᵀ.
template <typename Y>
struct WeightProblem {
    Y* dweight;
    const __nv_bfloat16 *dy, *x;
    const int *dy_row_ids, *x_row_ids, *offsets;
    int groups, out, in;
    std::int64_t rows;
};

/// Writes the block's tile of y, whose first column is `column`.
/// @param store  called with the sums and their Target, see BlockStore
template <typename Sums, typename Store, typename Y>
__device__ void finish_rows(Sums& sums, Store store, const RowsProblem<Y>& p,
                            const GroupTile& tile, int column) {
    const std::int64_t group = tile.group, first = tile.first_row + tile.tile * kLines;
    const int rows = tile.rows - tile.tile * kLines, columns = p.columns - column;
    add_bias(sums, p.bias == nullptr ? nullptr : p.bias + group * p.columns + column,
             p.row_scale == nullptr ? nullptr : p.row_scale + first, rows, columns);
    store(sums, Target<Y>{p.y + first * p.columns + column, p.columns, rows, columns});
}

/// Writes the block's tile of dW_g, whose first row and column these are.
template <typename Sums, typename Store, typename Y>
__device__ void finish_weight(const Sums& sums, Store store, const WeightProblem<Y>& p,
                              int group, int row, int column) {
    const std::int64_t target = (std::int64_t(group) * p.out + row) * p.in + column;
    store(sums, Target<Y>{p.dweight + target, p.in, p.out - row, p.in - column});
}

/// One block per tile of y.
template <typename Y>
dim3 grid_of(const RowsProblem<Y>& problem) {
    return {tiles_of(problem.columns), most_row_tiles(problem.rows, problem.groups)};
}
/// One block per tile of each dW_g.
template <typename Y>
dim3 grid_of(const WeightProblem<Y>& problem) {
    return {tiles_of(problem.in), tiles_of(problem.out), unsigned(problem.groups)};
}

// One function per rung: the first serves all widths, for the others see chosen_rung().
/// @tparam kWeight  Along::depth: y_r = W_g x_r; Along::lines: W_gᵀ x_r
template <Along kWeight, typename Y>
void mma_sync_rows(const RowsProblem<Y>& problem, cudaStream_t stream);
template <Along kWeight, typename Y>
void tma_wgmma_rows(const RowsProblem<Y>& problem, cudaStream_t stream);
template <typename Y>
void mma_sync_weight(const WeightProblem<Y>& problem, cudaStream_t stream);
template <typename Y>
void tma_wgmma_weight(const WeightProblem<Y>& problem, cudaStream_t stream);
template <Along kWeight, typename Y>
void warp_specialized_rows(const RowsProblem<Y>& problem, cudaStream_t stream);
template <typename Y>
void warp_specialized_weight(const WeightProblem<Y>& problem, cudaStream_t stream);
template <Along kWeight, typename Y>
void scheduled_rows(const RowsProblem<Y>& problem, cudaStream_t stream);
// scheduled_rows() calls it where depth is little, see chosen_consumers().
template <Along kWeight>
void ping_pong_rows(const RowsProblem<__nv_bfloat16>& problem, cudaStream_t stream);
template <typename Y>
void scheduled_weight(const WeightProblem<Y>& problem, cudaStream_t stream);

}  // namespace moe::optimized
