/// @file
/// FC2's input gradient with the activation's backward in its epilogue as blocks that
/// stay make it: what the third and the fourth rung have in common.
#pragma once

#include "optimized_gpu/grouped_gemm/activation_backward.h"
#include "optimized_gpu/grouped_gemm/ws_products.h"

namespace moe::optimized {

/// @tparam Tiles  BackwardTiles, or such with another place for each chunk
template <typename Tiles>
struct WsBackwardSmem {
    Ring<2> ring;
    Tiles tiles;
    float row_sums[1][kLines];
};

// TUTORIAL: the epilogue holds h, its gradients and a of an element at once, in registers
// and in shared memory, so a tile is 128 x 128 here. What it needs of h is asked for
// before the products begin, and is there when they end.
/// dh, a and the parts of dp, in tiles of 128 x 128 of da.
/// @tparam Order  see RowsProduct
/// @tparam Store  stores the warp's rows of a tile, see WarpRowsStore
template <bool kGated, typename H, typename Order, typename Tiles, typename Store>
struct BackwardProduct {
    static constexpr Along kA = Along::depth, kB = Along::lines;
    static constexpr int kBoxes = kLines / kBoxLines;
    using Tile = RowsTile<>;

    const CUtensorMap *map_dy, *map_weight;
    const BackwardProblem<H>& p;
    WsBackwardSmem<Tiles>& s;
    Store store;

    __device__ bool gathers() const { return p.row_ids != nullptr; }
    __device__ bool find(int number, Tile& tile) const {
        return Order::find(p.offsets, p.groups, (p.ffn + kLines - 1) / kLines, number,
                           tile);
    }
    __device__ TileWork work(const Tile& tile) const {
        const int row = tile.first_row(), column = tile.column * kLines;
        return {{map_dy, row, row + kBoxLines, 0, 0, tile.operand(p.dy, p)},
                {map_weight, column, column + kBoxLines, 0, tile.rows.group},
                p.depth,
                tile.rows_left()};
    }
    __device__ BlockPart part_of(const Tile& tile) const {
        const int column = tile.column * kLines;
        return {tile.first_row(), column, tile.rows_left(), p.ffn - column};
    }

    /// Asks for the warp's rows of h, where its gradients will lie.
    __device__ void begin(const Tile& tile) {
        store.wait();
        if constexpr (sizeof(H) == sizeof(__nv_bfloat16)) {
            const BlockPart part = part_of(tile);
            load_half(s.tiles.gate, part, part.column);
            if constexpr (kGated) load_half(s.tiles.up, part, p.ffn + part.column);
            ptx::cp_async_commit();
        }
    }
    /// @param column  of h
    __device__ void load_half(__nv_bfloat16* staged, const BlockPart& part,
                              int column) const {
        constexpr int kChunks = kLines / kChunk;
        for (int i = lane_index(); i < 16 * kChunks; i += kLanes) {
            const int row = 16 * warp_index() + i / kChunks, chunk = i % kChunks;
            const bool inside = row < part.rows && column + chunk * kChunk < p.width();
            const std::int64_t at =
                inside ? (part.row + row) * p.width() + column + chunk * kChunk : 0;
            ptx::cp_async<16>(staged + Tiles::at(row, chunk), p.h + at, inside ? 16 : 0);
        }
    }

    __device__ void finish(WarpSums<1, 8 * kBoxes>& da, const Tile& tile) {
        const BlockPart part = part_of(tile);
        ptx::cp_async_wait<0>();
        __syncwarp();
        backward_tile<kGated>(da, s.tiles, s.row_sums, p, part);
        store.ready();
        const int width = p.width(), first = int(part.row);
        __nv_bfloat16* const dh = p.dh + part.row * width + part.column;
        store(s.tiles.gate, {dh, width, part.rows, part.columns},
              {store.map_dh, part.column, 0, first});
        if constexpr (kGated)
            store(s.tiles.up, {dh + p.ffn, width, part.rows, part.columns},
                  {store.map_dh, part.column, 1, first});
        store(s.tiles.a,
              {p.a + part.row * p.ffn + part.column, p.ffn, part.rows, part.columns},
              {store.map_a, part.column, 0, first});
        const int row = 16 * warp_index() + lane_index();
        if (lane_index() < 16 && row < part.rows)
            p.dp[tile.column * p.num_rows + part.row + row] = s.row_sums[0][row];
        store.done();
    }
    __device__ void end() { store.wait(); }
};

/// Writes the warp's rows of a tile of 128 x 128 that lies in shared memory.
/// @param to  the block's
template <typename Tiles>
__device__ void store_rows(const __nv_bfloat16* staged, const Target<__nv_bfloat16>& to) {
    const int first = 16 * warp_index();
    store_warp_rows<kLines / kChunk>(
        {to.data + first * to.width, to.width, to.rows - first, to.columns},
        [&](int row, int chunk) { return staged + Tiles::at(first + row, chunk); });
}

/// How the third rung stores tiles. All lanes.
struct WarpRowsStore {
    const CUtensorMap *map_dh = nullptr, *map_a = nullptr;

    /// Until what was stored before may be overwritten.
    __device__ void wait() {}
    /// The tiles have been put together.
    __device__ void ready() { __syncwarp(); }
    __device__ void operator()(const __nv_bfloat16* staged,
                               const Target<__nv_bfloat16>& to, const ResultPlace&) {
        store_rows<BackwardTiles>(staged, to);
    }
    /// All of a tile's stores have been asked for.
    __device__ void done() { __syncwarp(); }
};

template <typename H>
std::int64_t backward_tiles(const BackwardProblem<H>& p) {
    return std::int64_t(tiles_of(p.ffn)) * most_row_tiles(p.num_rows, p.groups);
}

}  // namespace moe::optimized
