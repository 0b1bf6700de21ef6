// scheduled.cu: products of groups of rows on the fourth rung.

#include <type_traits>

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/pairs.h"
#include "optimized_gpu/grouped_gemm/rung.h"
#include "optimized_gpu/grouped_gemm/tile_order.h"
#include "optimized_gpu/grouped_gemm/tma_store.h"

namespace moe::optimized {
namespace {

using Smem = WideSmem<TmaStaging>;

template <Along kWeight, typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    scheduled_rows_kernel(const __grid_constant__ CUtensorMap map_x,
                          const __grid_constant__ CUtensorMap map_weight,
                          const __grid_constant__ CUtensorMap map_y,
                          const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_in_pairs<Together>(s.ring,
                           RowsProduct<kWeight, Y, RowsInBands, TmaStore>{
                               &map_x, &map_weight, p, s.staging.store(), &map_y});
}

template <typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    scheduled_weight_kernel(const __grid_constant__ CUtensorMap map_dy,
                            const __grid_constant__ CUtensorMap map_x,
                            const __grid_constant__ CUtensorMap map_dweight,
                            const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_in_pairs<Together>(s.ring,
                           WeightProduct<Y, WeightsInColumns, TmaStore>{
                               &map_dy, &map_x, p, s.staging.store(), &map_dweight});
}

}  // namespace

CUtensorMap result_map(const __nv_bfloat16* data, std::int64_t rows, std::int64_t parts,
                       std::int64_t width) {
    if (rows == 0 || width % kChunk != 0) return {};
    gpu::TensorMapShape shape;
    shape.sizes = {std::uint64_t(width), std::uint64_t(parts), std::uint64_t(rows)};
    shape.box = {kSlice, 1, 16};
    shape.swizzle = CU_TENSOR_MAP_SWIZZLE_128B;
    return gpu::make_tensor_map(data, shape);
}

template <Along kWeight, typename Y>
void scheduled_rows(const RowsProblem<Y>& problem, cudaStream_t stream) {
    if constexpr (std::is_same_v<Y, __nv_bfloat16>)
        if (chosen_consumers(problem.depth) == Consumers::ping_pong)
            return ping_pong_rows<kWeight>(problem, stream);
    gpu::launch("scheduled_rows_kernel", scheduled_rows_kernel<kWeight, Y>,
                {paired_blocks(wide_tiles(problem.columns) *
                               most_row_tiles(problem.rows, problem.groups)),
                 kAllThreads, sizeof(Smem), stream, 2},
                rows_map(problem.x, problem.row_ids, problem.rows, problem.depth),
                weight_map<kWeight>(problem),
                result_map(problem.y, problem.rows, 1, problem.columns), problem);
}

template <typename Y>
void scheduled_weight(const WeightProblem<Y>& problem, cudaStream_t stream) {
    gpu::launch("scheduled_weight_kernel", scheduled_weight_kernel<Y>,
                {paired_blocks(wide_tiles(problem.in) *
                               WeightsInColumns::down(problem.out) * problem.groups),
                 kAllThreads, sizeof(Smem), stream, 2},
                rows_map(problem.dy, problem.dy_row_ids, problem.rows, problem.out),
                rows_map(problem.x, problem.x_row_ids, problem.rows, problem.in),
                result_map(problem.dweight, std::int64_t(problem.groups) * problem.out, 1,
                           problem.in),
                problem);
}

template void scheduled_rows<Along::depth>(const RowsProblem<float>&, cudaStream_t);
template void scheduled_rows<Along::depth>(const RowsProblem<__nv_bfloat16>&,
                                           cudaStream_t);
template void scheduled_rows<Along::lines>(const RowsProblem<__nv_bfloat16>&,
                                           cudaStream_t);
template void scheduled_weight(const WeightProblem<float>&, cudaStream_t);
template void scheduled_weight(const WeightProblem<__nv_bfloat16>&, cudaStream_t);

}  // namespace moe::optimized
