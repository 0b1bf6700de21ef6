// wgmma_test.cu: products of a warpgroup: every N, both majors, every swizzle, A from
// shared memory and from registers; against plain loops.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <utility>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;
using ptx::Major;

constexpr int kDepth = 64;  // four instructions deep

struct TilesSmem {
    alignas(1024) unsigned char a[64 * kDepth * 2];
    alignas(1024) unsigned char b[256 * kDepth * 2];
};

/// How a tile of `lines` rows of A, or columns of B, lies in shared memory.
struct Layout {
    int lines, swizzle;  ///< swizzle s: lines of 16 << s bytes
    Major major;

    __device__ int span() const { return 16 << swizzle; }
    __device__ int elements() const { return 8 << swizzle; }
    // Bytes between slabs of one line's width along the contiguous axis, and between
    // groups of 8 lines
    __device__ int slab() const { return (major == Major::k ? lines : kDepth) * span(); }
    __device__ int group() const { return 8 * span(); }

    /// Where element (line, k) lies.
    __device__ unsigned byte(int line, int k) const {
        const int along = major == Major::k ? k : line;
        const int across = major == Major::k ? line : k;
        const unsigned plain =
            unsigned(along / elements() * slab() + across / 8 * group() +
                     across % 8 * span() + along % elements() * 2);
        return plain ^ (plain >> 7 & ((1u << swizzle) - 1)) << 4;
    }
    /// The descriptor of 16 of the depth from k on.
    __device__ std::uint64_t descriptor(const unsigned char* tile, int k) const {
        const int start = major == Major::k ? k / elements() * slab() + k % elements() * 2
                                            : k / 8 * group();
        // What the two strides mean depends on the swizzle: see make_smem_desc().
        const bool plain_mn = major == Major::mn && swizzle == 0;
        const int leading = plain_mn ? group() : slab(),
                  stride = plain_mn ? slab() : group();
        const auto code = swizzle == 0   ? ptx::TileSwizzle::none
                          : swizzle == 1 ? ptx::TileSwizzle::bytes_32
                          : swizzle == 2 ? ptx::TileSwizzle::bytes_64
                                         : ptx::TileSwizzle::bytes_128;
        return ptx::make_smem_desc(tile + start, leading, stride, code);
    }
};

__device__ void put(unsigned char* tile, const Layout& layout,
                    const __nv_bfloat16* values) {
    for (int i = int(threadIdx.x); i < layout.lines * kDepth; i += int(blockDim.x))
        *reinterpret_cast<__nv_bfloat16*>(tile + layout.byte(i / kDepth, i % kDepth)) =
            values[i];
}

/// Row and column of accumulator i of thread t of the warpgroup.
__device__ int row_of(int t, int i) {
    return t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
}
__device__ int column_of(int t, int i) {
    return i / 4 * 8 + t % 4 * 2 + i % 2;
}

/// c (64, N) = a (64, depth) b (N, depth)ᵀ, and c again with the accumulators kept.
template <int N, Major a_major, Major b_major, bool a_in_registers>
__global__ void __launch_bounds__(128)
    product_kernel(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b,
                   int swizzle) {
    auto& s = gpu::shared_memory<TilesSmem>();
    const int t = int(threadIdx.x);
    const Layout la{64, swizzle, a_major}, lb{N, swizzle, b_major};
    put(s.a, la, a);
    put(s.b, lb, b);
    ptx::fence_proxy_async();
    __syncthreads();
    // TUTORIAL: descriptors first: between the fence and the last product nothing may
    // branch, or ptxas adds fences of its own (its remark C7519).
    std::uint64_t tile_a[kDepth / 16], tile_b[kDepth / 16];
    for (int k = 0; k < kDepth; k += 16) {
        tile_a[k / 16] = la.descriptor(s.a, k);
        tile_b[k / 16] = lb.descriptor(s.b, k);
    }
    float d[N / 2];
    for (int i = 0; i < N / 2; ++i) d[i] = 1e30f;  // must not survive accumulate = false
    for (int round = 0; round < 2; ++round) {
        ptx::wgmma_fence_registers(d);
        if constexpr (!a_in_registers) ptx::wgmma_fence();
        for (int k = 0; k < kDepth; k += 16) {
            const bool accumulate = round > 0 || k > 0;
            if constexpr (a_in_registers) {
                std::uint32_t ra[4];
                for (int i = 0; i < 4; ++i) {
                    const int row = row_of(t, 0) + 8 * (i % 2);
                    const int depth = k + 2 * (t % 4) + 8 * (i / 2);
                    ra[i] =
                        *reinterpret_cast<const std::uint32_t*>(a + row * kDepth + depth);
                }
                ptx::wgmma_fence();  // after the registers of A, too, are written
                ptx::wgmma_m64k16<N, b_major>(d, ra, tile_b[k / 16], accumulate);
                ptx::wgmma_commit();
                ptx::wgmma_wait<0>();  // before they are written again
            } else {
                ptx::wgmma_m64k16<N, a_major, b_major>(d, tile_a[k / 16], tile_b[k / 16],
                                                       accumulate);
            }
        }
        if constexpr (!a_in_registers) {
            ptx::wgmma_commit();
            ptx::wgmma_wait<0>();
        }
        ptx::wgmma_fence_registers(d);
        for (int i = 0; i < N / 2; ++i)
            c[(round * 64 + row_of(t, i)) * N + column_of(t, i)] = d[i];
    }
}

