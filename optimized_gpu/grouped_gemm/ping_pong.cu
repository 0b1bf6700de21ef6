// ping_pong.cu: products of rows of little depth on the fourth rung.

#include "optimized_gpu/grouped_gemm/ping_pong.h"

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/tile_order.h"
#include "optimized_gpu/grouped_gemm/tma_store.h"

namespace moe::optimized {
namespace {

// TUTORIAL: a warpgroup's 128 registers of sums a thread are 64 x 256 or 128 x 128. Of
// 128 x 128 fewer lines come to shared memory, 256 a stage and not 320; of 64 x 256 wgmma
// reads fewer there, 10 KB and not 12 KB for the same products. Together they move the
// same, and so they do from the second-level cache, where a pair shares the weights. But
// of a group's last rows, which fill no tile, 64 waste half as much.
inline constexpr int kHigh = kBoxLines;

struct Smem {
    Ring<kWideBoxes, 1> ring;
    TmaStaging staging;
};

template <Along kWeight>
__global__ void __launch_bounds__(kAllThreads, 1)
    ping_pong_rows_kernel(const __grid_constant__ CUtensorMap map_x,
                          const __grid_constant__ CUtensorMap map_weight,
                          const __grid_constant__ CUtensorMap map_y,
                          const RowsProblem<__nv_bfloat16> p) {
    auto& s = gpu::shared_memory<Smem>();
    using Product = RowsProduct<kWeight, __nv_bfloat16, RowsInBands, TmaStore, kHigh>;
    run_in_pairs<InTurns>(s.ring,
                          Product{&map_x, &map_weight, p, s.staging.store(), &map_y});
}

}  // namespace

template <Along kWeight>
void ping_pong_rows(const RowsProblem<__nv_bfloat16>& problem, cudaStream_t stream) {
    gpu::launch("ping_pong_rows_kernel", ping_pong_rows_kernel<kWeight>,
                {paired_blocks(wide_tiles(problem.columns) *
                               most_row_tiles(problem.rows, problem.groups, kHigh)),
                 kAllThreads, sizeof(Smem), stream, 2},
                rows_map(problem.x, problem.row_ids, problem.rows, problem.depth),
                weight_map<kWeight>(problem),
                result_map(problem.y, problem.rows, 1, problem.columns), problem);
}

template void ping_pong_rows<Along::depth>(const RowsProblem<__nv_bfloat16>&,
                                           cudaStream_t);
template void ping_pong_rows<Along::lines>(const RowsProblem<__nv_bfloat16>&,
                                           cudaStream_t);

}  // namespace moe::optimized
