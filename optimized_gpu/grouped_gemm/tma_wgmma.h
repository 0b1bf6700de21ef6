/// @file
/// 2_tma_wgmma, the second rung: one thread asks for tiles by TMA, which puts them into
/// shared memory swizzled, mbarriers say that they are there, and wgmma multiplies them
/// where they lie. Gathered rows come by cp.async, into the same places.
#pragma once

#include "gpu/tensor_map.h"
#include "optimized_gpu/grouped_gemm/sums.h"

namespace moe::optimized {

inline constexpr int kTmaStages = 4;
inline constexpr int kBoxLines = 64;  ///< a tile is two boxes, of 64 lines and all depth
inline constexpr int kBoxElements = kBoxLines * kDepth;
inline constexpr std::uint32_t kTileBytes = kLines * kDepth * sizeof(__nv_bfloat16);

// TUTORIAL: a row of a box is 128 bytes, whichever way the operand lies, and TMA moves
// chunk c of row r to c ^ (r mod 8) ("swizzle 128B"), as chunk_at() did on the first
// rung. That repeats every 1024 bytes, hence the alignment.
struct TmaWgmmaSmem {
    alignas(1024) __nv_bfloat16 a[kTmaStages][2][kBoxElements];
    alignas(1024) __nv_bfloat16 b[kTmaStages][2][kBoxElements];
    std::uint64_t full[kTmaStages];
};

// Two warpgroups divide the tile: each has 64 rows, each of its warps 16.
using TmaSums = WarpSums<1, kLines / 8>;

/// The map of an operand (groups, rows, width), whose boxes are halves of tiles. Of
/// nothing where it holds nothing, or where rows are gathered: then no box is asked for.
CUtensorMap operand_map(const __nv_bfloat16* data, std::int64_t groups, std::int64_t rows,
                        std::int64_t width);

/// Where a block's tiles of one operand come from.
struct TileSource {
    const CUtensorMap* map;
    int line, other_line;  ///< the first lines of the tile's two boxes
    int depth;             ///< the first of what is summed over
    int group;
    Operand rows = {};  ///< where it has row_ids, boxes are gathered from it instead
    __device__ bool gathers() const { return rows.row_ids != nullptr; }
};

/// A box's corner.
struct Corner {
    int x, y;  ///< element of a row; row
};
template <Along kAlong>
__device__ Corner corner_of(const TileSource& from, int box, int step) {
    const int line = box == 0 ? from.line : from.other_line;
    const int depth = from.depth + step * kDepth;
    return kAlong == Along::depth ? Corner{depth, line} : Corner{line, depth};
}

template <Along kAlong>
__device__ void load_by_tma(__nv_bfloat16 (&tile)[2][kBoxElements],
                            const TileSource& from, int step, std::uint64_t* full) {
#pragma unroll
    for (int box = 0; box < 2; ++box) {
        const Corner corner = corner_of<kAlong>(from, box, step);
        ptx::tma_load_3d(tile[box], from.map, full, corner.x, corner.y, from.group);
    }
}

/// What a thread gathers of a tile: chunk t mod 8 of rows t / 8 and 32 further, of both
/// boxes.
struct GatheredRows {
    int ids[2][2];  ///< of box and row; negative: zeros
};
template <Along kAlong>
__device__ GatheredRows find_rows(const TileSource& from, int step) {
    GatheredRows found;
#pragma unroll
    for (int box = 0; box < 2; ++box)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int row =
                corner_of<kAlong>(from, box, step).y + int(threadIdx.x) / 8 + 32 * n;
            found.ids[box][n] = row < from.rows.rows ? from.rows.row_ids[row] : -1;
        }
    return found;
}
template <Along kAlong>
__device__ void gather(__nv_bfloat16 (&tile)[2][kBoxElements], const TileSource& from,
                       int step, const GatheredRows& rows) {
    const int chunk = int(threadIdx.x) % 8;
#pragma unroll
    for (int box = 0; box < 2; ++box)
#pragma unroll
        for (int n = 0; n < 2; ++n) {
            const int row = int(threadIdx.x) / 8 + 32 * n, id = rows.ids[box][n];
            const int column = corner_of<kAlong>(from, box, step).x + chunk * kChunk;
            const bool inside = id >= 0 && column < from.rows.width;
            const std::int64_t at =
                inside ? std::int64_t(id) * from.rows.width + column : 0;
            ptx::cp_async<16>(tile[box] + chunk_at<Along::depth>(row, chunk),
                              from.rows.data + at, inside ? 16 : 0);
        }
}

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
        if (kA == Along::depth && a.gathers()) a_rows_ = find_rows<kA>(a, 0);
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
                full, (a_.gathers() ? 0 : kTileBytes) + (b_.gathers() ? 0 : kTileBytes));
            if (!b_.gathers()) load_by_tma<kB>(s_.b[stage], b_, step, full);
            if (!a_.gathers()) load_by_tma<kA>(s_.a[stage], a_, step, full);
        }
        if (a_.gathers()) {
            if (kA == Along::lines) a_rows_ = find_rows<kA>(a_, step);
            gather<kA>(s_.a[stage], a_, step, a_rows_);
        }
        if (b_.gathers()) gather<kB>(s_.b[stage], b_, step, find_rows<kB>(b_, step));
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
        const auto clear = [&](__nv_bfloat16(&tile)[2][kBoxElements]) {
            for (int i = rows * kDepth / kChunk + int(threadIdx.x);
                 i < kBoxElements / kChunk; i += kThreads)
                for (int box = 0; box < 2; ++box)
                    reinterpret_cast<uint4*>(tile[box])[i] = uint4{};
        };
        if (!a_.gathers()) clear(s_.a[stage]);
        if (!b_.gathers()) clear(s_.b[stage]);
        ptx::fence_proxy_async();
        __syncthreads();
    }

    TmaWgmmaSmem& s_;
    const TileSource a_, b_;
    const int depth_;
    GatheredRows a_rows_ = {};
};

/// Begins to multiply a stage: 64 x 128 x 64 for each warpgroup.
template <Along kA, Along kB>
__device__ void multiply_stage(float (&sums)[kLines / 2], const TmaWgmmaSmem& s,
                               int stage) {
    // From 16 of the depth to the next, in bytes; see ptx::make_smem_desc()
    constexpr int kAStep = kA == Along::depth ? 32 : 16 * 128;
    constexpr int kBStep = kB == Along::depth ? 32 : 16 * 128;
    constexpr auto major = [](Along along) {
        return along == Along::depth ? ptx::Major::k : ptx::Major::mn;
    };
    const auto descriptor = [](const __nv_bfloat16* boxes) {
        return ptx::make_smem_desc(boxes, kBoxElements * sizeof(__nv_bfloat16), 8 * 128,
                                   ptx::TileSwizzle::bytes_128);
    };
    const std::uint64_t a = descriptor(s.a[stage][threadIdx.x / 128]);
    const std::uint64_t b = descriptor(s.b[stage][0]);
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i)
        ptx::wgmma_m64k16<kLines, major(kA), major(kB)>(
            sums, ptx::advance(a, i * kAStep), ptx::advance(b, i * kBStep), true);
    ptx::wgmma_commit();
}

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
        multiply_stage<kA, kB>(flat, s, step % kTmaStages);
        ptx::wgmma_wait<1>();
        __syncthreads();
        pipeline.load(step + kTmaStages - 1);
    }
    ptx::wgmma_wait<0>();
    ptx::wgmma_fence_registers(flat);
    __syncthreads();
}

}  // namespace moe::optimized
