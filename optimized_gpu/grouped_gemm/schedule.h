/// @file
/// Which tile of which group is a block's, found on the device.
#pragma once

#include <cuda_runtime.h>

namespace moe::optimized {

/// A tile of rows of one group.
struct GroupTile {
    int group = -1;     ///< -1: there are fewer tiles
    int first_row = 0;  ///< of the group, among all rows
    int rows = 0;       ///< of the group
    int tile = 0;       ///< in the group
};

// TUTORIAL: the host does not know how many rows each expert got, and asking would cost a
// wait. It starts as many blocks as there can be tiles at the most, and each looks for
// its own: a warp reads 32 offsets at once, adds up the tiles before them by shuffles,
// and the first lane whose sum is beyond the block's number has the group.
/// Tile number `wanted`, counted over all groups. All lanes of a warp, which get the
/// same.
/// @param offsets  (groups + 1)
/// @param lines    rows of a tile
__device__ inline GroupTile find_tile(const int* offsets, int groups, int wanted,
                                      int lines) {
    constexpr unsigned kAll = 0xffffffffu;
    const int lane = int(threadIdx.x) % 32;
    int before = 0;  // tiles of the groups behind us
    for (int base = 0; base < groups; base += 32) {
        const int group = base + lane;
        const int begin = offsets[group < groups ? group : groups];
        const int end = offsets[group < groups ? group + 1 : groups];
        const int tiles = (end - begin + lines - 1) / lines;
        int sum = tiles;
        for (int apart = 1; apart < 32; apart *= 2) {
            const int other = __shfl_up_sync(kAll, sum, apart);
            if (lane >= apart) sum += other;
        }
        const unsigned beyond = __ballot_sync(kAll, wanted < before + sum);
        if (beyond != 0) {
            const int found = __ffs(int(beyond)) - 1;
            GroupTile result;
            result.group = base + found;
            result.first_row = __shfl_sync(kAll, begin, found);
            result.rows = __shfl_sync(kAll, end, found) - result.first_row;
            result.tile = wanted - before - __shfl_sync(kAll, sum - tiles, found);
            return result;
        }
        before += __shfl_sync(kAll, sum, 31);
    }
    return {};
}

}  // namespace moe::optimized
