// ws_up_projection.cu: FC1 with the activation in its epilogue, on the third rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/up_projection.h"
#include "optimized_gpu/grouped_gemm/warp_specialized.h"
#include "optimized_gpu/grouped_gemm/warp_store.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kTileLines = 256;  // of W: rows of h's tile are 128, its columns these

struct Smem {
    Ring<4> ring;
    SliceStaging staging;
};

// TUTORIAL: of a gated unit a tile is 128 gates and the 128 that they gate: two boxes of
// W, and two F rows further. wgmma leaves columns j and j + 128 of a row in one thread,
// so act(gate) * up needs no other lane, and W stays as checkpoints have it.
/// h and a, in tiles of 128 rows by 256 lines of W.
template <bool kGated, typename H>
struct UpProduct {
    static constexpr Along kA = Along::depth, kB = Along::depth;
    static constexpr int kBoxes = kTileLines / kBoxLines;
    static constexpr int kColumns = kGated ? kTileLines / 2 : kTileLines;  // of a
    using Tile = RowsTile;

    const CUtensorMap *map_x, *map_weight;
    const UpProblem<H>& p;
    SliceStaging& staging;

    __device__ bool find(int number, Tile& tile) const {
        return find_rows_tile(p.offsets, p.groups, (p.ffn + kColumns - 1) / kColumns,
                              number, tile);
    }
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kColumns;
        const Operand rows = {p.x, p.row_ids, tile.rows.first_row + tile.rows.rows,
                              p.depth};
        return {{map_x, row, row + kBoxLines, 0, 0, rows},
                {map_weight, column, column + (kGated ? p.ffn : kTileLines / 2), 0,
                 tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ void begin(const Tile&) const {}

    using Up = UpTile<kGated, 1, 8 * kBoxes>;
    /// Writes the warp's part of h, or of a: slices of 64 lines, the first `slices`.
    template <int kSlices, typename Y>
    __device__ void store(const Up& up, Y* target, int width) const {
        const int row = 16 * warp_index();
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
            const int column = up.column_of_h(slice * kSlice);
            if (column < 0) continue;
            store_slice(staging.slices[warp_index()], up.sums, slice,
                        Target<Y>{target + (up.row + row) * width + column, width,
                                  up.rows - row, up.left_of(column)});
        }
    }
    __device__ void finish(typename Up::Sums& sums, const Tile& tile) const {
        Up up = {sums, tile.first_row(), tile.rows_left(), tile.column * kTileLines,
                 p.ffn};
        up.add_bias(p.bias == nullptr
                        ? nullptr
                        : p.bias + std::int64_t(tile.rows.group) * p.width());
        store<kTileLines / kSlice>(up, p.h, p.width());
        up.activate(p.activation, p.row_probs);
        store<kColumns / kSlice>(up, p.a, p.ffn);
    }
};

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_up_projection_kernel(const __grid_constant__ CUtensorMap map_x,
                            const __grid_constant__ CUtensorMap map_weight,
                            const UpProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, UpProduct<kGated, H>{&map_x, &map_weight, p, s.staging},
                         p.row_ids != nullptr);
}

}  // namespace

template <typename H>
void warp_specialized_up_projection(const UpProblem<H>& problem, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    const int columns = gated ? kTileLines / 2 : kTileLines;
    const std::int64_t across = (problem.ffn + columns - 1) / columns;
    gpu::launch(
        "ws_up_projection_kernel",
        gated ? ws_up_projection_kernel<true, H> : ws_up_projection_kernel<false, H>,
        {persistent_blocks(across * most_row_tiles(problem.rows, problem.groups)),
         kAllThreads, sizeof(Smem), stream},
        operand_map(problem.x, 1, problem.row_ids == nullptr ? problem.rows : 0,
                    problem.depth),
        operand_map(problem.weight, problem.groups, problem.width(), problem.depth),
        problem);
}

template void warp_specialized_up_projection(const UpProblem<float>&, cudaStream_t);
template void warp_specialized_up_projection(const UpProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