/// Small whole numbers: exact in bf16, and all sums in fp32.
std::vector<__nv_bfloat16> numbers(int count, int step, int modulus) {
    std::vector<__nv_bfloat16> values(count);
    for (int i = 0; i < count; ++i)
        values[i] = __float2bfloat16_rn(float(i * step % modulus - modulus / 2));
    return values;
}

template <int N, Major a_major = Major::k, Major b_major = Major::k,
          bool a_in_registers = false>
void check_product(int swizzle) {
    const auto a = numbers(64 * kDepth, 37, 29), b = numbers(N * kDepth, 23, 31);
    DeviceArray<__nv_bfloat16> da(a), db(b);
    DeviceArray<float> dc(2 * 64 * N);
    launch("product_kernel", product_kernel<N, a_major, b_major, a_in_registers>,
           {1, 128, sizeof(TilesSmem)}, dc.data(), da.data(), db.data(), swizzle);
    const auto c = dc.to_host();
    for (int row = 0; row < 64; ++row)
        for (int column = 0; column < N; ++column) {
            float sum = 0.0f;
            for (int k = 0; k < kDepth; ++k)
                sum += float(a[row * kDepth + k]) * float(b[column * kDepth + k]);
            ASSERT_EQ(c[row * N + column], sum)
                << "N " << N << ", swizzle " << swizzle << ", row " << row << ", column "
                << column;
            ASSERT_EQ(c[(64 + row) * N + column], 2 * sum);
        }
}

template <int... Index>
void check_every_n(std::integer_sequence<int, Index...>) {
    (check_product<8 * (Index + 1)>(3), ...);
}

TEST(ConformanceWgmma, EveryN) {
    MOE_NEEDS_HOPPER;
    check_every_n(std::make_integer_sequence<int, 32>());
}

TEST(ConformanceWgmma, EverySwizzleAndBothMajors) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        for (int swizzle = 0; swizzle < 4; ++swizzle) {
            check_product<24>(swizzle);
            check_product<24, Major::mn>(swizzle);
            check_product<64, Major::k, Major::mn>(swizzle);
            check_product<128, Major::mn, Major::mn>(swizzle);
        }
    });
}

TEST(ConformanceWgmma, OperandAFromRegisters) {
    MOE_NEEDS_HOPPER;
    in_every_mode([] {
        for (int swizzle : {0, 3}) {
            check_product<8, Major::k, Major::k, true>(swizzle);
            check_product<40, Major::k, Major::k, true>(swizzle);
            check_product<64, Major::k, Major::mn, true>(swizzle);
        }
    });
}

/// Two warpgroups, each with two groups in flight that are taken one by one.
__global__ void __launch_bounds__(256)
    flights_kernel(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b) {
    auto& s = gpu::shared_memory<TilesSmem>();
    const int t = int(threadIdx.x) % 128, warpgroup = int(threadIdx.x) / 128;
    const Layout la{64, 3, Major::k}, lb{16, 3, Major::k};
    put(s.a, la, a);
    put(s.b, lb, b);
    ptx::fence_proxy_async();
    __syncthreads();
    float first[8], second[8];
    ptx::wgmma_fence();
    ptx::wgmma_m64k16<16>(first, la.descriptor(s.a, 16 * warpgroup),
                          lb.descriptor(s.b, 0), false);
    ptx::wgmma_commit();
    ptx::wgmma_m64k16<16>(second, la.descriptor(s.a, 32 + 16 * warpgroup),
                          lb.descriptor(s.b, 48), false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
    for (int i = 0; i < 8; ++i)
        c[(2 * warpgroup * 64 + row_of(t, i)) * 16 + column_of(t, i)] = first[i];
    ptx::wgmma_wait<0>();
    for (int i = 0; i < 8; ++i)
        c[((2 * warpgroup + 1) * 64 + row_of(t, i)) * 16 + column_of(t, i)] = second[i];
}

TEST(ConformanceWgmma, GroupsAreWaitedForOneByOne) {
    MOE_NEEDS_HOPPER;
    const auto a = numbers(64 * kDepth, 37, 29), b = numbers(16 * kDepth, 23, 31);
    in_every_mode([&] {
        DeviceArray<__nv_bfloat16> da(a), db(b);
        DeviceArray<float> dc(4 * 64 * 16);
        launch("flights_kernel", flights_kernel, {1, 256, sizeof(TilesSmem)}, dc.data(),
               da.data(), db.data());
        const auto c = dc.to_host();
        for (int part = 0; part < 4; ++part)
            for (int row = 0; row < 64; ++row)
                for (int column = 0; column < 16; ++column) {
                    const int ka = 32 * (part % 2) + 16 * (part / 2),
                              kb = 48 * (part % 2);
                    float sum = 0.0f;
                    for (int k = 0; k < 16; ++k)
                        sum += float(a[row * kDepth + ka + k]) *
                               float(b[column * kDepth + kb + k]);
                    ASSERT_EQ(c[(part * 64 + row) * 16 + column], sum) << part;
                }
    });
}

}  // namespace
}  // namespace moe::test
