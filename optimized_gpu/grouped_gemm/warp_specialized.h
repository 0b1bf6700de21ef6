/// @file
/// 3_warp_specialized, the third rung: a block stays and takes tile after tile. One of
/// its warpgroups, the producer, does nothing but load; two, the consumers, do nothing
/// but multiply and store. Between them is a ring of stages that goes on from one tile to
/// the next: while the consumers store a tile, the first stages of the next one arrive.
#pragma once

#include "optimized_gpu/grouped_gemm/boxes.h"
#include "optimized_gpu/grouped_gemm/schedule.h"
#include "optimized_gpu/grouped_gemm/sums.h"

namespace moe::optimized {

inline constexpr int kRingStages = 4;
inline constexpr int kProducers = 128;  ///< threads; those after the kThreads consumers
inline constexpr int kAllThreads = kThreads + kProducers;

// TUTORIAL: a kernel starts with as many registers for each of its threads, here 168. A
// producer needs fewer, and a consumer of 64 x 256 sums has 128 for these alone.
// setmaxnreg moves them: 128 x 72 + 256 x 216 = 384 x 168.
inline constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;

/// Stages of 128 x 64 of A and 64 kBoxes x 64 of B.
template <int kBoxes>
struct Ring {
    alignas(1024) Boxes<2> a[kRingStages];
    alignas(1024) Boxes<kBoxes> b[kRingStages];
    std::uint64_t full[kRingStages];   ///< a stage has arrived
    std::uint64_t empty[kRingStages];  ///< all consumer warps have multiplied it
};

/// Where a thread is in the ring. Its phase changes each time round, and is never reset:
/// tiles follow each other as steps do.
struct RingPlace {
    int stage = 0;
    std::uint32_t phase = 0;

    __device__ void advance() {
        stage = (stage + 1) % kRingStages;
        if (stage == 0) phase ^= 1;
    }
};

/// What is multiplied for one tile of a result.
struct TileWork {
    TileSource a, b;
    int depth;  ///< what is summed over
    int lines;  ///< of A that are there, from the tile's first on

    __device__ int steps() const { return (depth + kDepth - 1) / kDepth; }
};

/// Readies the barriers. All threads; ends with a barrier of the block.
template <int kBoxes>
__device__ void begin_ring(Ring<kBoxes>& ring, bool gathers) {
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < kRingStages; ++stage) {
            ptx::mbarrier_init(&ring.full[stage], 1 + (gathers ? kProducers : 0));
            ptx::mbarrier_init(&ring.empty[stage], kWarps);
        }
        ptx::fence_mbarrier_init();
    }
    __syncthreads();
}

// ---------------------------------------------------------------------------- producer
/// Loads all stages of a tile. @param thread  of the producers
template <Along kA, Along kB, int kBoxes>
__device__ void load_tiles(Ring<kBoxes>& ring, RingPlace& place, const TileWork& work,
                           int thread) {
    const bool gather_a = work.a.gathers(), gather_b = work.b.gathers();
    const bool gathers = gather_a || gather_b;
    if (!gathers && thread != 0) return;
    GatheredRows<kA, 2, kProducers> a_rows;
    // A row that is gathered keeps its place while the depth goes on.
    if (kA == Along::depth && gather_a) a_rows.find(work.a, 0, thread);
    for (int step = 0; step < work.steps(); ++step, place.advance()) {
        std::uint64_t* const full = &ring.full[place.stage];
        ptx::mbarrier_wait(&ring.empty[place.stage], place.phase ^ 1);
        if (thread == 0) {
            ptx::mbarrier_arrive_expect_tx(
                full, ((gather_a ? 0 : 2) + (gather_b ? 0 : kBoxes)) * kBoxBytes);
            if (!gather_b)
                load_by_tma<kB, kBoxes>(ring.b[place.stage], work.b, step, full);
            if (!gather_a) load_by_tma<kA, 2>(ring.a[place.stage], work.a, step, full);
        }
        if (gather_a) {
            if (kA == Along::lines) a_rows.find(work.a, step, thread);
            a_rows.copy(ring.a[place.stage], work.a, step, thread);
        }
        // Of weights nothing is gathered, and they alone may lie the other way than A.
        if constexpr (kA == Along::lines)
            if (gather_b) {
                GatheredRows<kB, kBoxes, kProducers> b_rows;
                b_rows.find(work.b, step, thread);
                b_rows.copy(ring.b[place.stage], work.b, step, thread);
            }
        if (gathers) ptx::cp_async_mbarrier_arrive_noinc(full);
    }
}

// --------------------------------------------------------------------------- consumers
/// The warp reads a stage no longer.
template <int kBoxes>
__device__ void release(Ring<kBoxes>& ring, int stage) {
    __syncwarp();
    if (lane_index() == 0) ptx::mbarrier_arrive(&ring.empty[stage]);
}

