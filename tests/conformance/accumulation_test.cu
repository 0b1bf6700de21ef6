// accumulation_test.cu: how the sums inside a tensor core are formed: measured, on a GPU
// or of the executor's model, with products that tell the candidates apart.

#include <cuda_bf16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "gpu/launch.h"
#include "gpu/ptx.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/modes.h"

namespace moe::test {
namespace {

namespace ptx = gpu::ptx;
using gpu::launch;

constexpr int kDepth = 16;

/// Sum of 16 products, of which the second factors are one: row 0, column 0 of a mma.
__global__ void mma_sum_kernel(float* sum, const __nv_bfloat16* values) {
    const int lane = int(threadIdx.x);
    const auto pair = [&](int k) {
        return std::uint32_t(__bfloat16_as_ushort(values[k])) |
               std::uint32_t(__bfloat16_as_ushort(values[k + 1])) << 16;
    };
    constexpr std::uint32_t kOnes = 0x3f803f80;
    const int k = 2 * (lane % 4);
    const std::uint32_t a[4] = {pair(k), 0, pair(k + 8), 0}, b[2] = {kOnes, kOnes};
    float d[4] = {};
    ptx::mma_m16n8k16_bf16(d, a, b);
    if (lane == 0) sum[0] = d[0];
}

struct OnesSmem {
    alignas(128) __nv_bfloat16 ones[8 * kDepth];
};

/// The same by wgmma, A in registers.
__global__ void __launch_bounds__(128)
    wgmma_sum_kernel(float* sum, const __nv_bfloat16* values) {
    auto& s = gpu::shared_memory<OnesSmem>();
    const int t = int(threadIdx.x);
    s.ones[t] = __float2bfloat16_rn(1.0f);
    ptx::fence_proxy_async();
    __syncthreads();
    const auto pair = [&](int k) {
        return std::uint32_t(__bfloat16_as_ushort(values[k])) |
               std::uint32_t(__bfloat16_as_ushort(values[k + 1])) << 16;
    };
    const int k = 2 * (t % 4);
    const std::uint32_t a[4] = {pair(k), 0, pair(k + 8), 0};
    const auto b = ptx::make_smem_desc(s.ones, 128, 128, ptx::TileSwizzle::none);
    float d[4];
    ptx::wgmma_fence();
    ptx::wgmma_m64k16<8>(d, a, b, false);
    ptx::wgmma_commit();
    ptx::wgmma_wait<0>();
    if (t == 0) sum[0] = d[0];
}

/// What a unit does, as far as results tell.
struct Measured {
    int products;    ///< added at once; 1: one after the other
    int extra_bits;  ///< kept below fp32's while they are; 3 means 3 or more
    bool truncates;  ///< the result
    bool operator==(const Measured&) const = default;
};

/// @param sum_of  16 values to their sum
template <typename SumOf>
Measured measure(SumOf sum_of) {
    const float ulp = std::ldexp(1.0f, -23);
    /// `copies` numbers that are an ulp of 1 together, then or before them 1 itself.
    const auto keeps = [&](int copies, int place_of_one) {
        std::vector<float> values(kDepth, 0.0f);
        const int first = place_of_one == 0 ? 1 : 0;
        for (int i = 0; i < copies; ++i) values[first + i] = ulp / float(copies);
        values[place_of_one] = 1.0f;
        return sum_of(values) > 1.0f;
    };
    Measured found{kDepth, 0, false};
    while (found.extra_bits < 3 && keeps(2 << found.extra_bits, 0)) ++found.extra_bits;
    std::vector<float> values(kDepth, 0.0f);
    values[0] = 1.0f;
    values[1] = 0.75f * ulp;
    found.truncates = sum_of(values) == 1.0f;
    // TUTORIAL: numbers too small to be kept beside 1 survive if they are added up among
    // themselves first: in a block of products before that of 1.
    const int copies = 2 << found.extra_bits;
    for (int block = copies; block < kDepth; block *= 2)
        if (keeps(copies, block)) {
            found.products = block;
            break;
        }
    // Nothing kept below an ulp, and yet rounded to nearest: one sum after the other.
    if (found.extra_bits == 0 && !found.truncates && found.products == copies)
        found.products = 1;
    return found;
}

template <typename Kernel>
Measured measure_kernel(Kernel kernel, gpu::LaunchConfig config) {
    return measure([&](const std::vector<float>& values) {
        std::vector<__nv_bfloat16> narrow(kDepth);
        for (int i = 0; i < kDepth; ++i) narrow[i] = __float2bfloat16_rn(values[i]);
        DeviceArray<__nv_bfloat16> device(narrow);
        DeviceArray<float> sum(1);
        launch("sum_kernel", kernel, config, sum.data(), device.data());
        return sum.to_host()[0];
    });
}
Measured measure_mma() {
    return measure_kernel(mma_sum_kernel, {1, 32});
}
Measured measure_wgmma() {
    return measure_kernel(wgmma_sum_kernel, {1, 128, sizeof(OnesSmem)});
}

TEST(ConformanceAccumulation, TheUnitsSumsAreMeasured) {
    const auto tell = [](const char* unit, const Measured& found) {
        std::printf(
            "%s adds %d product%s at once, keeps %d%s bits below fp32's, and %s\n", unit,
            found.products, found.products == 1 ? "" : "s", found.extra_bits,
            found.extra_bits == 3 ? " or more" : "",
            found.truncates ? "truncates" : "rounds to nearest");
    };
    const Measured mma = measure_mma();
    tell("mma.sync bf16", mma);
    EXPECT_EQ(mma, measure_mma());
    if (!has_hopper()) return;
    const Measured wgmma = measure_wgmma();
    tell("wgmma bf16", wgmma);
    EXPECT_EQ(wgmma, measure_wgmma());
}

#ifndef __CUDACC__
/// The executor follows whatever was measured, and the measurement finds it again.
TEST(ConformanceAccumulation, TheExecutorFollowsAMeasurement) {
    const auto before = cuda_on_cpu::options();
    for (const Measured& unit : {Measured{1, 0, false},
                                 {4, 0, true},
                                 {8, 1, true},
                                 {8, 2, false},
                                 {16, 2, true},
                                 {16, 3, true},
                                 {16, 3, false}}) {
        cuda_on_cpu::options().accumulation = {unit.products, unit.extra_bits,
                                               unit.truncates};
        EXPECT_EQ(measure_mma(), unit) << unit.products << " " << unit.extra_bits;
        EXPECT_EQ(measure_wgmma(), unit) << unit.products << " " << unit.extra_bits;
    }
    cuda_on_cpu::options() = before;
}
#endif

}  // namespace
}  // namespace moe::test
