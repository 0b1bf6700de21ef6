// numbers_test.cu: conversions of bf16 and half: all 65,536 bit patterns, all middles
// between neighbours, special values; against exact integers rounded once.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/number_types.h"

namespace moe::test {
namespace {

using gpu::launch, gpu::one_thread_per;

template <typename Type>
class ConformanceNumbers : public testing::Test {};
TYPED_TEST_SUITE(ConformanceNumbers, BothTypes, TypeName);

constexpr int kPatterns = 65536;

std::uint32_t float_bits(float value) {
    return std::bit_cast<std::uint32_t>(value);
}
float float_of(std::uint32_t bits) {
    return std::bit_cast<float>(bits);
}

// -------------------------------------------------------------------------- conversions
template <typename Type>
__global__ void widen_kernel(float* wide, Bits* back) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= kPatterns) return;
    wide[i] = Type::widen(Type::of(Bits(i)));
    back[i] = Type::bits(Type::rn(wide[i]));
}

TYPED_TEST(ConformanceNumbers, Every16BitPatternWidensExactlyAndComesBack) {
    const Format format = TypeParam::format;
    DeviceArray<float> wide(kPatterns);
    DeviceArray<Bits> back(kPatterns);
    launch("widen_kernel", widen_kernel<TypeParam>, one_thread_per(kPatterns),
           wide.data(), back.data());
    const auto floats = wide.to_host();
    const auto patterns = back.to_host();
    for (std::uint32_t i = 0; i < kPatterns; ++i) {
        if (format.is_nan(i)) {
            ASSERT_TRUE(std::isnan(floats[i])) << std::hex << i;
            ASSERT_EQ(patterns[i], format.nan()) << std::hex << i;
            continue;
        }
        ASSERT_EQ(float_bits(floats[i]), float_bits(float(number(format, i))))
            << std::hex << i;
        ASSERT_EQ(patterns[i], i) << std::hex << i;
    }
}

/// results: the four directions, one after the other.
template <typename Type>
__global__ void narrow_kernel(const float* values, Bits* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    results[i] = Type::bits(Type::rn(values[i]));
    results[count + i] = Type::bits(Type::rz(values[i]));
    results[2 * count + i] = Type::bits(Type::rd(values[i]));
    results[3 * count + i] = Type::bits(Type::ru(values[i]));
}

template <typename Type>
void expect_narrowed(const std::vector<float>& values) {
    const int count = int(values.size());
    DeviceArray<float> device_values(values);
    DeviceArray<Bits> device_results(4 * values.size());
    launch("narrow_kernel", narrow_kernel<Type>, one_thread_per(count),
           device_values.data(), device_results.data(), count);
    const auto results = device_results.to_host();
    for (int direction = 0; direction < 4; ++direction)
        for (int i = 0; i < count; ++i) {
            const Bits wanted = std::isnan(values[i]) ? Bits(Type::format.nan())
                                                      : expected(Type::format, values[i],
                                                                 Direction(direction));
            ASSERT_EQ(results[direction * count + i], wanted)
                << "fp32 bits 0x" << std::hex << float_bits(values[i]) << " direction "
                << direction;
        }
}

TYPED_TEST(ConformanceNumbers, MiddlesGoToTheEvenNeighbourAndTheirNeighboursDoNot) {
    std::vector<float> values;
    for (std::uint32_t bits = 0; bits < TypeParam::format.infinity(); ++bits) {
        const Parts parts = parts_of(TypeParam::format, bits);
        const float middle =
            float(std::ldexp(2.0 * double(parts.significand) + 1, parts.exponent - 1));
        for (float value :
             {std::nextafterf(middle, 0.0f), middle, std::nextafterf(middle, INFINITY)}) {
            values.push_back(value);
            values.push_back(-value);
        }
    }
    expect_narrowed<TypeParam>(values);
}

TYPED_TEST(ConformanceNumbers, NaNInfinityOverflowAndTinyFloatsNarrowAsDocumented) {
    std::vector<float> values;
    for (std::uint32_t bits :
         {0x7f800000u, 0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu, 0x7f7fffffu,
          0x7f7f0000u, 0x477fe000u, 0x477fefffu, 0x477ff000u, 0x47800000u, 0x00000000u,
          0x00000001u, 0x00007fffu, 0x00008000u, 0x00008001u, 0x007fffffu, 0x00800000u,
          0x33000000u, 0x33000001u, 0x32ffffffu, 0x387fc000u, 0x387fe000u, 0x3f800000u})
        for (std::uint32_t sign : {0u, 0x80000000u})
            values.push_back(float_of(bits | sign));
    std::mt19937 random(1);
    for (int i = 0; i < 20000; ++i) values.push_back(float_of(std::uint32_t(random())));
    expect_narrowed<TypeParam>(values);
}

