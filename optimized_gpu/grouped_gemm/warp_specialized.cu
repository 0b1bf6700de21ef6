// warp_specialized.cu: products of groups of rows on the third rung.

#include "optimized_gpu/grouped_gemm/warp_specialized.h"

#include "gpu/check.h"
#include "gpu/launch.h"
#include "optimized_gpu/grouped_gemm/problem.h"
#include "optimized_gpu/grouped_gemm/warp_store.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;
constexpr int kTileColumns = 256;

struct Smem {
    Ring<4> ring;
    SliceStaging staging;
};

/// y, in tiles of 128 x 256.
template <Along kWeight, typename Y>
struct RowsProduct {
    static constexpr Along kA = Along::depth, kB = kWeight;
    static constexpr int kBoxes = kTileColumns / kBoxLines;
    using Tile = RowsTile;

    const CUtensorMap *map_x, *map_weight;
    const RowsProblem<Y>& p;
    SliceStaging& staging;

    __device__ bool find(int number, Tile& tile) const {
        return find_rows_tile(p.offsets, p.groups,
                              (p.columns + kTileColumns - 1) / kTileColumns, number,
                              tile);
    }
    // Rows behind the group's last come as well: they make rows that are not stored.
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kTileColumns;
        const Operand rows = {p.x, p.row_ids, tile.rows.first_row + tile.rows.rows,
                              p.depth};
        return {{map_x, row, row + kBoxLines, 0, 0, rows},
                {map_weight, column, column + kTileColumns / 2, 0, tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ void begin(const Tile&) const {}
    __device__ void finish(WarpSums<1, 8 * kBoxes>& sums, const Tile& tile) const {
        finish_rows(sums, WarpStore{staging}, p, tile.rows, tile.column * kTileColumns);
    }
};

template <Along kWeight, typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_rows_kernel(const __grid_constant__ CUtensorMap map_x,
                   const __grid_constant__ CUtensorMap map_weight,
                   const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring,
                         RowsProduct<kWeight, Y>{&map_x, &map_weight, p, s.staging},
                         p.row_ids != nullptr);
}

/// A tile of the dW of one group.
struct WeightTile {
    int group, row, column;
    int first, end;  ///< rows of the group
};

/// dW of all groups, in tiles of 128 x 256; what is summed over are a group's rows.
template <typename Y>
struct WeightProduct {
    static constexpr Along kA = Along::lines, kB = Along::lines;
    static constexpr int kBoxes = kTileColumns / kBoxLines;
    using Tile = WeightTile;

    const CUtensorMap *map_dy, *map_x;
    const WeightProblem<Y>& p;
    SliceStaging& staging;

    __device__ bool find(int number, Tile& tile) const {
        const int across = (p.in + kTileColumns - 1) / kTileColumns;
        const int down = (p.out + kLines - 1) / kLines;
        tile.group = number / (across * down);
        if (tile.group >= p.groups) return false;
        tile.row = number / across % down * kLines;
        tile.column = number % across * kTileColumns;
        tile.first = p.offsets[tile.group];
        tile.end = p.offsets[tile.group + 1];
        return true;
    }
    __device__ TileWork work(const Tile& tile) const {
        const Operand dy = {p.dy, p.dy_row_ids, tile.end, p.out};
        const Operand x = {p.x, p.x_row_ids, tile.end, p.in};
        return {{map_dy, tile.row, tile.row + kBoxLines, tile.first, 0, dy},
                {map_x, tile.column, tile.column + kTileColumns / 2, tile.first, 0, x},
                tile.end - tile.first,
                p.out - tile.row};
    }
    __device__ void begin(const Tile&) const {}
    __device__ void finish(WarpSums<1, 8 * kBoxes>& sums, const Tile& tile) const {
        finish_weight(sums, WarpStore{staging}, p, tile.group, tile.row, tile.column);
    }
};

template <typename Y>
__global__ void __launch_bounds__(kAllThreads, 1)
    ws_weight_kernel(const __grid_constant__ CUtensorMap map_dy,
                     const __grid_constant__ CUtensorMap map_x,
                     const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<Smem>();
    run_warp_specialized(s.ring, WeightProduct<Y>{&map_dy, &map_x, p, s.staging},
                         p.dy_row_ids != nullptr || p.x_row_ids != nullptr);
}

std::int64_t tiles_across(std::int64_t columns) {
    return (columns + kTileColumns - 1) / kTileColumns;
}

}  // namespace

unsigned persistent_blocks(std::int64_t tiles) {
    int device = 0, multiprocessors = 0;
    gpu::check(cudaGetDevice(&device), "device");
    gpu::check(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "device");
    return unsigned(std::min<std::int64_t>(tiles, multiprocessors));
}

template <Along kWeight, typename Y>
void warp_specialized_rows(const RowsProblem<Y>& problem, cudaStream_t stream) {
    const bool forward = kWeight == Along::depth;
    gpu::launch("ws_rows_kernel", ws_rows_kernel<kWeight, Y>,
                {persistent_blocks(tiles_across(problem.columns) *
                                   most_row_tiles(problem.rows, problem.groups)),
                 kAllThreads, sizeof(Smem), stream},
                operand_map(problem.x, 1, problem.row_ids == nullptr ? problem.rows : 0,
                            problem.depth),
                operand_map(problem.weight, problem.groups,
                            forward ? problem.columns : problem.depth,
                            forward ? problem.depth : problem.columns),
                problem);
}

template <typename Y>
void warp_specialized_weight(const WeightProblem<Y>& problem, cudaStream_t stream) {
    const auto map = [&](const bf16* data, const int* row_ids, int width) {
        return operand_map(data, 1, row_ids == nullptr ? problem.rows : 0, width);
    };
    gpu::launch("ws_weight_kernel", ws_weight_kernel<Y>,
                {persistent_blocks(tiles_across(problem.in) * tiles_of(problem.out) *
                                   problem.groups),
                 kAllThreads, sizeof(Smem), stream},
                map(problem.dy, problem.dy_row_ids, problem.out),
                map(problem.x, problem.x_row_ids, problem.in), problem);
}

template void warp_specialized_rows<Along::depth>(const RowsProblem<float>&,
                                                  cudaStream_t);
template void warp_specialized_rows<Along::depth>(const RowsProblem<bf16>&, cudaStream_t);
template void warp_specialized_rows<Along::lines>(const RowsProblem<bf16>&, cudaStream_t);
template void warp_specialized_weight(const WeightProblem<float>&, cudaStream_t);
template void warp_specialized_weight(const WeightProblem<bf16>&, cudaStream_t);

}  // namespace moe::optimized
