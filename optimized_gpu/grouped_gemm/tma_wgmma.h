/// @file
/// 2_tma_wgmma, the second rung: one thread asks for tiles by TMA, which puts them into
/// shared memory swizzled, mbarriers say that they are there, and wgmma multiplies them
/// where they lie. Gathered rows come by cp.async, into the same places.
#pragma once

#include "optimized_gpu/grouped_gemm/boxes.h"
#include "optimized_gpu/grouped_gemm/sums.h"

namespace moe::optimized {

inline constexpr int kTmaStages = 4;

struct TmaWgmmaSmem {
    alignas(1024) Boxes<2> a[kTmaStages];
    alignas(1024) Boxes<2> b[kTmaStages];
    std::uint64_t full[kTmaStages];
};

// Two warpgroups divide the tile: each has 64 rows, each of its warps 16.
using TmaSums = WarpSums<1, kLines / 8>;

/// The pipeline of a block: its ring of stages and what fills them. All threads.
template <Along kA, Along kB>
class TmaPipeline {
  public:
    /// @param depth  what is summed over. Where both operands lie along their lines, rows
    ///               beyond it may hold anything; else they end there
    __device__ TmaPipeline(TmaWgmmaSmem& s, const TileSource& a, const TileSource& b,
                           int depth)
        : s_(s), a_(a), b_(b), depth_(depth) {
        // A row that is gathered keeps its place while the depth goes on.
        if (kA == Along::depth && a.gathers()) a_rows_.find(a, 0, int(threadIdx.x));
        if (threadIdx.x == 0) {
            const unsigned copies = a.gathers() || b.gathers() ? kThreads : 0;
#pragma unroll
            for (int stage = 0; stage < kTmaStages; ++stage)
                ptx::mbarrier_init(&s_.full[stage], 1 + copies);
            ptx::fence_mbarrier_init();
        }
        __syncthreads();
    }

    __device__ int steps() const {
        return (depth_ + kDepth - 1) / kDepth;
    }

    /// Begins to fill the stage of that step, if there is one.
    __device__ void load(int step) {
        if (step >= steps()) return;
        const int stage = step % kTmaStages;
        std::uint64_t* const full = &s_.full[stage];
        if (threadIdx.x == 0) {
            ptx::mbarrier_arrive_expect_tx(
                full, (!a_.gathers() + !b_.gathers()) * 2 * kBoxBytes);
            if (!b_.gathers()) load_by_tma<kB, 2>(s_.b[stage], b_, step, full);
            if (!a_.gathers()) load_by_tma<kA, 2>(s_.a[stage], a_, step, full);
        }
        if (a_.gathers()) {
            if (kA == Along::lines) a_rows_.find(a_, step, int(threadIdx.x));
            a_rows_.copy(s_.a[stage], a_, step, int(threadIdx.x));
        }
        if (b_.gathers()) {
            GatheredRows<kB, 2, kThreads> rows;
            rows.find(b_, step, int(threadIdx.x));
            rows.copy(s_.b[stage], b_, step, int(threadIdx.x));
        }
        if (a_.gathers() || b_.gathers()) ptx::cp_async_mbarrier_arrive_noinc(full);
    }

    /// Until the stage of that step is filled, and wgmma may read it.
    __device__ void wait(int step) {
        const int stage = step % kTmaStages;
        ptx::mbarrier_wait(&s_.full[stage], step / kTmaStages % 2);
        // TUTORIAL: cp.async writes as threads do, wgmma reads by the asynchronous proxy.
        if (a_.gathers() || b_.gathers()) ptx::fence_proxy_async();
        if constexpr (kA == Along::lines)
            if ((step + 1) * kDepth > depth_) clear_beyond(stage, depth_ % kDepth);
    }

  private:
    // TUTORIAL: the depth are the rows of a group, and TMA knows no group: the last box
    // goes on with rows of the next one, or with what nobody has written. Both operands
    // are cleared, since 0 times NaN is NaN. What was gathered ends in zeros already.
    __device__ void clear_beyond(int stage, int rows) {
        for (int box = 0; box < 2; ++box) {
            if (!a_.gathers())
                clear_rows<kThreads>(s_.a[stage][box], rows, int(threadIdx.x));
            if (!b_.gathers())
                clear_rows<kThreads>(s_.b[stage][box], rows, int(threadIdx.x));
        }
        ptx::fence_proxy_async();
        __syncthreads();
    }

    TmaWgmmaSmem& s_;
    const TileSource a_, b_;
    const int depth_;
    GatheredRows<kA, 2, kThreads> a_rows_ = {};
};

// TUTORIAL: while the tensor cores work on a step, everybody waits for the products of
// the one before it. The barrier then says that nobody reads its stage any longer, and
// the stage is filled anew: three steps ahead.
/// sums = A B over the whole depth. All threads; ends with a barrier.
template <Along kA, Along kB>
__device__ void multiply(TmaSums& sums, TmaWgmmaSmem& s, const TileSource& a,
                         const TileSource& b, int depth) {
    TmaPipeline<kA, kB> pipeline(s, a, b, depth);
    set_zero(sums);
    float(&flat)[kLines / 2] = reinterpret_cast<float(&)[kLines / 2]>(sums);
    for (int step = 0; step < kTmaStages - 1; ++step) pipeline.load(step);
    ptx::wgmma_fence_registers(flat);
    for (int step = 0; step < pipeline.steps(); ++step) {
        pipeline.wait(step);
        const int stage = step % kTmaStages;
        multiply_boxes<kA, kB, kLines>(flat, s.a[stage][threadIdx.x / 128],
                                       s.b[stage][0]);
        ptx::wgmma_wait<1>();
        __syncthreads();
        pipeline.load(step + kTmaStages - 1);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence_registers(flat);
    __syncthreads();
}

}  // namespace moe::optimized
