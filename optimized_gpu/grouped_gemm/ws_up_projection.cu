// ws_up_projection.cu: FC1 with the activation in its epilogue, on the third rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/ws_up_product.h"

namespace moe::optimized {
namespace {

using Smem = WideSmem<SliceStaging>;

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_up_projection_kernel(const __grid_constant__ CUtensorMap map_x,
                            const __grid_constant__ CUtensorMap map_weight,
                            const UpProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, UpProduct<kGated, H, RowsInOrder, WarpStore>{
                                     &map_x, &map_weight, p, s.staging.store()});
}

}  // namespace

template <typename H>
void warp_specialized_up_projection(const UpProblem<H>& problem, cudaStream_t stream) {
    gpu::launch(
        "ws_up_projection_kernel",
        problem.activation.gated ? ws_up_projection_kernel<true, H>
                                 : ws_up_projection_kernel<false, H>,
        {persistent_blocks(up_tiles(problem)), kAllThreads, sizeof(Smem), stream},
        rows_map(problem.x, problem.row_ids, problem.rows, problem.depth),
        operand_map(problem.weight, problem.groups, problem.width(), problem.depth),
        problem);
}

template void warp_specialized_up_projection(const UpProblem<float>&, cudaStream_t);
template void warp_specialized_up_projection(const UpProblem<__nv_bfloat16>&,
                                             cudaStream_t);

}  // namespace moe::optimized
