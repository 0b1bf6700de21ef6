/// @file
/// 3_warp_specialized, the third rung: a block stays and takes tile after tile. One of
/// its warpgroups, the producer, does nothing but load; two, the consumers, do nothing
/// but multiply and store. Between them is a ring of stages that goes on from one tile to
/// the next: while the consumers store a tile, the first stages of the next one arrive.
#pragma once

#include <algorithm>

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

/// Stages of 64 kABoxes x 64 of A and 64 kBoxes x 64 of B.
template <int kBoxes, int kABoxes = 2>
struct Ring {
    alignas(1024) Boxes<kABoxes> a[kRingStages];
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
    /// Past `steps` stages.
    __device__ void skip(int steps) {
        phase ^= unsigned((stage + steps) / kRingStages) & 1;
        stage = (stage + steps) % kRingStages;
    }
};

/// What is multiplied for one tile of a result.
struct TileWork {
    TileSource a, b;
    int depth;  ///< what is summed over
    int lines;  ///< of A that are there, from the tile's first on

    __device__ int steps() const { return (depth + kDepth - 1) / kDepth; }
    __device__ bool gathers() const { return a.gathers() || b.gathers(); }
};

/// Readies the barriers. All threads; a barrier must follow.
/// @param readers  warps that give a stage back
template <int kBoxes, int kABoxes>
__device__ void begin_ring(Ring<kBoxes, kABoxes>& ring, bool gathers, int readers) {
    if (threadIdx.x != 0) return;
#pragma unroll
    for (int stage = 0; stage < kRingStages; ++stage) {
        ptx::mbarrier_init(&ring.full[stage], 1 + (gathers ? kProducers : 0));
        ptx::mbarrier_init(&ring.empty[stage], readers);
    }
    ptx::fence_mbarrier_init();
}

// ---------------------------------------------------------------------------- producer
/// Asks TMA for what is not gathered of a stage. One thread.
struct AskForTile {
    template <Along kA, Along kB, int kBoxes, int kABoxes>
    __device__ void ask(Ring<kBoxes, kABoxes>& ring, int stage, const TileWork& work,
                        int step) const {
        std::uint64_t* const full = &ring.full[stage];
        const int boxes =
            (work.a.gathers() ? 0 : kABoxes) + (work.b.gathers() ? 0 : kBoxes);
        ptx::mbarrier_arrive_expect_tx(full, boxes * kBoxBytes);
        if (!work.b.gathers()) load_by_tma<kB, kBoxes>(ring.b[stage], work.b, step, full);
        if (!work.a.gathers())
            load_by_tma<kA, kABoxes>(ring.a[stage], work.a, step, full);
    }
};

/// Loads all stages of a tile. @param thread  of the producers
template <Along kA, Along kB, int kBoxes, int kABoxes, typename Ask>
__device__ void load_tiles(Ring<kBoxes, kABoxes>& ring, RingPlace& place,
                           const TileWork& work, int thread, const Ask& ask) {
    if (!work.gathers() && thread != 0) return;
    GatheredRows<kA, kABoxes, kProducers> a_rows;
    // A row that is gathered keeps its place while the depth goes on.
    if (kA == Along::depth && work.a.gathers()) a_rows.find(work.a, 0, thread);
    for (int step = 0; step < work.steps(); ++step, place.advance()) {
        ptx::mbarrier_wait(&ring.empty[place.stage], place.phase ^ 1);
        if (thread == 0) ask.template ask<kA, kB>(ring, place.stage, work, step);
        if (work.a.gathers()) {
            if (kA == Along::lines) a_rows.find(work.a, step, thread);
            a_rows.copy(ring.a[place.stage], work.a, step, thread);
        }
        // Of weights nothing is gathered, and they alone may lie the other way than A.
        if constexpr (kA == Along::lines)
            if (work.b.gathers()) {
                GatheredRows<kB, kBoxes, kProducers> b_rows;
                b_rows.find(work.b, step, thread);
                b_rows.copy(ring.b[place.stage], work.b, step, thread);
            }
        if (work.gathers()) ptx::cp_async_mbarrier_arrive_noinc(&ring.full[place.stage]);
    }
}

// --------------------------------------------------------------------------- consumers
/// A consumer whose warpgroup multiplies one half of each tile's rows.
struct HalfTile {
    /// Which box of A is its warpgroup's.
    __device__ static int box() { return int(threadIdx.x) / 128; }
    /// The warp reads a stage no longer.
    __device__ static void release(std::uint64_t* empty) {
        __syncwarp();
        if (lane_index() == 0) ptx::mbarrier_arrive(empty);
    }
    /// All products of a tile have been asked for.
    __device__ static void asked() {}
};

