/// @file
/// FC1 with the activation in its epilogue as blocks that stay make it: what the third
/// and the fourth rung have in common.
#pragma once

#include "optimized_gpu/grouped_gemm/up_projection.h"
#include "optimized_gpu/grouped_gemm/ws_products.h"

namespace moe::optimized {

// TUTORIAL: of a gated unit a tile is 128 gates and the 128 that they gate: two boxes of
// W, and two F rows further. wgmma leaves columns j and j + 128 of a row in one thread,
// so act(gate) * up needs no other lane, and W stays as checkpoints have it.
/// h and a, in tiles of 128 rows by 256 lines of W.
/// @tparam Order, Store  see RowsProduct
template <bool kGated, typename H, typename Order, typename Store>
struct UpProduct {
    static constexpr Along kA = Along::depth, kB = Along::depth;
    static constexpr int kBoxes = kWideBoxes;
    static constexpr int kColumns = kGated ? kWideColumns / 2 : kWideColumns;  // of a
    using Tile = RowsTile<>;
    using Up = UpTile<kGated, 1, kWideColumns / 8>;

    const CUtensorMap *map_x, *map_weight;
    const UpProblem<H>& p;
    Store store;
    const CUtensorMap *map_h = nullptr, *map_a = nullptr;  ///< of what TMA stores

    __device__ bool gathers() const { return p.row_ids != nullptr; }
    __device__ bool find(int number, Tile& tile) const {
        return Order::find(p.offsets, p.groups, (p.ffn + kColumns - 1) / kColumns, number,
                           tile);
    }
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kColumns;
        return {{map_x, row, row + kBoxLines, 0, 0, tile.operand(p.x, p)},
                {map_weight, column, column + (kGated ? p.ffn : kWideColumns / 2), 0,
                 tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ void begin(const Tile&) {}

    /// Writes the warp's part of h, or of a: the first kSlices slices of 64 lines.
    template <int kSlices, typename Y>
    __device__ void store_part(const Up& up, Y* target, int width,
                               const CUtensorMap* map) {
        const int row = 16 * warp_index();
#pragma unroll
        for (int slice = 0; slice < kSlices; ++slice) {
            const int column = up.column_of_h(slice * kSlice);
            if (column < 0) continue;
            const int part = column >= p.ffn;  // of h: gates, and what they gate
            store.slice(up.sums, slice,
                        Target<Y>{target + (up.row + row) * width + column, width,
                                  up.rows - row, up.left_of(column)},
                        {map, column - part * p.ffn, part, int(up.row) + row});
        }
    }
    __device__ void finish(typename Up::Sums& sums, const Tile& tile) {
        Up up = {sums, tile.first_row(), tile.rows_left(), tile.column * kWideColumns,
                 p.ffn};
        up.add_bias(p.bias == nullptr
                        ? nullptr
                        : p.bias + std::int64_t(tile.rows.group) * p.width());
        store_part<kWideColumns / kSlice>(up, p.h, p.width(), map_h);
        up.activate(p.activation, p.row_probs);
        store_part<kColumns / kSlice>(up, p.a, p.ffn, map_a);
    }
    __device__ void end() {
        store.end();
    }
};

/// Tiles of all columns.
template <typename H>
std::int64_t up_tiles(const UpProblem<H>& p) {
    return wide_tiles(p.activation.gated ? 2 * std::int64_t(p.ffn) : p.ffn) *
           most_row_tiles(p.rows, p.groups);
}

}  // namespace moe::optimized
