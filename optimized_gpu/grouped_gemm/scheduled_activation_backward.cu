// scheduled_activation_backward.cu: FC2's input gradient with the activation's backward
// in its epilogue, on the fourth rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/pairs.h"
#include "optimized_gpu/grouped_gemm/tile_order.h"
#include "optimized_gpu/grouped_gemm/tma_store.h"
#include "optimized_gpu/grouped_gemm/ws_backward_product.h"

namespace moe::optimized {
namespace {

/// Tiles in two halves of 64 columns, whose rows lie as TMA's boxes have them.
struct BoxedTiles {
    static constexpr int kHalf = kLines * kSlice;

    alignas(1024) __nv_bfloat16 gate[2 * kHalf];
    alignas(1024) __nv_bfloat16 up[2 * kHalf];
    alignas(1024) __nv_bfloat16 a[2 * kHalf];

    __device__ static int at(int row, int chunk) {
        return chunk / kBoxChunks * kHalf +
               chunk_at<Along::depth>(row, chunk % kBoxChunks);
    }
};
using Smem = WsBackwardSmem<BoxedTiles>;

/// How the fourth rung stores tiles: as TmaStore does. The next tile's h takes their
/// place, so they are waited for before that is asked for, and not before.
struct TmaRowsStore {
    const CUtensorMap *map_dh, *map_a;

    __device__ void wait() {
        if (lane_index() == 0) ptx::bulk_wait_read<0>();
        __syncwarp();
    }
    __device__ void ready() {
        ptx::fence_proxy_async();
        __syncwarp();
    }
    __device__ void operator()(const __nv_bfloat16* staged,
                               const Target<__nv_bfloat16>& to,
                               const ResultPlace& place) {
        const int first = 16 * warp_index();
        if (to.rows < first + 16) return store_rows<BoxedTiles>(staged, to);
        if (lane_index() != 0) return;
        for (int half = 0; half < 2 && half * kSlice < to.columns; ++half)
            ptx::tma_store_3d(
                place.map, staged + half * BoxedTiles::kHalf + first * kSlice,
                place.column + half * kSlice, place.part, place.row + first);
    }
    __device__ void done() {
        if (lane_index() == 0) ptx::bulk_commit();
        __syncwarp();
    }
};

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    scheduled_activation_backward_kernel(const __grid_constant__ CUtensorMap map_dy,
                                         const __grid_constant__ CUtensorMap map_weight,
                                         const __grid_constant__ CUtensorMap map_dh,
                                         const __grid_constant__ CUtensorMap map_a,
                                         const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_in_pairs<Together>(
        s.ring, BackwardProduct<kGated, H, RowsInBands, BoxedTiles, TmaRowsStore>{
                    &map_dy, &map_weight, p, s, {&map_dh, &map_a}});
}

}  // namespace

template <typename H>
void scheduled_activation_backward(const BackwardProblem<H>& problem,
                                   cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    gpu::launch(
        "scheduled_activation_backward_kernel",
        gated ? scheduled_activation_backward_kernel<true, H>
              : scheduled_activation_backward_kernel<false, H>,
        {paired_blocks(backward_tiles(problem)), kAllThreads, sizeof(Smem), stream, 2},
        rows_map(problem.dy, problem.row_ids, problem.num_rows, problem.depth),
        operand_map(problem.weight, problem.groups, problem.depth, problem.ffn),
        result_map(problem.dh, problem.num_rows, gated ? 2 : 1, problem.ffn),
        result_map(problem.a, problem.num_rows, 1, problem.ffn), problem);
}

template void scheduled_activation_backward(const BackwardProblem<float>&, cudaStream_t);
template void scheduled_activation_backward(const BackwardProblem<__nv_bfloat16>&,
                                            cudaStream_t);

}  // namespace moe::optimized
