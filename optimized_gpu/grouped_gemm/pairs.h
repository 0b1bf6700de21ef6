/// @file
/// 4_scheduler_and_epilogue, the fourth rung: as the third, but blocks work in pairs, a
/// cluster, that multiply neighbouring tiles: where both need the same columns of B, each
/// loads half of them for both. Tiles follow each other so that what neighbours load is
/// in the second-level cache, and TMA stores.
#pragma once

#include "optimized_gpu/grouped_gemm/warp_specialized.h"

namespace moe::optimized {

inline constexpr std::uint16_t kBothBlocks = 3;  ///< a bit for each block of a pair

/// What a block of a pair makes next to what the other one makes.
template <typename Tile>
struct PairTile {
    Tile tile;
    bool exists;  ///< false: go through the steps of the other's tile for its sake
    bool shares;  ///< both multiply the same of B

    template <typename Product>
    __device__ TileWork work(const Product& product) const {
        TileWork work = product.work(tile);
        if (!exists) work.lines = 0;
        return work;
    }
};

/// Tiles 2 `pair` and the next one. All lanes of a warp; false: there are fewer.
template <typename Product>
__device__ bool find_pair(const Product& product, int pair,
                          PairTile<typename Product::Tile>& found) {
    typename Product::Tile first, second;
    if (!product.find(2 * pair, first)) return false;
    const bool both = product.find(2 * pair + 1, second);
    const bool is_second = ptx::cluster_ctarank() == 1;
    found.tile = is_second && both ? second : first;
    found.exists = !is_second || both;
    found.shares = both && first.shares(second);
    return true;
}

// TUTORIAL: a stage of this block is written by the other one as well, so it is empty
// only when both blocks' consumers have read theirs: each tells both. Hence both take
// part in every step, whether they share it or not, and have equally many: tiles of one
// pair are summed over the same depth.
/// Gives a stage back to both blocks' producers.
__device__ inline void release_to_both(std::uint64_t* empty) {
    __syncwarp();
    if (lane_index() < 2)
        ptx::mbarrier_release_remote(empty, std::uint32_t(lane_index()));
}
struct HalfPairedTile : HalfTile {
    __device__ static void release(std::uint64_t* empty) { release_to_both(empty); }
};

/// Asks TMA for what is not gathered of a stage: of B one half, for both blocks, where
/// they share it. One thread.
struct AskForPair {
    bool exists, shares;

    template <Along kA, Along kB, int kBoxes, int kABoxes>
    __device__ void ask(Ring<kBoxes, kABoxes>& ring, int stage, const TileWork& work,
                        int step) const {
        const bool asks_a = work.lines > 0 && !work.a.gathers();
        const bool asks_b = exists && !work.b.gathers();
        std::uint64_t* const full = &ring.full[stage];
        ptx::mbarrier_arrive_expect_tx(
            full, ((asks_a ? kABoxes : 0) + (asks_b ? kBoxes : 0)) * kBoxBytes);
        if (asks_b && shares) {
            const int first = int(ptx::cluster_ctarank()) * (kBoxes / 2);
            for (int box = first; box < first + kBoxes / 2; ++box) {
                const Corner corner = corner_of<kB, kBoxes>(work.b, box, step);
                ptx::tma_load_multicast_3d(ring.b[stage][box], work.b.map, full,
                                           kBothBlocks, corner.x, corner.y, work.b.group);
            }
        } else if (asks_b) {
            load_by_tma<kB, kBoxes>(ring.b[stage], work.b, step, full);
        }
        if (asks_a) load_by_tma<kA, kABoxes>(ring.a[stage], work.a, step, full);
    }
};

/// Both consumer warpgroups multiply each of the block's tiles.
struct Together {
    static constexpr int kReaders = kWarps;  ///< of a stage, in each block

    template <typename Product, int kABoxes>
    __device__ static void multiply(Ring<Product::kBoxes, kABoxes>& ring,
                                    Product& product, int pairs) {
        RingPlace place;
        PairTile<typename Product::Tile> found;
        for (int pair = int(blockIdx.x) / 2; find_pair(product, pair, found);
             pair += pairs) {
            const TileWork work = found.work(product);
            WarpSums<1, 8 * Product::kBoxes> sums;
            if (work.lines > 0) product.begin(found.tile);
            multiply_tiles<Product::kA, Product::kB>(sums, ring, place, work,
                                                     HalfPairedTile());
            if (work.lines > 0) product.finish(sums, found.tile);
        }
    }
};

/// Makes the pair's tiles of a product, see run_warp_specialized(). Tile has
///     bool shares(const Tile&)   both multiply the same of B
/// @tparam Consumers  who multiplies which tile: Together, or InTurns (ping_pong.h)
template <typename Consumers, typename Product, int kABoxes>
__device__ void run_in_pairs(Ring<Product::kBoxes, kABoxes>& ring, Product product) {
    const bool gathers = product.gathers();
    const int pairs = int(gridDim.x) / 2;
    begin_ring(ring, gathers, 2 * Consumers::kReaders);
    ptx::cluster_arrive();
    ptx::cluster_wait();
    if (threadIdx.x >= kThreads) {
        ptx::setmaxnreg_dec<kProducerRegisters>();
        const int thread = int(threadIdx.x) - kThreads;
        RingPlace place;
        PairTile<typename Product::Tile> found;
        if (gathers || thread < kLanes)
            for (int pair = int(blockIdx.x) / 2; find_pair(product, pair, found);
                 pair += pairs)
                load_tiles<Product::kA, Product::kB>(
                    ring, place, found.work(product), thread,
                    AskForPair{found.exists, found.shares});
        if (gathers) ptx::cp_async_wait<0>();
    } else {
        ptx::setmaxnreg_inc<kConsumerRegisters>();
        Consumers::multiply(ring, product, pairs);
        product.end();
    }
    // Nobody leaves while the other block may still write here, or arrive.
    ptx::cluster_arrive();
    ptx::cluster_wait();
}

/// Twice as many blocks as pairs of tiles, or as there are multiprocessors.
inline unsigned paired_blocks(std::int64_t tiles) {
    const std::int64_t most = std::max(1u, multiprocessors() / 2);
    return unsigned(2 * std::min((tiles + 1) / 2, most));
}

}  // namespace moe::optimized
