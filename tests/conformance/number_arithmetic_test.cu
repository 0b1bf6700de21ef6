// number_arithmetic_test.cu: arithmetic, comparisons and operators of bf16 and half:
// every result is the exact one rounded once, whatever the operands.

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <random>

#include "gpu/launch.h"
#include "tests/conformance/device_array.h"
#include "tests/conformance/number_types.h"

namespace moe::test {
namespace {

using gpu::launch, gpu::one_thread_per;

template <typename Type>
class ConformanceArithmetic : public testing::Test {};
TYPED_TEST_SUITE(ConformanceArithmetic, BothTypes, TypeName);

struct Operands {
    Bits a, b, c;
};
enum Operation { kAdd, kSub, kMul, kDiv, kFma, kMax, kMin, kOperations };

bool is_negative(Format format, Bits bits) {
    return bits & format.sign_bit();
}
bool is_finite(Format format, Bits bits) {
    return (bits & format.nan()) < format.infinity();
}

/// Quotients need no sum: |a| is compared with candidate * |b|.
Bits expected_quotient(Format format, Bits a, Bits b) {
    const Parts dividend = parts_of(format, a & format.nan());
    const Parts divisor = parts_of(format, b & format.nan());
    const auto compare = [&](Parts candidate) {
        return Exact().add(dividend).subtract(product(candidate, divisor)).sign();
    };
    return Bits(nearest_magnitude(format, compare) | ((a ^ b) & format.sign_bit()));
}

/// The larger, or the smaller; a number rather than NaN; +0 above -0.
Bits expected_extreme(Format format, Bits a, Bits b, bool larger) {
    if (format.is_nan(a)) return format.is_nan(b) ? Bits(format.nan()) : b;
    if (format.is_nan(b)) return a;
    const double x = number(format, a), y = number(format, b);
    const bool a_is_larger = x > y || (x == y && is_negative(format, b));
    return a_is_larger == larger ? a : b;
}

Bits expected_result(Format format, Operation operation, Operands in) {
    if (operation == kMax || operation == kMin)
        return expected_extreme(format, in.a, in.b, operation == kMax);
    const double a = number(format, in.a), b = number(format, in.b);
    const double c = number(format, in.c);
    const bool has_nan = format.is_nan(in.a) || format.is_nan(in.b) ||
                         (operation == kFma && format.is_nan(in.c));
    const bool all_finite = is_finite(format, in.a) && is_finite(format, in.b) &&
                            (operation != kFma || is_finite(format, in.c));
    // NaN, infinity and zero come out of doubles right; only rounding needs integers.
    double special = 0;
    switch (operation) {
        case kAdd: special = a + b; break;
        case kSub: special = a - b; break;
        case kMul: special = a * b; break;
        case kDiv: special = a / b; break;
        default: special = a * b + c;
    }
    if (has_nan || std::isnan(special)) return Bits(format.nan());
    if (!all_finite || (operation == kDiv && b == 0))
        return expected(format, special, Direction::nearest);
    if (operation == kDiv) return expected_quotient(format, in.a, in.b);

    const Parts x = parts_of(format, in.a), y = parts_of(format, in.b);
    Exact sum;
    switch (operation) {
        case kAdd: sum.add(x).add(y); break;
        case kSub: sum.add(x).subtract(y); break;
        case kMul: sum.add(product(x, y)); break;
        default: sum.add(product(x, y)).add(parts_of(format, in.c));
    }
    return Bits(rounded(format, sum, Direction::nearest, std::signbit(special)));
}

/// results: [operation][operands].
template <typename Type>
__global__ void arithmetic_kernel(const Operands* operands, Bits* results, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const auto a = Type::of(operands[i].a), b = Type::of(operands[i].b),
               c = Type::of(operands[i].c);
    results[kAdd * count + i] = Type::bits(__hadd(a, b));
    results[kSub * count + i] = Type::bits(__hsub(a, b));
    results[kMul * count + i] = Type::bits(__hmul(a, b));
    results[kDiv * count + i] = Type::bits(__hdiv(a, b));
    results[kFma * count + i] = Type::bits(__hfma(a, b, c));
    results[kMax * count + i] = Type::bits(__hmax(a, b));
    results[kMin * count + i] = Type::bits(__hmin(a, b));
}

// Hardware divides approximately where the quotient is subnormal: one unit is allowed.
#ifdef __CUDACC__
constexpr int kQuotientSlack = 1;
#else
constexpr int kQuotientSlack = 0;
#endif

/// All results against the definition.
template <typename Type>
void expect_rounded_once(const std::vector<Operands>& operands) {
    const Format format = Type::format;
    const int count = int(operands.size());
    DeviceArray<Operands> device_operands(operands);
    DeviceArray<Bits> device_results(kOperations * operands.size());
    launch("arithmetic_kernel", arithmetic_kernel<Type>, one_thread_per(count),
           device_operands.data(), device_results.data(), count);
    const auto results = device_results.to_host();
    for (int operation = 0; operation < kOperations; ++operation)
        for (int i = 0; i < count; ++i) {
            const Bits wanted =
                expected_result(format, Operation(operation), operands[i]);
            const Bits got = results[operation * count + i];
            const bool subnormal = (wanted & format.nan()) >> format.mantissa_bits == 0;
            if (operation == kDiv && subnormal) {
                ASSERT_LE(std::abs(int(got) - int(wanted)), kQuotientSlack);
                continue;
            }
            ASSERT_EQ(got, wanted)
                << "operation " << operation << std::hex << " a 0x" << operands[i].a
                << " b 0x" << operands[i].b << " c 0x" << operands[i].c;
        }
}

TYPED_TEST(ConformanceArithmetic, RandomBitPatternsOfAllSizes) {
    std::mt19937 random(3);
    std::vector<Operands> operands(20000);
    for (Operands& in : operands) in = {Bits(random()), Bits(random()), Bits(random())};
    expect_rounded_once<TypeParam>(operands);
}

TYPED_TEST(ConformanceArithmetic, NumbersOfLikeSizeWhereSumsCancelAndTie) {
    std::mt19937 random(4);
    const int one_bit = TypeParam::format.mantissa_bits;
    const std::uint32_t one = TypeParam::format.infinity() / 2 & ~((1u << one_bit) - 1);
    // Signs and mantissas at random, exponents within 7 of that of 1.
    const auto near_one = [&] {
        const std::uint32_t mantissa = random() & ((1u << one_bit) - 1);
        const int exponent = int(random() % 15) - 7;
        return Bits((one | mantissa) + exponent * (1 << one_bit) + (random() & 0x8000u));
    };
    std::vector<Operands> operands(20000);
    for (Operands& in : operands) in = {near_one(), near_one(), near_one()};
    expect_rounded_once<TypeParam>(operands);
}

TYPED_TEST(ConformanceArithmetic, ATinyAddendDecidesATieOfTheProduct) {
    // (1 + 2^-m)(1 + 2^-1) is in the middle of two numbers. The addend is far below the
    // last bit of a float, for bf16 also of a double, and still moves it off the middle.
    const Format format = TypeParam::format;
    const int m = format.mantissa_bits;
    const Bits one = Bits(format.infinity() / 2 & ~((1u << m) - 1));
    const Bits above_one = Bits(one + 1), three_halves = Bits(one + (1 << (m - 1)));
    std::vector<Operands> operands;
    for (unsigned sign : {0u, 0x8000u})
        for (unsigned addend : {0u, 0x8000u, 1u, 0x8001u, 2u, 0x8003u})
            operands.push_back({Bits(above_one | sign), three_halves, Bits(addend)});
    expect_rounded_once<TypeParam>(operands);
}

std::vector<Bits> special_numbers(Format format) {
    const unsigned infinity = format.infinity(), smallest = 1u << format.mantissa_bits;
    std::vector<Bits> numbers;
    for (unsigned bits : {0u, 1u, 2u, smallest - 1, smallest, infinity / 2, infinity / 4,
                          infinity - 1, infinity, infinity + 1, 0x7fffu})
        for (unsigned sign : {0u, 0x8000u}) numbers.push_back(Bits(bits | sign));
    return numbers;
}

std::vector<Operands> special_operands(Format format) {
    std::vector<Operands> operands;
    const auto numbers = special_numbers(format);
    for (Bits a : numbers)
        for (Bits b : numbers)
            for (Bits c : numbers) operands.push_back({a, b, c});
    return operands;
}

TYPED_TEST(ConformanceArithmetic, ZerosInfinitiesNaNAndTheSmallestAndLargest) {
    expect_rounded_once<TypeParam>(special_operands(TypeParam::format));
}

// -------------------------------------------------------------------------- comparisons
/// Bit by bit: == != < <= > >=, the six that NaN makes true, ==, !=, < as operators.
template <typename Type>
__global__ void comparison_kernel(const Operands* operands, unsigned* results,
                                  int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const auto a = Type::of(operands[i].a), b = Type::of(operands[i].b);
    const bool all[] = {__heq(a, b),  __hne(a, b),  __hlt(a, b),  __hle(a, b),
                        __hgt(a, b),  __hge(a, b),  __hequ(a, b), __hneu(a, b),
                        __hltu(a, b), __hleu(a, b), __hgtu(a, b), __hgeu(a, b),
                        a == b,       a != b,       a < b,        __hisnan(a)};
    unsigned bits = 0;
    for (int j = 0; j < 16; ++j) bits |= unsigned(all[j]) << j;
    results[i] = bits | unsigned(__hisinf(a) + 1) << 16;
}

TYPED_TEST(ConformanceArithmetic, ComparisonsWithNaNAreFalseOrIfUnorderedTrue) {
    const Format format = TypeParam::format;
    const auto operands = special_operands(format);
    DeviceArray<Operands> device_operands(operands);
    DeviceArray<unsigned> results(operands.size());
    launch("comparison_kernel", comparison_kernel<TypeParam>,
           one_thread_per(std::int64_t(operands.size())), device_operands.data(),
           results.data(), int(operands.size()));
    const auto got = results.to_host();
    for (std::size_t i = 0; i < operands.size(); ++i) {
        const Bits a = operands[i].a, b = operands[i].b;
        const bool nan = format.is_nan(a) || format.is_nan(b);
        const double x = number(format, a), y = number(format, b);
        const bool ordered[] = {x == y, x != y, x<y, x <= y, x> y, x >= y};
        unsigned wanted = 0;
        for (int j = 0; j < 6; ++j) {
            wanted |= unsigned(!nan && ordered[j]) << j;
            wanted |= unsigned(nan || ordered[j]) << (6 + j);
        }
        wanted |= (wanted & 1) << 12 | (wanted >> 7 & 1) << 13 | (wanted >> 2 & 1) << 14;
        wanted |= unsigned(format.is_nan(a)) << 15;
        const bool infinite = (a & format.nan()) == format.infinity();
        wanted |= (infinite ? (is_negative(format, a) ? 0u : 2u) : 1u) << 16;
        ASSERT_EQ(got[i], wanted) << std::hex << a << " " << b;
    }
}

// ------------------------------------------------------------------ pairs and operators
/// What the pair functions give for (a, b), (b, c), (c, a), less what the scalar ones
/// give for each half; zeros if all is well. Then the operators, likewise.
template <typename Type>
__global__ void pair_kernel(const Operands* operands, int* differences, int count) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (i >= count) return;
    const auto a = Type::of(operands[i].a), b = Type::of(operands[i].b),
               c = Type::of(operands[i].c);
    const auto p = Type::pair(a, b), q = Type::pair(b, c), r = Type::pair(c, a);
    int* out = differences + i;
    const auto compare = [&](typename Type::Pair pair, typename Type::Scalar low,
                             typename Type::Scalar high) {
        *out = (Type::bits(pair.x) - Type::bits(low)) |
               (Type::bits(pair.y) - Type::bits(high));
        out += count;
    };
    compare(__hadd2(p, q), __hadd(a, b), __hadd(b, c));
    compare(__hsub2(p, q), __hsub(a, b), __hsub(b, c));
    compare(__hmul2(p, q), __hmul(a, b), __hmul(b, c));
    compare(__hfma2(p, q, r), __hfma(a, b, c), __hfma(b, c, a));
    compare(__hmax2(p, q), __hmax(a, b), __hmax(b, c));
    compare(__hmin2(p, q), __hmin(a, b), __hmin(b, c));
    compare(p + q, a + b, b + c);
    compare(p * q, a * b, b * c);
    // A product followed by a sum could become a fused multiply-add on a device.
    auto sum = a;
    sum += b;
    sum -= c;
    sum *= a;
    const auto wanted = __hmul(__hsub(__hadd(a, b), c), a);
    compare(Type::both(sum), wanted, wanted);
    typename Type::Scalar assigned = 1.0f;
    assigned = float(a);
    compare(Type::both(assigned), Type::rn(Type::widen(a)), Type::rn(Type::widen(a)));
}

TYPED_TEST(ConformanceArithmetic, PairsAndOperatorsDoToEachWhatTheScalarFunctionsDo) {
    constexpr int kChecks = 10;
    const auto operands = special_operands(TypeParam::format);
    DeviceArray<Operands> device_operands(operands);
    DeviceArray<int> differences(kChecks * operands.size());
    launch("pair_kernel", pair_kernel<TypeParam>,
           one_thread_per(std::int64_t(operands.size())), device_operands.data(),
           differences.data(), int(operands.size()));
    const auto got = differences.to_host();
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(got[i], 0) << "check " << i / operands.size() << " operands "
                             << i % operands.size();
}

}  // namespace
}  // namespace moe::test
