// tma_activation_backward.cu: FC2's input gradient with the activation's backward in its
// epilogue, on the second rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/activation_backward.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/tma_wgmma.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;
using Smem = BackwardSmem<TmaWgmmaSmem, 1>;
static_assert(sizeof(BackwardTiles) <= offsetof(TmaWgmmaSmem, full),
              "results lie over tiles, not over mbarriers");

/// One block per tile of da.
template <bool kGated, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    tma_activation_backward_kernel(const __grid_constant__ CUtensorMap map_dy,
                                   const __grid_constant__ CUtensorMap map_weight,
                                   const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const int row = tile.first_row + tile.tile * kLines;
    const int column = int(blockIdx.x) * kLines;
    const Operand rows = {p.dy, p.row_ids, tile.first_row + tile.rows, p.depth};
    TmaSums da;
    multiply<Along::depth, Along::lines>(
        da, s.operands, {&map_dy, row, row + kBoxLines, 0, 0, rows},
        {&map_weight, column, column + kBoxLines, 0, tile.group}, p.depth);
    finish_activation_backward<kGated, kChunk>(da, s, p, tile, column);
}

}  // namespace

template <typename H>
void tma_wgmma_activation_backward(const BackwardProblem<H>& problem,
                                   cudaStream_t stream) {
    gpu::launch(
        "tma_activation_backward_kernel",
        problem.activation.gated ? tma_activation_backward_kernel<true, H>
                                 : tma_activation_backward_kernel<false, H>,
        {dim3(tiles_of(problem.ffn), most_row_tiles(problem.num_rows, problem.groups)),
         kThreads, sizeof(Smem), stream},
        operand_map(problem.dy, 1, problem.row_ids == nullptr ? problem.num_rows : 0,
                    problem.depth),
        operand_map(problem.weight, problem.groups, problem.depth, problem.ffn), problem);
}

template void tma_wgmma_activation_backward(const BackwardProblem<float>&, cudaStream_t);
template void tma_wgmma_activation_backward(const BackwardProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
