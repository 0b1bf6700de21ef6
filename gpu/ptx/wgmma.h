/// @file
/// wgmma: a warpgroup (128 threads) multiplies tiles of bf16 that lie in shared memory;
/// it issues the products and goes on. Source: PTX ISA, "Asynchronous Warpgroup Level
/// Matrix Multiply-Accumulate Instructions".
///
/// TUTORIAL: the order is fence, products, commit, wait. The fence orders registers: what
/// the threads did to the accumulators before. Until the wait nobody may touch them, nor
/// the shared memory that the products read. Thread t of the warpgroup holds, with
/// w = t / 32 and l = t mod 32, in d[4 j + 2 h + c]
///     row 16 w + l / 4 + 8 h, column 8 j + 2 (l mod 4) + c.
#pragma once

#include "gpu/ptx/site.h"
#include "gpu/ptx/wgmma_shapes.h"

namespace moe::gpu::ptx {

/// How the 16-byte pieces of a tile are permuted in shared memory, as a descriptor says
/// it.
enum class TileSwizzle : std::uint64_t {
    none = 0,
    bytes_128 = 1,
    bytes_64 = 2,
    bytes_32 = 3
};

/// Which axis of an operand is contiguous in shared memory: the depth, or the rows of A
/// and columns of B.
enum class Major { k, mn };

/// The descriptor of a tile in shared memory, for wgmma().
///
/// Its unit is 8 lines of 16 bytes, or with a swizzle of 32, 64 or 128. Major::k: lines
/// are rows of A or columns of B; `stride_bytes` from 8 of them to the next 8, and,
/// without a swizzle, `leading_bytes` from 8 elements of the depth to the next.
/// Major::mn: lines are steps of the depth; `stride_bytes` from 8 of them to the next,
/// `leading_bytes` from the elements that a line of the swizzle holds to the next;
/// without a swizzle the two change places.
/// @param tile  aligned to 16 bytes; with a swizzle the tile that it is part of starts at
///              a multiple of 8 lines
__device__ inline std::uint64_t make_smem_desc(const void* tile,
                                               std::uint32_t leading_bytes,
                                               std::uint32_t stride_bytes,
                                               TileSwizzle swizzle,
                                               Site site = MOE_HERE) {
#ifdef __CUDACC__
    const std::uint32_t start = shared_address(tile);
#else
    const std::uint32_t start = cuda_on_cpu::shared_address(tile, site);
#endif
    const auto field = [](std::uint32_t bytes) {
        return std::uint64_t((bytes & 0x3ffff) >> 4);
    };
    return field(start) | field(leading_bytes) << 16 | field(stride_bytes) << 32 |
           static_cast<std::uint64_t>(swizzle) << 62;
}
/// The same tile, from `bytes` further on: the next 16 of the depth.
__device__ inline std::uint64_t advance(std::uint64_t descriptor, std::uint32_t bytes) {
    return descriptor + (bytes >> 4);
}

/// Before the first product, and again after each wait.
__device__ inline void wgmma_fence(Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("wgmma.fence.sync.aligned;" ::
                                    : "memory"),
                   cuda_on_cpu::wgmma_fence(site));
}

/// Before that fence and after the wait, where a kernel itself reads or writes the
/// accumulators: the compiler keeps such accesses on their side.
template <int Count>
__device__ void wgmma_fence_registers([[maybe_unused]] float (&d)[Count]) {
#ifdef __CUDACC__
    for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}

/// d (64, N) = A (64, 16) B (16, N), plus d if `accumulate`. N a multiple of 8 up to 256.
/// @tparam a_scale, b_scale  PTX could negate an operand with -1: not supported
template <int N, Major a_major = Major::k, Major b_major = Major::k, int a_scale = 1,
          int b_scale = 1>
__device__ void wgmma_m64k16(float (&d)[N / 2], std::uint64_t a, std::uint64_t b,
                             bool accumulate, Site site = MOE_HERE) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "N is a multiple of 8 up to 256");
    static_assert(a_scale == 1 && b_scale == 1,
                  "wgmma: imm-scale-a and imm-scale-b = -1 (negated) are not supported");
    MOE_PTX_HOPPER(
        (WgmmaShape<N>::template from_shared<a_major == Major::mn, b_major == Major::mn>(
            d, a, b, accumulate)),
        cuda_on_cpu::wgmma(
            {d, nullptr, a, b, N, accumulate, a_major == Major::mn, b_major == Major::mn},
            site));
}
/// The same with A in registers: a[i] holds row 16 w + l / 4 + 8 (i mod 2), depth
/// 2 (l mod 4) + 8 (i / 2) and the next. They too are untouched until the wait.
template <int N, Major b_major = Major::k>
__device__ void wgmma_m64k16(float (&d)[N / 2], const std::uint32_t (&a)[4],
                             std::uint64_t b, bool accumulate, Site site = MOE_HERE) {
    static_assert(N >= 8 && N <= 256 && N % 8 == 0, "N is a multiple of 8 up to 256");
    MOE_PTX_HOPPER((WgmmaShape<N>::template from_registers<b_major == Major::mn>(
                       d, a, b, accumulate)),
                   cuda_on_cpu::wgmma(
                       {d, a, 0, b, N, accumulate, false, b_major == Major::mn}, site));
}

/// The warpgroup's products since the last commit are a group.
__device__ inline void wgmma_commit(Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("wgmma.commit_group.sync.aligned;" ::
                                    : "memory"),
                   cuda_on_cpu::wgmma_commit(site));
}
/// Until at most Groups of the youngest groups are on their way.
template <int Groups>
__device__ void wgmma_wait(Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Groups)
                                : "memory"),
                   cuda_on_cpu::wgmma_wait(Groups, site));
}

}  // namespace moe::gpu::ptx
