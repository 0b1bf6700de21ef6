/// @file
/// In which order the fourth rung makes tiles.
#pragma once

#include "optimized_gpu/grouped_gemm/ws_products.h"

namespace moe::optimized {

// TUTORIAL: 132 multiprocessors work on 132 tiles that follow each other. Side by side
// they would need every column of W for few rows; in bands of 8 row tiles, column by
// column, they are some 8 x 16: the same rows and the same weights are read again while
// they are in the second-level cache. A model: for 16 tiles of columns those 132 tiles
// load 8 x 128 rows and 16 x 256 columns from memory once.
inline constexpr int kBandRows = 8 * kLines;

/// Groups one after the other; of a group, bands of 1024 rows; of a band, one column
/// after the other. Neighbours mostly have the same weights.
struct RowsInBands {
    template <int kHigh>
    __device__ static bool find(const int* offsets, int groups, int across, int number,
                                RowsTile<kHigh>& tile) {
        constexpr int kBandTiles = kBandRows / kHigh;
        if (!RowsInOrder::find(offsets, groups, across, number, tile)) return false;
        const int down = (tile.rows.rows + kHigh - 1) / kHigh;
        const int in_group = tile.rows.tile * across + tile.column;
        const int first = in_group / (kBandTiles * across) * kBandTiles;
        const int high = min(kBandTiles, down - first);
        const int in_band = in_group - first * across;
        tile.rows.tile = first + in_band % high;
        tile.column = in_band / high;
        return true;
    }
};

/// One column of tiles after the other, each an even number high: a pair has the same
/// columns and the same depth, and the last may have nothing to do.
struct WeightsInColumns {
    __device__ static void place(int number, int, int down, WeightTile& tile) {
        tile.row = number % down * kLines;
        tile.column = number / down * kWideColumns;
    }
    __host__ __device__ static int down(int out) {
        return (out + 2 * kLines - 1) / (2 * kLines) * 2;
    }
};

}  // namespace moe::optimized