/// Until a stage is filled, and wgmma may read it.
template <Along kA, int kBoxes>
__device__ void wait_full(Ring<kBoxes>& ring, const RingPlace& place,
                          const TileWork& work, int step) {
    ptx::mbarrier_wait(&ring.full[place.stage], place.phase);
    // TUTORIAL: cp.async writes as threads do, wgmma reads by the asynchronous proxy.
    if (work.a.gathers() || work.b.gathers()) ptx::fence_proxy_async();
    if constexpr (kA == Along::lines) {
        // As on the second rung: TMA knows no group's end. Each consumer warpgroup clears
        // its own box of A, and half of those of B.
        const int rows = work.depth - step * kDepth;
        if (rows >= kDepth) return;
        const int group = int(threadIdx.x) / 128, thread = int(threadIdx.x) % 128;
        if (!work.a.gathers()) clear_rows<128>(ring.a[place.stage][group], rows, thread);
        for (int box = 0; box < kBoxes / 2 && !work.b.gathers(); ++box)
            clear_rows<128>(ring.b[place.stage][group * kBoxes / 2 + box], rows, thread);
        ptx::fence_proxy_async();
        ptx::named_barrier_sync(1, kThreads);
    }
}

// TUTORIAL: one group of products is always on its way. When the next one has been asked
// for, the one before it is waited for, and its stage given back: two stages are then the
// consumers', and two may be filled.
/// sums = A B over the whole depth. Consumers.
template <Along kA, Along kB, int kBoxes>
__device__ void multiply_tiles(WarpSums<1, 8 * kBoxes>& sums, Ring<kBoxes>& ring,
                               RingPlace& place, const TileWork& work) {
    constexpr int kColumns = kBoxes * kBoxLines;
    const int group = int(threadIdx.x) / 128;
    set_zero(sums);
    if (group * kBoxLines >= work.lines) {  // past the last row: nothing to multiply
        for (int step = 0; step < work.steps(); ++step, place.advance()) {
            wait_full<kA>(ring, place, work, step);
            release(ring, place.stage);
        }
        return;
    }
    float(&flat)[kColumns / 2] = reinterpret_cast<float(&)[kColumns / 2]>(sums);
    ptx::wgmma_fence_registers(flat);
    int before = 0;
    for (int step = 0; step < work.steps(); ++step, place.advance()) {
        wait_full<kA>(ring, place, work, step);
        multiply_boxes<kA, kB, kColumns>(flat, ring.a[place.stage][group],
                                         ring.b[place.stage][0]);
        ptx::wgmma_wait<1>();
        if (step > 0) release(ring, before);
        before = place.stage;
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence_registers(flat);
    if (work.steps() > 0) release(ring, before);
}

// ------------------------------------------------------------------------------- block
// TUTORIAL: tiles are dealt out like cards, number n to block n mod gridDim.x. Nobody
// tells anybody: producer and consumers find the same tile by themselves.
/// Makes the block's tiles of a product, which has
///     a type Tile and a constant kBoxes; Along kA, kB;
///     bool find(int number, Tile&)   all lanes of a warp; false: there are fewer
///     TileWork work(const Tile&)
///     void begin(const Tile&)        consumers, before they multiply
///     void finish(WarpSums<1, 8 kBoxes>&, const Tile&)   each consumer warp
/// @param gathers  some rows are gathered
template <typename Product>
__device__ void run_warp_specialized(Ring<Product::kBoxes>& ring, const Product& product,
                                     bool gathers) {
    begin_ring(ring, gathers);
    RingPlace place;
    typename Product::Tile tile;
    if (threadIdx.x >= kThreads) {
        ptx::setmaxnreg_dec<kProducerRegisters>();
        const int thread = int(threadIdx.x) - kThreads;
        if (!gathers && thread >= kLanes) return;  // one thread asks TMA
        for (int number = int(blockIdx.x); product.find(number, tile);
             number += int(gridDim.x))
            load_tiles<Product::kA, Product::kB>(ring, place, product.work(tile), thread);
        if (gathers) ptx::cp_async_wait<0>();
    } else {
        ptx::setmaxnreg_inc<kConsumerRegisters>();
        for (int number = int(blockIdx.x); product.find(number, tile);
             number += int(gridDim.x)) {
            WarpSums<1, 8 * Product::kBoxes> sums;
            product.begin(tile);
            multiply_tiles<Product::kA, Product::kB>(sums, ring, place,
                                                     product.work(tile));
            product.finish(sums, tile);
        }
    }
}

/// A tile of rows of a group, and of columns.
struct RowsTile {
    GroupTile rows;
    int column;  ///< number of the tile of columns
    __device__ int first_row() const { return rows.first_row + rows.tile * kLines; }
    __device__ int rows_left() const { return rows.rows - rows.tile * kLines; }
};
/// Tile `number` of those of all groups, tiles of columns side by side. All lanes.
__device__ inline bool find_rows_tile(const int* offsets, int groups, int across,
                                      int number, RowsTile& tile) {
    tile.rows = find_tile(offsets, groups, number / across, kLines);
    tile.column = number % across;
    return tile.rows.group >= 0;
}

/// As many blocks as the device has multiprocessors, or fewer tiles.
unsigned persistent_blocks(std::int64_t tiles);

}  // namespace moe::optimized
