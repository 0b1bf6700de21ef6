/// @file
/// 1_mma_sync, the first rung: tiles come by cp.async while the warps multiply those that
/// are there, by ldmatrix and mma.sync.
#pragma once

#include "optimized_gpu/grouped_gemm/sums.h"

namespace moe::optimized {

inline constexpr int kStages = 3;

struct MmaSyncSmem {
    alignas(128) __nv_bfloat16 a[kStages][kLines * kDepth];
    alignas(128) __nv_bfloat16 b[kStages][kLines * kDepth];
};

// Eight warps divide the 128 x 128 tile: two halves of rows, four quarters of columns.
inline constexpr int kRowBlocks = 4, kColumnBlocks = 4;
using Sums = WarpSums<kRowBlocks, kColumnBlocks>;

/// What a tile has of each operand's lines, and of what is summed over.
struct TileExtent {
    int a_lines, b_lines, depth;
};

/// sums += one tile of A times one of B. Groups end anywhere: a warp whose lines are all
/// past the end has nothing to multiply, and zeros need not be summed.
template <Along kA, Along kB>
__device__ void multiply_tile(Sums& sums, const __nv_bfloat16* a_tile,
                              const __nv_bfloat16* b_tile, const TileExtent& extent) {
    using Part = WarpPart<kRowBlocks, kColumnBlocks>;
    if (Part::row() >= extent.a_lines || Part::column() >= extent.b_lines) return;
    for (int depth = 0; depth < kDepth && depth < extent.depth; depth += 16) {
        std::uint32_t a[kRowBlocks][4], b[kColumnBlocks / 2][4];
#pragma unroll
        for (int i = 0; i < kRowBlocks; ++i)
            load_a<kA>(a[i], a_tile, Part::row() + 16 * i, depth);
#pragma unroll
        for (int j = 0; j < kColumnBlocks / 2; ++j)
            load_b<kB>(b[j], b_tile, Part::column() + 16 * j, depth);
#pragma unroll
        for (int i = 0; i < kRowBlocks; ++i)
#pragma unroll
            for (int j = 0; j < kColumnBlocks; ++j) {
                if (Part::row() + 16 * i >= extent.a_lines) continue;
                const std::uint32_t part[2] = {b[j / 2][j % 2 * 2],
                                               b[j / 2][j % 2 * 2 + 1]};
                ptx::mma_m16n8k16_bf16(sums[i][j], a[i], part);
            }
    }
}

// TUTORIAL: three stages, so that two tiles are on their way while one is multiplied. One
// barrier a step is enough: it says both that the tile has arrived for everybody, and
// that everybody is done with the one before it, whose stage is filled next.
/// sums = A B over the whole depth. All threads; ends with a barrier.
template <Along kA, Along kB, int Vector>
__device__ void multiply(Sums& sums, MmaSyncSmem& s, const Operand& a, int a_line,
                         const Operand& b, int b_line, int depth) {
    set_zero(sums);
    const int steps = (depth + kDepth - 1) / kDepth;
    const int a_lines = lines_of<kA>(a) - a_line, b_lines = lines_of<kB>(b) - b_line;
    const auto load = [&](int step) {
        if (step < steps) {
            const int stage = step % kStages;
            load_tile<kA, Vector>(s.a[stage], a, a_line, step * kDepth);
            load_tile<kB, Vector>(s.b[stage], b, b_line, step * kDepth);
        }
        ptx::cp_async_commit();  // also of nothing: waits count groups
    };
    for (int step = 0; step < kStages - 1; ++step) load(step);
    for (int step = 0; step < steps; ++step) {
        ptx::cp_async_wait<kStages - 2>();
        __syncthreads();
        load(step + kStages - 1);
        multiply_tile<kA, kB>(sums, s.a[step % kStages], s.b[step % kStages],
                              {a_lines, b_lines, depth - step * kDepth});
    }
    ptx::cp_async_wait<0>();
    __syncthreads();
}

}  // namespace moe::optimized