template <typename Type>
__global__ void of_double_kernel(const double* values, Bits* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) results[i] = Type::bits(Type::of_double(values[i]));
}

TYPED_TEST(ConformanceNumbers, DoublesAreRoundedOnceNotByWayOfFloat) {
    std::vector<double> values{0.0, -0.0, 1e300, -1e300, 1e-300, 5e-324, -INFINITY};
    for (std::uint32_t bits = 0; bits < TypeParam::format.infinity(); bits += 7) {
        const Parts parts = parts_of(TypeParam::format, bits);
        const double middle =
            std::ldexp(2.0 * double(parts.significand) + 1, parts.exponent - 1);
        for (double factor : {1.0, 1 + 0x1p-40, 1 - 0x1p-40, 1 + 0x1p-52, 1 - 0x1p-53})
            values.push_back((bits % 2 ? -middle : middle) * factor);
    }
    DeviceArray<double> device_values(values);
    DeviceArray<Bits> results(values.size());
    launch("of_double_kernel", of_double_kernel<TypeParam>,
           one_thread_per(std::int64_t(values.size())), device_values.data(),
           results.data(), int(values.size()));
    const auto got = results.to_host();
    for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_EQ(got[i], expected(TypeParam::format, values[i], Direction::nearest))
            << std::hexfloat << values[i];
}

template <typename Type>
__global__ void to_integer_kernel(int* rn, int* rz, unsigned* rd, long long* ru) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= kPatterns) return;
    rn[i] = Type::int_rn(Type::of(Bits(i)));
    rz[i] = Type::int_rz(Type::of(Bits(i)));
    rd[i] = Type::uint_rd(Type::of(Bits(i)));
    ru[i] = Type::ll_ru(Type::of(Bits(i)));
}

/// A whole number, brought into the integer's range.
template <typename Integer>
Integer clamped(double whole) {
    using Limits = std::numeric_limits<Integer>;
    if (whole <= double(Limits::min())) return Limits::min();
    if (whole >= double(Limits::max())) return Limits::max();
    return Integer(whole);
}

TYPED_TEST(ConformanceNumbers, EveryPatternBecomesTheIntegerInItsDirectionWithinRange) {
    const Format format = TypeParam::format;
    DeviceArray<int> rn(kPatterns), rz(kPatterns);
    DeviceArray<unsigned> rd(kPatterns);
    DeviceArray<long long> ru(kPatterns);
    launch("to_integer_kernel", to_integer_kernel<TypeParam>, one_thread_per(kPatterns),
           rn.data(), rz.data(), rd.data(), ru.data());
    const auto got_rn = rn.to_host(), got_rz = rz.to_host();
    const auto got_rd = rd.to_host();
    const auto got_ru = ru.to_host();
    for (std::uint32_t i = 0; i < kPatterns; ++i) {
        const bool nan = format.is_nan(i);
        const double value = nan ? 0 : number(format, i);
        ASSERT_EQ(got_rn[i], nan ? 0 : clamped<int>(std::rint(value))) << i;
        ASSERT_EQ(got_rz[i], nan ? 0 : clamped<int>(std::trunc(value))) << i;
        ASSERT_EQ(got_rd[i], nan ? 0 : clamped<unsigned>(std::floor(value))) << i;
        ASSERT_EQ(got_ru[i], nan ? std::numeric_limits<long long>::min()
                                 : clamped<long long>(std::ceil(value)))
            << i;
    }
}

template <typename Type>
__global__ void of_integer_kernel(const long long* values, Bits* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    results[i] = Type::bits(Type::of_ll(values[i]));
    results[count + i] = Type::bits(Type::of_ull((unsigned long long)values[i]));
    results[2 * count + i] = Type::bits(Type::of_int(int(values[i])));
}

