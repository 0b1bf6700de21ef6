/// @file
/// Ping-pong, the fourth rung's way with products of little depth: each of the two
/// consumer warpgroups has every other tile of the block to itself, and while one
/// multiplies, the other stores.
#pragma once

#include "optimized_gpu/grouped_gemm/pairs.h"

namespace moe::optimized {

// TUTORIAL: the tensor cores are one warpgroup's at a time. Barrier 2 + g holds until it
// is g's turn: 128 threads wait at it, and 128, the other warpgroup's, arrive and go on.
// The order is also what makes a parity unambiguous: a stage's use is waited for only
// when the use before it has come.
__device__ inline void take_turn(int group) {
    ptx::named_barrier_sync(2 + std::uint32_t(group), kThreads);
}
__device__ inline void give_turn(int group) {
    ptx::named_barrier_arrive(2 + std::uint32_t(group), kThreads);
}

/// A consumer whose warpgroup has all of a tile's rows, one box of A.
struct WholePairedTile {
    int group;  ///< the warpgroup's number

    __device__ static int box() { return 0; }
    __device__ static void release(std::uint64_t* empty) { release_to_both(empty); }
    // The other's products queue up behind these: the tensor cores need not stand still.
    __device__ void asked() const { give_turn(1 - group); }
};

/// The consumer warpgroups take turns, each with tiles of its own. See run_in_pairs().
struct InTurns {
    static constexpr int kReaders = kWarps / 2;

    template <typename Product, int kABoxes>
    __device__ static void multiply(Ring<Product::kBoxes, kABoxes>& ring,
                                    Product& product, int pairs) {
        const int group = warp_index() / kReaders;
        RingPlace place;
        PairTile<typename Product::Tile> found;
        int turn = 0;
        for (int pair = int(blockIdx.x) / 2; find_pair(product, pair, found);
             pair += pairs, ++turn) {
            const TileWork work = found.work(product);
            if (turn % 2 != group) {  // its stages are the other's
                place.skip(work.steps());
                continue;
            }
            if (turn > 0) take_turn(group);
            WarpSums<1, 8 * Product::kBoxes> sums;
            if (work.lines > 0) product.begin(found.tile);
            multiply_tiles<Product::kA, Product::kB>(sums, ring, place, work,
                                                     WholePairedTile{group});
            if (work.lines > 0) product.finish(sums, found.tile);
        }
        // The last tile's maker gave a turn to a tile that there is not.
        if (turn > 0 && turn % 2 == group) take_turn(group);
    }
};

}  // namespace moe::optimized
