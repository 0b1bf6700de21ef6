// scheduled_up_projection.cu: FC1 with the activation in its epilogue, on the fourth
// rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/pairs.h"
#include "optimized_gpu/grouped_gemm/tile_order.h"
#include "optimized_gpu/grouped_gemm/tma_store.h"
#include "optimized_gpu/grouped_gemm/ws_up_product.h"

namespace moe::optimized {
namespace {

using Smem = WideSmem<TmaStaging>;

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    scheduled_up_projection_kernel(const __grid_constant__ CUtensorMap map_x,
                                   const __grid_constant__ CUtensorMap map_weight,
                                   const __grid_constant__ CUtensorMap map_h,
                                   const __grid_constant__ CUtensorMap map_a,
                                   const UpProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    const bool by_tma = p.ffn % kChunk == 0;
    run_in_pairs<Together>(
        s.ring, UpProduct<kGated, H, RowsInBands, TmaStore>{
                    &map_x, &map_weight, p, s.staging.store(), by_tma ? &map_h : nullptr,
                    by_tma ? &map_a : nullptr});
}

}  // namespace

template <typename H>
void scheduled_up_projection(const UpProblem<H>& problem, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    gpu::launch(
        "scheduled_up_projection_kernel",
        gated ? scheduled_up_projection_kernel<true, H>
              : scheduled_up_projection_kernel<false, H>,
        {paired_blocks(up_tiles(problem)), kAllThreads, sizeof(Smem), stream, 2},
        rows_map(problem.x, problem.row_ids, problem.rows, problem.depth),
        operand_map(problem.weight, problem.groups, problem.width(), problem.depth),
        result_map(problem.h, problem.rows, gated ? 2 : 1, problem.ffn),
        result_map(problem.a, problem.rows, 1, problem.ffn), problem);
}

template void scheduled_up_projection(const UpProblem<float>&, cudaStream_t);
template void scheduled_up_projection(const UpProblem<__nv_bfloat16>&, cudaStream_t);

}  // namespace moe::optimized
