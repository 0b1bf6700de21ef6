// ws_activation_backward.cu: FC2's input gradient with the activation's backward in its
// epilogue, on the third rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/ws_backward_product.h"

namespace moe::optimized {
namespace {

using Smem = WsBackwardSmem<BackwardTiles>;

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_activation_backward_kernel(const __grid_constant__ CUtensorMap map_dy,
                                  const __grid_constant__ CUtensorMap map_weight,
                                  const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(
        s.ring, BackwardProduct<kGated, H, RowsInOrder, BackwardTiles, WarpRowsStore>{
                    &map_dy, &map_weight, p, s, {}});
}

}  // namespace

template <typename H>
void warp_specialized_activation_backward(const BackwardProblem<H>& problem,
                                          cudaStream_t stream) {
    gpu::launch(
        "ws_activation_backward_kernel",
        problem.activation.gated ? ws_activation_backward_kernel<true, H>
                                 : ws_activation_backward_kernel<false, H>,
        {persistent_blocks(backward_tiles(problem)), kAllThreads, sizeof(Smem), stream},
        rows_map(problem.dy, problem.row_ids, problem.num_rows, problem.depth),
        operand_map(problem.weight, problem.groups, problem.depth, problem.ffn), problem);
}

template void warp_specialized_activation_backward(const BackwardProblem<float>&,
                                                   cudaStream_t);
template void warp_specialized_activation_backward(const BackwardProblem<__nv_bfloat16>&,
                                                   cudaStream_t);

}  // namespace moe::optimized
