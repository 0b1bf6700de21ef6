// mma_sync.cu: products of groups of rows on the first rung, 1_mma_sync.

#include "optimized_gpu/grouped_gemm/mma_sync.h"

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/problem.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// One block per tile of y. W's rows are y's columns (forward), or what is summed over
/// (backward).
template <Along kWeight, int Vector, typename Y>
__global__ void __launch_bounds__(kThreads) grouped_rows_kernel(const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const int column = int(blockIdx.x) * kLines;
    const Operand x = rows_of_group(p.x, p.row_ids, tile.first_row, tile.rows, p.depth);
    const bool forward = kWeight == Along::depth;
    const Operand weight = {p.weight + std::int64_t(tile.group) * p.depth * p.columns,
                            nullptr, forward ? p.columns : p.depth,
                            forward ? p.depth : p.columns};
    Sums sums;
    multiply<Along::depth, kWeight, Vector>(sums, s, x, tile.tile * kLines, weight,
                                            column, p.depth);
    finish_rows(sums, BlockStore{s.a[0]}, p, tile, column);
}

/// One block per tile of dW of one group; what is summed over are the group's rows.
template <int Vector, typename Y>
__global__ void __launch_bounds__(kThreads)
    grouped_weight_kernel(const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const int group = int(blockIdx.z);
    const std::int64_t first = p.offsets[group];
    const int rows = p.offsets[group + 1] - int(first);
    const int row = int(blockIdx.y) * kLines, column = int(blockIdx.x) * kLines;
    const Operand dy = rows_of_group(p.dy, p.dy_row_ids, first, rows, p.out);
    const Operand x = rows_of_group(p.x, p.x_row_ids, first, rows, p.in);
    Sums sums;
    multiply<Along::lines, Along::lines, Vector>(sums, s, dy, row, x, column, rows);
    finish_weight(sums, BlockStore{s.a[0]}, p, group, row, column);
}

}  // namespace

template <Along kWeight, typename Y>
void mma_sync_rows(const RowsProblem<Y>& problem, cudaStream_t stream) {
    // Rows of x, and those of W one way or the other, are copied.
    const int weight_width = kWeight == Along::depth ? problem.depth : problem.columns;
    const std::int64_t x = problem.depth | begin_of(problem.x);
    const std::int64_t weight = weight_width | begin_of(problem.weight);
    with_vector(x, weight, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("grouped_rows_kernel", grouped_rows_kernel<kWeight, kVector, Y>,
                    {grid_of(problem), kThreads, sizeof(MmaSyncSmem), stream}, problem);
    });
}

template <typename Y>
void mma_sync_weight(const WeightProblem<Y>& problem, cudaStream_t stream) {
    const std::int64_t dy = problem.out | begin_of(problem.dy);
    const std::int64_t x = problem.in | begin_of(problem.x);
    with_vector(dy, x, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("grouped_weight_kernel", grouped_weight_kernel<kVector, Y>,
                    {grid_of(problem), kThreads, sizeof(MmaSyncSmem), stream}, problem);
    });
}

template void mma_sync_rows<Along::depth>(const RowsProblem<float>&, cudaStream_t);
template void mma_sync_rows<Along::depth>(const RowsProblem<bf16>&, cudaStream_t);
template void mma_sync_rows<Along::lines>(const RowsProblem<bf16>&, cudaStream_t);
template void mma_sync_weight(const WeightProblem<float>&, cudaStream_t);
template void mma_sync_weight(const WeightProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