TYPED_TEST(ConformanceNumbers, IntegersOf64BitsAreRoundedOnceNotByWayOfDouble) {
    std::vector<long long> values{0, 1, -1, 65519, 65520, 65535, -65520};
    std::mt19937_64 random(2);
    for (int i = 0; i < 20000; ++i) values.push_back((long long)(random() >> (i % 64)));
    // In the middle of two bf16 numbers, or of two halves, and just beside it.
    for (long long middle :
         {0x4040000000000000ll, 0x40c0000000000000ll, 0x8010ll, 0x8030ll})
        for (long long beside : {-1, 0, 1}) {
            values.push_back(middle + beside);
            values.push_back(-middle + beside);
        }
    const int count = int(values.size());
    DeviceArray<long long> device_values(values);
    DeviceArray<Bits> results(3 * values.size());
    launch("of_integer_kernel", of_integer_kernel<TypeParam>, one_thread_per(count),
           device_values.data(), results.data(), count);
    const auto got = results.to_host();
    for (int i = 0; i < count; ++i) {
        // An unsigned number is its signed reading and, if that is negative, 2^64 more.
        Exact as_signed, as_unsigned, as_int;
        as_signed.add({values[i], 0});
        as_unsigned.add({values[i], 0}).add({values[i] < 0 ? 1 : 0, 64});
        as_int.add({int(values[i]), 0});
        const auto round = [](Exact sum) {
            return rounded(TypeParam::format, sum, Direction::nearest);
        };
        ASSERT_EQ(got[i], round(as_signed)) << values[i];
        ASSERT_EQ(got[count + i], round(as_unsigned)) << values[i];
        ASSERT_EQ(got[2 * count + i], round(as_int)) << values[i];
    }
}

// -------------------------------------------------------------------------------- pairs
/// The numbers 2 i and 2 i + 1 through every way of making a pair and taking it apart.
template <typename Type>
__global__ void pair_kernel(const float2* values, unsigned* pair_bits, float2* wide,
                            Bits* halves) {
    const int i = int(threadIdx.x);
    auto* pairs = reinterpret_cast<typename Type::Pair*>(pair_bits);
    pairs[3 * i] = Type::pair(values[i]);
    pairs[3 * i + 1] = Type::pair(values[i].x, values[i].y);
    pairs[3 * i + 2] = Type::pair(Type::rn(values[i].x), Type::rn(values[i].y));
    const auto pair = pairs[3 * i];
    wide[2 * i] = Type::widen(pair);
    wide[2 * i + 1] = make_float2(__low2float(pair), __high2float(pair));
    halves[6 * i] = Type::bits(Type::low(pair));
    halves[6 * i + 1] = Type::bits(Type::high(pair));
    halves[6 * i + 2] = Type::bits(Type::both(pair.y).x);
    halves[6 * i + 3] = Type::bits(Type::both(pair.x).y);
    halves[6 * i + 4] = Type::bits(__lowhigh2highlow(pair).x);
    halves[6 * i + 5] = Type::bits(__lowhigh2highlow(pair).y);
}

TYPED_TEST(ConformanceNumbers, PairsKeepTheFirstNumberInTheLowHalf) {
    constexpr int kPairs = 32;
    std::vector<float2> values(kPairs);
    for (int i = 0; i < kPairs; ++i) values[i] = {0.1f * float(i), -3.7f * float(i + 1)};
    DeviceArray<float2> device_values(values), wide(2 * kPairs);
    DeviceArray<unsigned> pairs(3 * kPairs);
    DeviceArray<Bits> halves(6 * kPairs);
    launch("pair_kernel", pair_kernel<TypeParam>, {1, kPairs}, device_values.data(),
           pairs.data(), wide.data(), halves.data());
    const auto got_pairs = pairs.to_host();
    const auto got_wide = wide.to_host();
    const auto got_halves = halves.to_host();
    for (int i = 0; i < kPairs; ++i) {
        const Bits x = expected(TypeParam::format, values[i].x, Direction::nearest);
        const Bits y = expected(TypeParam::format, values[i].y, Direction::nearest);
        for (int way = 0; way < 3; ++way)
            EXPECT_EQ(got_pairs[3 * i + way], unsigned(y) << 16 | x);
        for (int way = 0; way < 2; ++way) {
            EXPECT_EQ(got_wide[2 * i + way].x, float(number(TypeParam::format, x)));
            EXPECT_EQ(got_wide[2 * i + way].y, float(number(TypeParam::format, y)));
        }
        const std::vector<Bits> wanted{x, y, y, x, y, x};
        for (int j = 0; j < 6; ++j) EXPECT_EQ(got_halves[6 * i + j], wanted[j]) << j;
    }
}

}  // namespace
}  // namespace moe::test
