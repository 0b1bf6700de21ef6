// intrinsics_test.cu: CUDA's arithmetic functions against definitions in integers, or in
// double where they are approximate.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <type_traits>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/rounding_reference.h"

namespace moe::test {
namespace {

using gpu::launch, gpu::one_thread_per;

// Functions of a float give a float: without this, kernels would compute in double.
static_assert(std::is_same_v<decltype(exp(1.0f)), float>);
static_assert(std::is_same_v<decltype(log(1.0f)), float>);
static_assert(std::is_same_v<decltype(sqrt(1.0f)), float>);
static_assert(std::is_same_v<decltype(log1p(1.0f)), float>);
static_assert(std::is_same_v<decltype(erfc(1.0f)), float>);
static_assert(std::is_same_v<decltype(fabs(1.0f)), float>);
static_assert(std::is_same_v<decltype(rsqrt(1.0f)), float>);
static_assert(std::is_same_v<decltype(max(1.0f, 2.0f)), float>);
static_assert(std::is_same_v<decltype(max(1ll, 2ll)), long long>);
static_assert(sizeof(float4) == 16 && alignof(float4) == 16 && alignof(float3) == 4);
static_assert(sizeof(uint3) == 12 && alignof(short4) == 8 && alignof(double2) == 16);

// ------------------------------------------------------------------ rounded arithmetic
struct Floats {
    float a, b, c;
};

/// results: [operation: add, sub, mul, fma][direction][operands].
__global__ void rounded_kernel(const Floats* operands, float* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float a = operands[i].a, b = operands[i].b, c = operands[i].c;
    const float all[] = {
        __fadd_rn(a, b),    __fadd_rz(a, b),    __fadd_rd(a, b),    __fadd_ru(a, b),
        __fsub_rn(a, b),    __fsub_rz(a, b),    __fsub_rd(a, b),    __fsub_ru(a, b),
        __fmul_rn(a, b),    __fmul_rz(a, b),    __fmul_rd(a, b),    __fmul_ru(a, b),
        __fmaf_rn(a, b, c), __fmaf_rz(a, b, c), __fmaf_rd(a, b, c), __fmaf_ru(a, b, c)};
    for (int j = 0; j < 16; ++j) results[j * count + i] = all[j];
}

TEST(ConformanceIntrinsics, SumsProductsAndFmaRoundOnceInFourDirections) {
    std::mt19937 random(5);
    std::vector<Floats> operands;
    // Any finite bits, and bits of like size, where sums cancel.
    const auto any = [&] { return std::uint32_t(random()) & 0xbfffffffu; };
    const auto like = [&] { return (any() & 0x80ffffffu) + 0x3f000000u; };
    for (int i = 0; i < 4000; ++i) {
        operands.push_back({std::bit_cast<float>(any()), std::bit_cast<float>(any()),
                            std::bit_cast<float>(any())});
        operands.push_back({std::bit_cast<float>(like()), std::bit_cast<float>(like()),
                            std::bit_cast<float>(like())});
    }
    operands.push_back({1.5f, -1.5f, -2.25f});  // exact zeros: -0 when rounding down
    operands.push_back({1.5f, 1.5f, -2.25f});
    const int count = int(operands.size());
    DeviceArray<Floats> device_operands(operands);
    DeviceArray<float> results(16 * operands.size());
    launch("rounded_kernel", rounded_kernel, one_thread_per(count),
           device_operands.data(), results.data(), count);
    const auto got = results.to_host();
    const auto parts = [](float x) {
        return parts_of(kFloat, std::bit_cast<std::uint32_t>(x));
    };
    for (int j = 0; j < 16; ++j)
        for (int i = 0; i < count; ++i) {
            const auto [a, b, c] = operands[i];
            Exact sum;
            switch (j / 4) {
                case 0: sum.add(parts(a)).add(parts(b)); break;
                case 1: sum.add(parts(a)).subtract(parts(b)); break;
                case 2: sum.add(product(parts(a), parts(b))); break;
                case 3: sum.add(product(parts(a), parts(b))).add(parts(c));
            }
            // Zero from opposite numbers; no operand here is zero.
            const bool negative = Direction(j % 4) == Direction::down;
            ASSERT_EQ(std::bit_cast<std::uint32_t>(got[j * count + i]),
                      rounded(kFloat, sum, Direction(j % 4), negative))
                << "result " << j << std::hexfloat << " a " << a << " b " << b << " c "
                << c;
        }
}

/// results: quotient, root and reciprocal root in the directions they have.
__global__ void quotient_kernel(const Floats* operands, float* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float a = operands[i].a, b = operands[i].b;
    const float all[] = {__fdiv_rn(a, b), __fdiv_rz(a, b), __fdiv_rd(a, b),
                         __fdiv_ru(a, b), __fsqrt_rn(a),   __fsqrt_rz(a),
                         __fsqrt_rd(a),   __fsqrt_ru(a)};
    for (int j = 0; j < 8; ++j) results[j * count + i] = all[j];
}

TEST(ConformanceIntrinsics, QuotientsAndRootsRoundOnceInFourDirections) {
    std::mt19937 random(6);
    std::vector<Floats> operands(4000);
    for (Floats& in : operands)  // positive, of any size from 2^-31 to 2^32
        in = {std::bit_cast<float>(0x30000000u + (std::uint32_t(random()) >> 3)),
              std::bit_cast<float>(0x30000000u + (std::uint32_t(random()) >> 3)), 0};
    operands.push_back({2.25f, 0.75f, 0});  // both exact
    const int count = int(operands.size());
    DeviceArray<Floats> device_operands(operands);
    DeviceArray<float> results(8 * operands.size());
    launch("quotient_kernel", quotient_kernel, one_thread_per(count),
           device_operands.data(), results.data(), count);
    const auto got = results.to_host();
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < count; ++i) {
            const auto bits = [](float x) { return std::bit_cast<std::uint32_t>(x); };
            const Parts a = parts_of(kFloat, bits(operands[i].a));
            const Parts b = parts_of(kFloat, bits(operands[i].b));
            // a / b - x has the sign of a - x b, and sqrt(a) - x that of a - x x.
            const auto compare = [&](Parts x) {
                return Exact().add(a).subtract(product(x, j < 4 ? b : x)).sign();
            };
            const std::uint32_t low = truncated_magnitude(kFloat, compare);
            const bool exact = compare(parts_of(kFloat, low)) == 0;
            std::uint32_t wanted = low;
            if (j % 4 == 0) wanted = nearest_magnitude(kFloat, compare);
            if (j % 4 == 3) wanted = low + !exact;
            ASSERT_EQ(bits(got[j * count + i]), wanted)
                << "result " << j << " a " << operands[i].a << " b " << operands[i].b;
        }
}

// -------------------------------------------------------------------------- conversions
__global__ void to_integer_kernel(const float* values, int* ints, unsigned* uints,
                                  long long* lls, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float x = values[i];
    const int all[] = {__float2int_rn(x), __float2int_rz(x), __float2int_rd(x),
                       __float2int_ru(x)};
    for (int j = 0; j < 4; ++j) ints[j * count + i] = all[j];
    uints[i] = __float2uint_rn(x);
    uints[count + i] = __float2uint_rz(x);
    lls[i] = __float2ll_rn(x);
    lls[count + i] = __double2ll_rd(double(x));
}

/// PTX ISA, cvt: out of range gives the nearest in range.
template <typename Integer>
Integer clamped(double whole) {
    using Limits = std::numeric_limits<Integer>;
    if (whole <= double(Limits::min())) return Limits::min();
    if (whole >= double(Limits::max())) return Limits::max();
    return Integer(whole);
}

TEST(ConformanceIntrinsics, FloatsToIntegersSaturateAndNaNIsZeroOrTheHighestBit) {
    std::vector<float> values{0.0f,          -0.0f,
                              0.5f,          1.5f,
                              2.5f,          -0.5f,
                              -1.5f,         -2.7f,
                              1e9f,          2147483520.0f,
                              2147483648.0f, -2147483648.0f,
                              3e9f,          -3e9f,
                              4294967040.0f, 4294967296.0f,
                              9.3e18f,       -9.3e18f,
                              1e-40f,        INFINITY,
                              -INFINITY,     NAN};
    const int count = int(values.size());
    DeviceArray<float> device_values(values);
    DeviceArray<int> ints(4 * values.size());
    DeviceArray<unsigned> uints(2 * values.size());
    DeviceArray<long long> lls(2 * values.size());
    launch("to_integer_kernel", to_integer_kernel, one_thread_per(count),
           device_values.data(), ints.data(), uints.data(), lls.data(), count);
    const auto got_ints = ints.to_host();
    const auto got_uints = uints.to_host();
    const auto got_lls = lls.to_host();
    for (int i = 0; i < count; ++i) {
        const double x = values[i];
        const bool nan = std::isnan(x);
        const double whole[] = {std::rint(x), std::trunc(x), std::floor(x), std::ceil(x)};
        for (int j = 0; j < 4; ++j)
            EXPECT_EQ(got_ints[j * count + i], nan ? 0 : clamped<int>(whole[j])) << x;
        for (int j = 0; j < 2; ++j)
            EXPECT_EQ(got_uints[j * count + i], nan ? 0 : clamped<unsigned>(whole[j]))
                << x;
        for (int j : {0, 2})
            EXPECT_EQ(got_lls[j / 2 * count + i],
                      nan ? std::numeric_limits<long long>::min()
                          : clamped<long long>(whole[j]))
                << x;
    }
}

__global__ void to_float_kernel(const long long* values, float* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const long long x = values[i];
    const float all[] = {__ll2float_rn(x),       __ll2float_rz(x),
                         __ll2float_rd(x),       __ll2float_ru(x),
                         __int2float_rn(int(x)), __int2float_rz(int(x)),
                         __int2float_rd(int(x)), __int2float_ru(int(x))};
    for (int j = 0; j < 8; ++j) results[j * count + i] = all[j];
}

TEST(ConformanceIntrinsics, IntegersToFloatsRoundOnceInFourDirections) {
    std::vector<long long> values{0,
                                  1,
                                  -1,
                                  16777217,
                                  -16777217,
                                  16777219,
                                  2147483647,
                                  (1ll << 62) + (1ll << 38),
                                  (1ll << 62) + (1ll << 38) + 1,
                                  std::numeric_limits<long long>::min()};
    std::mt19937_64 random(7);
    for (int i = 0; i < 4000; ++i) values.push_back((long long)(random() >> (i % 64)));
    const int count = int(values.size());
    DeviceArray<long long> device_values(values);
    DeviceArray<float> results(8 * values.size());
    launch("to_float_kernel", to_float_kernel, one_thread_per(count),
           device_values.data(), results.data(), count);
    const auto got = results.to_host();
    for (int j = 0; j < 8; ++j)
        for (int i = 0; i < count; ++i) {
            Exact sum;
            sum.add({j < 4 ? values[i] : int(values[i]), 0});
            ASSERT_EQ(std::bit_cast<std::uint32_t>(got[j * count + i]),
                      rounded(kFloat, sum, Direction(j % 4)))
                << "result " << j << " of " << values[i];
        }
}

}  // namespace
}  // namespace moe::test