/// Until a stage is filled, and wgmma may read it.
template <Along kA, int kBoxes, int kABoxes>
__device__ void wait_full(Ring<kBoxes, kABoxes>& ring, const RingPlace& place,
                          const TileWork& work, int step) {
    ptx::mbarrier_wait(&ring.full[place.stage], place.phase);
    // TUTORIAL: cp.async writes as threads do, wgmma reads by the asynchronous proxy.
    if (work.gathers()) ptx::fence_proxy_async();
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
/// @param consumer  see HalfTile
template <Along kA, Along kB, int kBoxes, int kABoxes, typename Consumer>
__device__ void multiply_tiles(WarpSums<1, 8 * kBoxes>& sums, Ring<kBoxes, kABoxes>& ring,
                               RingPlace& place, const TileWork& work,
                               const Consumer& consumer) {
    constexpr int kColumns = kBoxes * kBoxLines;
    const int box = consumer.box();
    set_zero(sums);
    if (box * kBoxLines >= work.lines) {  // past the last row: nothing to multiply
        for (int step = 0; step < work.steps(); ++step, place.advance()) {
            wait_full<kA>(ring, place, work, step);
            consumer.release(&ring.empty[place.stage]);
        }
        consumer.asked();
        return;
    }
    float(&flat)[kColumns / 2] = reinterpret_cast<float(&)[kColumns / 2]>(sums);
    ptx::wgmma_fence_registers(flat);
    int before = 0;
    for (int step = 0; step < work.steps(); ++step, place.advance()) {
        wait_full<kA>(ring, place, work, step);
        multiply_boxes<kA, kB, kColumns>(flat, ring.a[place.stage][box],
                                         ring.b[place.stage][0]);
        ptx::wgmma_wait<1>();
        if (step > 0) consumer.release(&ring.empty[before]);
        before = place.stage;
    }
    consumer.asked();
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence_registers(flat);
    if (work.steps() > 0) consumer.release(&ring.empty[before]);
}

// ------------------------------------------------------------------------------- block
// TUTORIAL: tiles are dealt out like cards, number n to block n mod gridDim.x. Nobody
// tells anybody: producer and consumers find the same tile by themselves.
/// Makes the block's tiles of a product, which has
///     a type Tile and a constant kBoxes; Along kA, kB;
///     bool gathers()                 some rows are gathered
///     bool find(int number, Tile&)   all lanes of a warp; false: there are fewer
///     TileWork work(const Tile&)
///     void begin(const Tile&)        consumers, before they multiply
///     void finish(WarpSums<1, 8 kBoxes>&, const Tile&)   each consumer warp
template <typename Product>
__device__ void run_warp_specialized(Ring<Product::kBoxes>& ring, Product product) {
    const bool gathers = product.gathers();
    begin_ring(ring, gathers, kWarps);
    __syncthreads();
    RingPlace place;
    typename Product::Tile tile;
    if (threadIdx.x >= kThreads) {
        ptx::setmaxnreg_dec<kProducerRegisters>();
        const int thread = int(threadIdx.x) - kThreads;
        if (!gathers && thread >= kLanes) return;  // one thread asks TMA
        for (int number = int(blockIdx.x); product.find(number, tile);
             number += int(gridDim.x))
            load_tiles<Product::kA, Product::kB>(ring, place, product.work(tile), thread,
                                                 AskForTile());
        if (gathers) ptx::cp_async_wait<0>();
    } else {
        ptx::setmaxnreg_inc<kConsumerRegisters>();
        for (int number = int(blockIdx.x); product.find(number, tile);
             number += int(gridDim.x)) {
            WarpSums<1, 8 * Product::kBoxes> sums;
            product.begin(tile);
            multiply_tiles<Product::kA, Product::kB>(sums, ring, place,
                                                     product.work(tile), HalfTile());
            product.finish(sums, tile);
        }
    }
}

/// Of the device.
unsigned multiprocessors();

/// As many blocks as there are multiprocessors, or fewer tiles.
inline unsigned persistent_blocks(std::int64_t tiles) {
    return unsigned(std::min<std::int64_t>(tiles, multiprocessors()));
}

}  // namespace moe::optimized
