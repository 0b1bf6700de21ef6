// integer_math_test.cu: integer intrinsics against loops over bits, mathematical
// functions against double, max and min, loads and stores.

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"

namespace moe::test {
namespace {

using gpu::launch, gpu::one_thread_per;
using Wide = unsigned long long;

struct Words {
    unsigned a, b, c;
};
constexpr int kWordResults = 19, kWideResults = 7;

/// words: [function][operands]; a:b is the 64-bit operand.
__global__ void integer_kernel(const Words* operands, unsigned* words, Wide* wides,
                               int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const unsigned a = operands[i].a, b = operands[i].b, c = operands[i].c;
    const Wide ab = Wide(a) << 32 | b, bc = Wide(b) << 32 | c;
    const unsigned all[kWordResults] = {unsigned(__popc(a)),
                                        unsigned(__clz(int(a))),
                                        unsigned(__ffs(int(a))),
                                        __brev(a),
                                        __byte_perm(a, b, c),
                                        __funnelshift_l(a, b, c),
                                        __funnelshift_r(a, b, c),
                                        __funnelshift_lc(a, b, c),
                                        __funnelshift_rc(a, b, c),
                                        __umulhi(a, b),
                                        unsigned(__mulhi(int(a), int(b))),
                                        unsigned(__mul24(int(a), int(b))),
                                        __umul24(a, b),
                                        __sad(int(a), int(b), c),
                                        __usad(a, b, c),
                                        __dp4a(a, b, c),
                                        unsigned(__dp4a(int(a), int(b), int(c))),
                                        unsigned(__hadd(int(a), int(b))),
                                        __urhadd(a, b)};
    const Wide all_wide[kWideResults] = {
        Wide(__popcll(ab)),
        Wide(__clzll((long long)ab)),
        Wide(__ffsll((long long)ab)),
        __brevll(ab),
        __umul64hi(ab, bc),
        Wide(__mul64hi((long long)ab, (long long)bc)),
        Wide(__double_as_longlong(__longlong_as_double((long long)ab)))};
    for (int j = 0; j < kWordResults; ++j) words[j * count + i] = all[j];
    for (int j = 0; j < kWideResults; ++j) wides[j * count + i] = all_wide[j];
}

/// Counts from either end, and the order reversed, by looking at one bit at a time.
int leading_zeros(Wide x, int bits) {
    int zeros = 0;
    while (zeros < bits && !(x >> (bits - 1 - zeros) & 1)) ++zeros;
    return zeros;
}
int first_set(Wide x, int bits) {
    for (int i = 0; i < bits; ++i)
        if (x >> i & 1) return i + 1;
    return 0;
}
int population(Wide x) {
    int ones = 0;
    for (int i = 0; i < 64; ++i) ones += int(x >> i & 1);
    return ones;
}
Wide reversed(Wide x, int bits) {
    Wide result = 0;
    for (int i = 0; i < bits; ++i) result |= (x >> i & 1) << (bits - 1 - i);
    return result;
}
unsigned byte_of(Wide x, int index) {
    return unsigned(x >> 8 * index) & 0xff;
}

/// Multiples of 2^-64 of the product of 64-bit numbers, by the 128-bit type of g++.
Wide high_product(Wide a, Wide b) {
    __extension__ using Wider = unsigned __int128;
    return Wide(Wider(a) * b >> 64);
}
Wide high_product(long long a, long long b) {
    __extension__ using Wider = __int128;
    return Wide(Wider(a) * b >> 64);
}

std::vector<unsigned> expected_words(Words in) {
    const auto [a, b, c] = in;
    const long long signed_a = int(a), signed_b = int(b);
    const Wide ba = Wide(b) << 32 | a;  // b is the high word
    const unsigned shift = c % 32, clamp = c < 32 ? c : 32;
    unsigned permuted = 0, dot = c, signed_dot = c;
    for (int i = 0; i < 4; ++i) {
        permuted |= byte_of(ba, int(c >> 4 * i) & 7) << 8 * i;
        dot += byte_of(a, i) * byte_of(b, i);
        signed_dot +=
            unsigned(int((signed char)byte_of(a, i)) * int((signed char)byte_of(b, i)));
    }
    const long long a24 = (signed_a << 40) >> 40, b24 = (signed_b << 40) >> 40;
    const long long difference = signed_a - signed_b;
    const Wide unsigned_difference = a > b ? a - b : b - a;
    // Rounded down also below zero, as a shift does.
    const long long mean = (long long)std::floor(double(signed_a + signed_b) / 2);
    return {unsigned(population(a)),
            unsigned(leading_zeros(a, 32)),
            unsigned(first_set(a, 32)),
            unsigned(reversed(a, 32)),
            permuted,
            unsigned(ba << shift >> 32),
            unsigned(ba >> shift),
            unsigned(ba << clamp >> 32),
            unsigned(ba >> clamp),
            unsigned(Wide(a) * b >> 32),
            unsigned(signed_a * signed_b >> 32),
            unsigned(a24 * b24),
            unsigned(Wide(a & 0xffffff) * (b & 0xffffff)),
            unsigned(std::abs(difference) + c),
            unsigned(unsigned_difference + c),
            dot,
            signed_dot,
            unsigned(mean),
            unsigned((Wide(a) + b + 1) / 2)};
}

TEST(ConformanceIntegers, IntrinsicsDoWhatLoopsOverBitsAndWiderTypesDo) {
    std::mt19937 random(8);
    std::vector<Words> operands;
    const unsigned special[] = {0u,          1u,  0x7fffffffu, 0x80000000u,
                                0xffffffffu, 32u, 0x5410u};
    for (unsigned a : special)
        for (unsigned b : special)
            for (unsigned c : special) operands.push_back({a, b, c});
    for (int i = 0; i < 2000; ++i)
        operands.push_back({unsigned(random()) >> (i % 32), unsigned(random()),
                            i % 2 ? unsigned(random()) : unsigned(random()) % 70});
    const int count = int(operands.size());
    DeviceArray<Words> device_operands(operands);
    DeviceArray<unsigned> words(kWordResults * operands.size());
    DeviceArray<Wide> wides(kWideResults * operands.size());
    launch("integer_kernel", integer_kernel, one_thread_per(count),
           device_operands.data(), words.data(), wides.data(), count);
    const auto got = words.to_host();
    const auto got_wide = wides.to_host();
    for (int i = 0; i < count; ++i) {
        const auto [a, b, c] = operands[i];
        const auto wanted = expected_words(operands[i]);
        ASSERT_EQ(wanted.size(), std::size_t(kWordResults));
        for (int j = 0; j < kWordResults; ++j)
            ASSERT_EQ(got[j * count + i], wanted[j])
                << "function " << j << " of " << a << " " << b << " " << c;
        const Wide ab = Wide(a) << 32 | b, bc = Wide(b) << 32 | c;
        const std::vector<Wide> wanted_wide{Wide(population(ab)),
                                            Wide(leading_zeros(ab, 64)),
                                            Wide(first_set(ab, 64)),
                                            reversed(ab, 64),
                                            high_product(ab, bc),
                                            high_product((long long)ab, (long long)bc),
                                            ab};
        for (int j = 0; j < kWideResults; ++j)
            ASSERT_EQ(got_wide[j * count + i], wanted_wide[j])
                << "function " << j << " of " << ab << " " << bc;
    }
}

// ------------------------------------------------------------------------------- floats
constexpr int kFunctions = 17;
__global__ void function_kernel(const float* values, float* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const float x = values[i];
    const float all[kFunctions] = {rsqrtf(x),
                                   rcbrtf(x),
                                   sinpif(x),
                                   cospif(x),
                                   normcdff(x),
                                   exp10f(x),
                                   __expf(x),
                                   __logf(x),
                                   __log2f(x),
                                   __powf(x, 1.5f),
                                   __sinf(x),
                                   __cosf(x),
                                   __tanf(x),
                                   __fdividef(x, 3.0f),
                                   __frcp_rn(x),
                                   __expf(-x),
                                   float(rsqrt(double(x)))};
    for (int j = 0; j < kFunctions; ++j) results[j * count + i] = all[j];
}

TEST(ConformanceFunctions, AgreeWithDoubleWithinTheErrorThatIsDocumented) {
    std::vector<float> values;
    for (int i = 1; i <= 300; ++i) values.push_back(0.01f * float(i));
    const int count = int(values.size());
    DeviceArray<float> device_values(values), results(kFunctions * values.size());
    launch("function_kernel", function_kernel, one_thread_per(count),
           device_values.data(), results.data(), count);
    const auto got = results.to_host();
    for (int i = 0; i < count; ++i) {
        const double x = values[i], pi = std::acos(-1.0);
        const double wanted[kFunctions] = {1 / std::sqrt(x),
                                           1 / std::cbrt(x),
                                           std::sin(pi * x),
                                           std::cos(pi * x),
                                           std::erfc(-x / std::sqrt(2.0)) / 2,
                                           std::pow(10.0, x),
                                           std::exp(x),
                                           std::log(x),
                                           std::log2(x),
                                           std::pow(x, 1.5),
                                           std::sin(x),
                                           std::cos(x),
                                           std::tan(x),
                                           x / 3,
                                           1 / x,
                                           std::exp(-x),
                                           1 / std::sqrt(x)};
        for (int j = 0; j < kFunctions; ++j) {
            // The fast sine, cosine and logarithm have absolute errors of 2^-21; the
            // tangent is their quotient.
            const double relative = 4e-6 * (j == 12 ? 1 + std::fabs(wanted[j]) : 1);
            EXPECT_NEAR(got[j * count + i], wanted[j],
                        relative * std::fabs(wanted[j]) + 1e-6)
                << "function " << j << " of " << x;
        }
    }
}

constexpr int kExtremes = 24;
__global__ void special_kernel(const float* in, float* out) {
    const float nan = in[0], infinity = in[1], zero = in[2], one = in[3];
    const float all[kExtremes] = {max(nan, one),
                                  max(one, nan),
                                  min(nan, one),
                                  min(one, nan),
                                  max(zero, -zero),
                                  max(-zero, zero),
                                  min(zero, -zero),
                                  min(-zero, zero),
                                  max(one, infinity),
                                  min(one, -infinity),
                                  float(max(double(nan), 2.0)),
                                  float(min(2.0, double(nan))),
                                  __saturatef(nan),
                                  __saturatef(-one),
                                  __saturatef(infinity),
                                  __saturatef(0.25f * one),
                                  __fdividef(one, 1.2e38f * one),
                                  __fdividef(one, 1e37f * one),
                                  sinpif(3 * one),
                                  sinpif(-0.5f * one),
                                  cospif(0.5f * one),
                                  cospif(-3 * one),
                                  __int_as_float(__float_as_int(-one)),
                                  __uint_as_float(__float_as_uint(infinity))};
    for (int j = 0; j < kExtremes; ++j) out[j] = all[j];
}

TEST(ConformanceFunctions, MaxAndMinDropNaNOrderZerosAndClampsHaveDocumentedEnds) {
    DeviceArray<float> in(std::vector<float>{NAN, INFINITY, 0.0f, 1.0f}), out(kExtremes);
    launch("special_kernel", special_kernel, {1, 1}, in.data(), out.data());
    const std::vector<float> wanted{
        1, 1, 1, 1,     0.0f, 0.0f,      -0.0f, -0.0f, INFINITY, -INFINITY, 2,  2,
        0, 0, 1, 0.25f, 0,    1 / 1e37f, 0,     -1,    0,        -1,        -1, INFINITY};
    const auto got = out.to_host();
    for (int j = 0; j < kExtremes; ++j) {
        EXPECT_FLOAT_EQ(got[j], wanted[j]) << j;
        EXPECT_EQ(std::signbit(got[j]), std::signbit(wanted[j])) << j;
    }
}

__global__ void extremes_kernel(long long* out) {
    out[0] = max(-3, 2);
    out[1] = min(-3, 2);
    out[2] = max(1u, 0xffffffffu);
    out[3] = min(-5l, 7l);
    out[4] = max(-5ll, 1ll << 40);
    out[5] = (long long)min(~0ull, 1ull << 50);
    out[6] = max(4l, 3l);
}

TEST(ConformanceFunctions, MaxAndMinOfIntegersKeepTheirWidthAndSign) {
    DeviceArray<long long> out(7);
    launch("extremes_kernel", extremes_kernel, {1, 1}, out.data());
    EXPECT_EQ(out.to_host(),
              (std::vector<long long>{2, -3, 0xffffffff, -5, 1ll << 40, 1ll << 50, 4}));
}

__global__ void copy_kernel(const float4* in, float4* out) {
    __stcg(&out[0], __ldg(&in[0]));
    __stcs(&out[1], __ldcg(&in[1]));
    __stwb(&out[2], __ldcs(&in[2]));
}

TEST(ConformanceFunctions, HintedLoadsAndStoresMoveWholeVectors) {
    std::vector<float4> in{{1, 2, 3, 4}, {5, 6, 7, 8}, {9, 10, 11, 12}};
    DeviceArray<float4> device_in(in), out(in.size());
    launch("copy_kernel", copy_kernel, {1, 1}, device_in.data(), out.data());
    const auto got = out.to_host();
    for (std::size_t i = 0; i < in.size(); ++i) {
        EXPECT_EQ(got[i].x, in[i].x);
        EXPECT_EQ(got[i].w, in[i].w);
    }
}

}  // namespace
}  // namespace moe::test
