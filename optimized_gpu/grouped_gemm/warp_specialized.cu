// warp_specialized.cu: products of groups of rows on the third rung.

#include "optimized_gpu/grouped_gemm/warp_specialized.h"

#include "gpu/check.h"
#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/ws_products.h"

namespace moe::optimized {
namespace {

using Smem = WideSmem<SliceStaging>;

template <Along kWeight, typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_rows_kernel(const __grid_constant__ CUtensorMap map_x,
                   const __grid_constant__ CUtensorMap map_weight,
                   const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, RowsProduct<kWeight, Y, RowsInOrder, WarpStore>{
                                     &map_x, &map_weight, p, s.staging.store()});
}

template <typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_weight_kernel(const __grid_constant__ CUtensorMap map_dy,
                     const __grid_constant__ CUtensorMap map_x,
                     const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, WeightProduct<Y, WeightsInOrder, WarpStore>{
                                     &map_dy, &map_x, p, s.staging.store()});
}

}  // namespace

unsigned multiprocessors() {
    int device = 0, count = 0;
    gpu::check(cudaGetDevice(&device), "device");
    gpu::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
               "device");
    return unsigned(count);
}

template <Along kWeight, typename Y>
void warp_specialized_rows(const RowsProblem<Y>& problem, cudaStream_t stream) {
    gpu::launch("ws_rows_kernel", ws_rows_kernel<kWeight, Y>,
                {persistent_blocks(wide_tiles(problem.columns) *
                                   most_row_tiles(problem.rows, problem.groups)),
                 kAllThreads, sizeof(Smem), stream},
                rows_map(problem.x, problem.row_ids, problem.rows, problem.depth),
                weight_map<kWeight>(problem), problem);
}

template <typename Y>
void warp_specialized_weight(const WeightProblem<Y>& problem, cudaStream_t stream) {
    gpu::launch("ws_weight_kernel", ws_weight_kernel<Y>,
                {persistent_blocks(wide_tiles(problem.in) * tiles_of(problem.out) *
                                   problem.groups),
                 kAllThreads, sizeof(Smem), stream},
                rows_map(problem.dy, problem.dy_row_ids, problem.rows, problem.out),
                rows_map(problem.x, problem.x_row_ids, problem.rows, problem.in),
                problem);
}

template void warp_specialized_rows<Along::depth>(const RowsProblem<float>&,
                                                  cudaStream_t);
template void warp_specialized_rows<Along::depth>(const RowsProblem<__nv_bfloat16>&,
                                                  cudaStream_t);
template void warp_specialized_rows<Along::lines>(const RowsProblem<__nv_bfloat16>&,
                                                  cudaStream_t);
template void warp_specialized_weight(const WeightProblem<float>&, cudaStream_t);
template void warp_specialized_weight(const WeightProblem<__nv_bfloat16>&, cudaStream_t);

}  // namespace moe::optimized
