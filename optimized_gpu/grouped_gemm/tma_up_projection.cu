// tma_up_projection.cu: FC1 with the activation in its epilogue, on the second rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/tma_wgmma.h"
#include "optimized_gpu/grouped_gemm/up_projection.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// One block per tile of h. Of a gated unit a tile is 64 gates, and the 64 that they
/// gate: its second box lies F rows further in W.
template <bool kGated, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    tma_up_projection_kernel(const __grid_constant__ CUtensorMap map_x,
                             const __grid_constant__ CUtensorMap map_weight,
                             const UpProblem<H> p) {
    auto& s = gpu::shared_memory<TmaWgmmaSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const int row = tile.first_row + tile.tile * kLines;
    const int line = int(blockIdx.x) * kLines;
    const Operand rows = {p.x, p.row_ids, tile.first_row + tile.rows, p.depth};
    const int column = kGated ? line / 2 : line;
    TmaSums sums;
    multiply<Along::depth, Along::depth>(
        sums, s, {&map_x, row, row + kBoxLines, 0, 0, rows},
        {&map_weight, column, column + (kGated ? p.ffn : kBoxLines), 0, tile.group},
        p.depth);
    finish_up_projection<kGated>(sums, s.a[0][0], p, tile, line);
}

}  // namespace

template <typename H>
void tma_wgmma_up_projection(const UpProblem<H>& problem, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    const unsigned tiles =
        gated ? (problem.ffn + kBoxLines - 1) / kBoxLines : tiles_of(problem.ffn);
    gpu::launch(
        "tma_up_projection_kernel",
        gated ? tma_up_projection_kernel<true, H> : tma_up_projection_kernel<false, H>,
        {dim3(tiles, most_row_tiles(problem.rows, problem.groups)), kThreads,
         sizeof(TmaWgmmaSmem), stream},
        operand_map(problem.x, 1, problem.row_ids == nullptr ? problem.rows : 0,
                    problem.depth),
        operand_map(problem.weight, problem.groups, problem.width(), problem.depth),
        problem);
}

template void tma_wgmma_up_projection(const UpProblem<float>&, cudaStream_t);
template void tma_wgmma_up_projection(const UpProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
