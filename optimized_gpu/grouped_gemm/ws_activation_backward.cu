// ws_activation_backward.cu: FC2's input gradient with the activation's backward in its
// epilogue, on the third rung.

#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/activation_backward.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/warp_specialized.h"
#include "optimized_gpu/grouped_gemm/warp_store.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

struct Smem {
    Ring<2> ring;
    BackwardTiles tiles;
    float row_sums[1][kLines];
};

// TUTORIAL: the epilogue holds h, its gradients and a of an element at once, in registers
// and in shared memory, so a tile is 128 x 128 here. What it needs of h is asked for
// before the products begin, and is there when they end.
/// dh, a and the parts of dp, in tiles of 128 x 128 of da.
template <bool kGated, typename H>
struct BackwardProduct {
    static constexpr Along kA = Along::depth, kB = Along::lines;
    static constexpr int kBoxes = kLines / kBoxLines;
    using Tile = RowsTile;

    const CUtensorMap *map_dy, *map_weight;
    const BackwardProblem<H>& p;
    Smem& s;

    __device__ bool find(int number, Tile& tile) const {
        return find_rows_tile(p.offsets, p.groups, (p.ffn + kLines - 1) / kLines, number,
                              tile);
    }
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kLines;
        const Operand rows = {p.dy, p.row_ids, tile.rows.first_row + tile.rows.rows,
                              p.depth};
        return {{map_dy, row, row + kBoxLines, 0, 0, rows},
                {map_weight, column, column + kBoxLines, 0, tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ BlockPart part_of(const Tile& tile) const {
        const int column = tile.column * kLines;
        return {tile.first_row(), column, tile.rows_left(), p.ffn - column};
    }

    /// Asks for the warp's rows of h, where its gradients will lie.
    __device__ void begin(const Tile& tile) const {
        if constexpr (sizeof(H) == sizeof(bf16)) {
            const BlockPart part = part_of(tile);
            load_half(s.tiles.gate, part, part.column);
            if constexpr (kGated) load_half(s.tiles.up, part, p.ffn + part.column);
            ptx::cp_async_commit();
        }
    }
    /// @param column  of h
    __device__ void load_half(bf16* staged, const BlockPart& part, int column) const {
        constexpr int kChunks = kLines / kChunk;
        for (int i = lane_index(); i < 16 * kChunks; i += kLanes) {
            const int row = 16 * warp_index() + i / kChunks, chunk = i % kChunks;
            const bool inside = row < part.rows && column + chunk * kChunk < p.width();
            const std::int64_t at =
                inside ? (part.row + row) * p.width() + column + chunk * kChunk : 0;
            ptx::cp_async<16>(staged + chunk_at<Along::lines>(row, chunk), p.h + at,
                              inside ? 16 : 0);
        }
    }

    __device__ void finish(WarpSums<1, 8 * kBoxes>& da, const Tile& tile) const {
        const BlockPart part = part_of(tile);
        ptx::cp_async_wait<0>();
        __syncwarp();
        backward_tile<kGated>(da, s.tiles, s.row_sums, p, part);
        __syncwarp();
        const int width = p.width();
        bf16* const dh = p.dh + part.row * width + part.column;
        store(s.tiles.gate, {dh, width, part.rows, part.columns});
        if constexpr (kGated)
            store(s.tiles.up, {dh + p.ffn, width, part.rows, part.columns});
        store(s.tiles.a,
              {p.a + part.row * p.ffn + part.column, p.ffn, part.rows, part.columns});
        const int row = 16 * warp_index() + lane_index();
        if (lane_index() < 16 && row < part.rows)
            p.dp[tile.column * p.num_rows + part.row + row] = s.row_sums[0][row];
        __syncwarp();
    }
    /// Writes the warp's rows of a tile. @param to  the block's
    __device__ void store(const bf16* staged, const Target<bf16>& to) const {
        const int first = 16 * warp_index();
        store_warp_rows<kLines / kChunk>(
            {to.data + first * to.width, to.width, to.rows - first, to.columns},
            [&](int row, int chunk) {
                return staged + chunk_at<Along::lines>(first + row, chunk);
            });
    }
};

template <bool kGated, typename H>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_activation_backward_kernel(const __grid_constant__ CUtensorMap map_dy,
                                  const __grid_constant__ CUtensorMap map_weight,
                                  const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, BackwardProduct<kGated, H>{&map_dy, &map_weight, p, s},
                         p.row_ids != nullptr);
}

}  // namespace

template <typename H>
void warp_specialized_activation_backward(const BackwardProblem<H>& problem,
                                          cudaStream_t stream) {
    gpu::launch(
        "ws_activation_backward_kernel",
        problem.activation.gated ? ws_activation_backward_kernel<true, H>
                                 : ws_activation_backward_kernel<false, H>,
        {persistent_blocks(std::int64_t(tiles_of(problem.ffn)) *
                           most_row_tiles(problem.num_rows, problem.groups)),
         kAllThreads, sizeof(Smem), stream},
        operand_map(problem.dy, 1, problem.row_ids == nullptr ? problem.num_rows : 0,
                    problem.depth),
        operand_map(problem.weight, problem.groups, problem.depth, problem.ffn), problem);
}

template void warp_specialized_activation_backward(const BackwardProblem<float>&,
                                                   cudaStream_t);
template void warp_specialized_activation_backward(const BackwardProblem<bf16>&,
                                                   cudaStream_t);

}  // namespace moe::optimized
