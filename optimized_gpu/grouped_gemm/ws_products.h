/// @file
/// The products of grouped_gemm.h as blocks that stay make them, tile by tile: what the
/// third and the fourth rung have in common.
#pragma once

#include "optimized_gpu/grouped_gemm/problem.h"
#include "optimized_gpu/grouped_gemm/warp_specialized.h"
#include "optimized_gpu/grouped_gemm/warp_store.h"

namespace moe::optimized {

inline constexpr int kWideColumns = 256;  ///< of a tile, whose rows are kLines
inline constexpr int kWideBoxes = kWideColumns / kBoxLines;
using WideSums = WarpSums<1, kWideColumns / 8>;

/// @tparam Staging  of the warps' slices: SliceStaging or TmaStaging
template <typename Staging>
struct WideSmem {
    Ring<kWideBoxes> ring;
    Staging staging;
};

/// A tile of kHigh rows of a group, and of columns.
template <int kHigh = kLines>
struct RowsTile {
    GroupTile rows;
    int column;  ///< number of the tile of columns
    __device__ int first_row() const { return rows.first_row + rows.tile * kHigh; }
    __device__ int rows_left() const { return rows.rows - rows.tile * kHigh; }
    /// Rows of an operand, to the group's end.
    template <typename Problem>
    __device__ Operand operand(const __nv_bfloat16* data, const Problem& p) const {
        return {data, p.row_ids, rows.first_row + rows.rows, p.depth};
    }
    /// The same weights are multiplied.
    __device__ bool shares(const RowsTile& other) const {
        return rows.group == other.rows.group && column == other.column;
    }
};

/// Tile `number` of those of all groups, tiles of columns side by side. All lanes.
struct RowsInOrder {
    template <int kHigh>
    __device__ static bool find(const int* offsets, int groups, int across, int number,
                                RowsTile<kHigh>& tile) {
        tile.rows = find_tile(offsets, groups, number / across, kHigh);
        tile.column = number % across;
        return tile.rows.group >= 0;
    }
};

/// y, in tiles of kHigh x 256.
/// @tparam Order  which tile has which number, see RowsInOrder
/// @tparam Store  see WarpStore
/// @tparam kHigh  128, or 64 where each warpgroup has tiles of its own
template <Along kWeight, typename Y, typename Order, typename Store, int kHigh = kLines>
struct RowsProduct {
    static constexpr Along kA = Along::depth, kB = kWeight;
    static constexpr int kBoxes = kWideBoxes;
    using Tile = RowsTile<kHigh>;

    const CUtensorMap *map_x, *map_weight;
    const RowsProblem<Y>& p;
    Store store;
    const CUtensorMap* map_y = nullptr;  ///< of what TMA stores

    __device__ bool gathers() const { return p.row_ids != nullptr; }
    __device__ bool find(int number, Tile& tile) const {
        return Order::find(p.offsets, p.groups,
                           (p.columns + kWideColumns - 1) / kWideColumns, number, tile);
    }
    // Rows behind the group's last come as well: they make rows that are not stored.
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kWideColumns;
        return {{map_x, row, row + kBoxLines, 0, 0, tile.operand(p.x, p)},
                {map_weight, column, column + kWideColumns / 2, 0, tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ void begin(const Tile&) {}
    // TUTORIAL: warp w has rows 16 w to 16 w + 15 of a block's tile. Where its warpgroup
    // has a tile of its own, the second one's is counted from 64 rows further up, which
    // belong to none of its warps.
    __device__ void finish(WideSums& sums, const Tile& tile) {
        const int column = tile.column * kWideColumns;
        const int above = kHigh == kLines ? 0 : 16 * warp_index() / kHigh * kHigh;
        const GroupTile rows = {tile.rows.group, tile.first_row() - above,
                                tile.rows_left() + above};
        finish_rows(
            sums,
            [&](const WideSums&, const Target<Y>& to) {
                const bool by_tma = p.columns % kChunk == 0;
                store_slices(store, sums, to,
                             {by_tma ? map_y : nullptr, column, 0, rows.first_row});
            },
            p, rows, column);
    }
    __device__ void end() { store.end(); }
};

/// A tile of the dW of one group.
struct WeightTile {
    int group, row, column;
    int first, end;  ///< rows of the group
    /// The same columns of x are multiplied.
    __device__ bool shares(const WeightTile& other) const {
        return group == other.group && column == other.column;
    }
};

/// How many tiles of 128 x 256 a dW has, and which has which number: columns side by
/// side.
struct WeightsInOrder {
    __device__ static void place(int number, int across, int, WeightTile& tile) {
        tile.row = number / across * kLines;
        tile.column = number % across * kWideColumns;
    }
    __host__ __device__ static int down(int out) { return (out + kLines - 1) / kLines; }
};

/// dW of all groups, in tiles of 128 x 256; what is summed over are a group's rows.
template <typename Y, typename Order, typename Store>
struct WeightProduct {
    static constexpr Along kA = Along::lines, kB = Along::lines;
    static constexpr int kBoxes = kWideBoxes;
    using Tile = WeightTile;

    const CUtensorMap *map_dy, *map_x;
    const WeightProblem<Y>& p;
    Store store;
    const CUtensorMap* map_dweight = nullptr;  ///< of what TMA stores

    __device__ bool gathers() const {
        return p.dy_row_ids != nullptr || p.x_row_ids != nullptr;
    }
    __device__ bool find(int number, Tile& tile) const {
        const int across = (p.in + kWideColumns - 1) / kWideColumns;
        const int tiles = across * Order::down(p.out);
        tile.group = number / tiles;
        if (tile.group >= p.groups) return false;
        Order::place(number % tiles, across, Order::down(p.out), tile);
        tile.first = p.offsets[tile.group];
        tile.end = p.offsets[tile.group + 1];
        return true;
    }
    __device__ TileWork work(const Tile& tile) const {
        const Operand dy = {p.dy, p.dy_row_ids, tile.end, p.out};
        const Operand x = {p.x, p.x_row_ids, tile.end, p.in};
        return {{map_dy, tile.row, tile.row + kBoxLines, tile.first, 0, dy},
                {map_x, tile.column, tile.column + kWideColumns / 2, tile.first, 0, x},
                tile.end - tile.first,
                p.out - tile.row};
    }
    __device__ void begin(const Tile&) {}
    __device__ void finish(WideSums& sums, const Tile& tile) {
        finish_weight(
            sums,
            [&](const WideSums&, const Target<Y>& to) {
                store_slices(
                    store, sums, to,
                    {map_dweight, tile.column, 0, tile.group * p.out + tile.row});
            },
            p, tile.group, tile.row, tile.column);
    }
    __device__ void end() { store.end(); }
};

inline std::int64_t wide_tiles(std::int64_t columns) {
    return (columns + kWideColumns - 1) / kWideColumns;
}

/// The map of rows that are not gathered.
inline CUtensorMap rows_map(const __nv_bfloat16* data, const int* row_ids,
                            std::int64_t rows, std::int64_t width) {
    return operand_map(data, 1, row_ids == nullptr ? rows : 0, width);
}
template <Along kWeight, typename Y>
CUtensorMap weight_map(const RowsProblem<Y>& p) {
    const bool forward = kWeight == Along::depth;
    return operand_map(p.weight, p.groups, forward ? p.columns : p.depth,
                       forward ? p.depth : p.columns);
}

}  // namespace moe::optimized
