// tma_wgmma.cu: products of groups of rows on the second rung, 2_tma_wgmma.

#include "optimized_gpu/grouped_gemm/tma_wgmma.h"

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/problem.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// One block per tile of y.
template <Along kWeight, typename Y>
__global__ void __launch_bounds__(kThreads, 1)
    tma_rows_kernel(const __grid_constant__ CUtensorMap map_x,
                    const __grid_constant__ CUtensorMap map_weight,
                    const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<TmaWgmmaSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    // Rows behind the group's last come as well: they make rows that are not stored.
    const int row = tile.first_row + tile.tile * kLines;
    const int column = int(blockIdx.x) * kLines;
    const Operand rows = {p.x, p.row_ids, tile.first_row + tile.rows, p.depth};
    TmaSums sums;
    multiply<Along::depth, kWeight>(
        sums, s, {&map_x, row, row + kBoxLines, 0, 0, rows},
        {&map_weight, column, column + kBoxLines, 0, tile.group}, p.depth);
    finish_rows(sums, BlockStore{s.a[0][0]}, p, tile, column);
}

/// One block per tile of dW of one group; what is summed over are the group's rows.
template <typename Y>
__global__ void __launch_bounds__(kThreads, 1)
    tma_weight_kernel(const __grid_constant__ CUtensorMap map_dy,
                      const __grid_constant__ CUtensorMap map_x,
                      const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<TmaWgmmaSmem>();
    const int group = int(blockIdx.z);
    const int first = p.offsets[group], end = p.offsets[group + 1];
    const int row = int(blockIdx.y) * kLines, column = int(blockIdx.x) * kLines;
    const Operand dy = {p.dy, p.dy_row_ids, end, p.out};
    const Operand x = {p.x, p.x_row_ids, end, p.in};
    TmaSums sums;
    multiply<Along::lines, Along::lines>(
        sums, s, {&map_dy, row, row + kBoxLines, first, 0, dy},
        {&map_x, column, column + kBoxLines, first, 0, x}, end - first);
    finish_weight(sums, BlockStore{s.a[0][0]}, p, group, row, column);
}

}  // namespace

template <Along kWeight, typename Y>
void tma_wgmma_rows(const RowsProblem<Y>& problem, cudaStream_t stream) {
    const bool forward = kWeight == Along::depth;
    gpu::launch("tma_rows_kernel", tma_rows_kernel<kWeight, Y>,
                {grid_of(problem), kThreads, sizeof(TmaWgmmaSmem), stream},
                operand_map(problem.x, 1, problem.row_ids == nullptr ? problem.rows : 0,
                            problem.depth),
                operand_map(problem.weight, problem.groups,
                            forward ? problem.columns : problem.depth,
                            forward ? problem.depth : problem.columns),
                problem);
}

template <typename Y>
void tma_wgmma_weight(const WeightProblem<Y>& problem, cudaStream_t stream) {
    const auto map = [&](const bf16* data, const int* row_ids, int width) {
        return operand_map(data, 1, row_ids == nullptr ? problem.rows : 0, width);
    };
    gpu::launch("tma_weight_kernel", tma_weight_kernel<Y>,
                {grid_of(problem), kThreads, sizeof(TmaWgmmaSmem), stream},
                map(problem.dy, problem.dy_row_ids, problem.out),
                map(problem.x, problem.x_row_ids, problem.in), problem);
}

template void tma_wgmma_rows<Along::depth>(const RowsProblem<float>&, cudaStream_t);
template void tma_wgmma_rows<Along::depth>(const RowsProblem<bf16>&, cudaStream_t);
template void tma_wgmma_rows<Along::lines>(const RowsProblem<bf16>&, cudaStream_t);
template void tma_wgmma_weight(const WeightProblem<float>&, cudaStream_t);
template void tma_wgmma_weight(const WeightProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
