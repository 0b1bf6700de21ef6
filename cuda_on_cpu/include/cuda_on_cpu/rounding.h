/// @file
/// Rounding done on bits, once, in any of IEEE 754's four directions: what bf16, half and
/// the intrinsics with a rounding mode in their names (_rn, _rz, _rd, _ru) rest on.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace cuda_on_cpu {

enum class Rounding { nearest, zero, down, up };  ///< nearest: ties go to the even one

/// A binary format: sign, exponent, mantissa, from the highest bit to the lowest.
template <int exponent_bits, int mantissa_bits>
struct BinaryFormat {
    static constexpr int kMantissaBits = mantissa_bits;
    static constexpr int kSignBit = exponent_bits + mantissa_bits;
    static constexpr int kBias = (1 << (exponent_bits - 1)) - 1;
    static constexpr int kMinExponent = 1 - kBias;  ///< of the smallest normal number
    static constexpr std::uint32_t kInfinity = ((1u << exponent_bits) - 1)
                                               << mantissa_bits;
    static constexpr std::uint32_t kNaN = (1u << kSignBit) - 1;  ///< all ones: CUDA's
};
using Bfloat16Format = BinaryFormat<8, 7>;
using HalfFormat = BinaryFormat<5, 10>;
using FloatFormat = BinaryFormat<8, 23>;

/// Whether the part of a magnitude that does not fit makes it grow by one unit.
inline bool rounds_away(Rounding rounding, bool negative, bool odd, std::uint64_t rest,
                        std::uint64_t half) {
    switch (rounding) {
        case Rounding::nearest: return rest > half || (rest == half && odd);
        case Rounding::zero: return false;
        case Rounding::down: return rest != 0 && negative;
        case Rounding::up: return rest != 0 && !negative;
    }
    return false;
}

/// The bits of `value` in Format. Every NaN becomes Format::kNaN.
template <typename Format>
std::uint32_t round_to(double value, Rounding rounding = Rounding::nearest) {
    constexpr int kDoubleMantissa = 52, kDoubleBias = 1023;
    if (std::isnan(value)) return Format::kNaN;
    const auto bits = std::bit_cast<std::uint64_t>(value);
    const bool negative = bits >> 63;
    const std::uint32_t sign = std::uint32_t(negative) << Format::kSignBit;
    if (std::isinf(value)) return sign | Format::kInfinity;
    if (value == 0) return sign;

    // value = significand * 2^(exponent - 52). A double too small to be normal is far
    // below half of every format's smallest number: any tiny one stands for it.
    const int biased = int(bits >> kDoubleMantissa & 0x7ff);
    const int exponent = (biased == 0 ? 1 : biased) - kDoubleBias;
    const std::uint64_t significand = (bits & ((1ull << kDoubleMantissa) - 1)) |
                                      (biased == 0 ? 1 : 1ull << kDoubleMantissa);
    // Below the smallest normal number all numbers have the same exponent.
    const int shared = exponent > Format::kMinExponent ? exponent : Format::kMinExponent;
    const int all_dropped = kDoubleMantissa - Format::kMantissaBits + shared - exponent;
    const int dropped = all_dropped < 63 ? all_dropped : 63;
    const std::uint64_t kept = significand >> dropped;
    const std::uint64_t rest = significand & ((1ull << dropped) - 1);
    const bool grows =
        rounds_away(rounding, negative, kept & 1, rest, 1ull << (dropped - 1));

    // TUTORIAL: a normal number's `kept` has its leading one at bit kMantissaBits, where
    // the exponent begins; so that one, and a carry out of the mantissa, both count in
    // the exponent by plain addition.
    const auto base = std::uint64_t(shared - Format::kMinExponent)
                      << Format::kMantissaBits;
    const std::uint64_t magnitude = base + kept + grows;
    if (magnitude < Format::kInfinity) return sign | std::uint32_t(magnitude);
    const bool to_infinity = rounds_away(rounding, negative, true, 1, 1);
    return sign | (to_infinity ? Format::kInfinity : Format::kInfinity - 1);
}

inline float round_to_float(double value, Rounding rounding) {
    return std::bit_cast<float>(round_to<FloatFormat>(value, rounding));
}

/// The number that bits of a 16-bit format stand for.
template <typename Format>
float widen(std::uint16_t bits) {
    constexpr int kShift = FloatFormat::kMantissaBits - Format::kMantissaBits;
    const std::uint32_t magnitude = bits & 0x7fffu, sign = std::uint32_t(bits >> 15)
                                                           << 31;
    std::uint32_t wide = magnitude << kShift;
    if (magnitude >= Format::kInfinity) {
        wide |= FloatFormat::kInfinity;
    } else if constexpr (Format::kBias != FloatFormat::kBias) {
        // As a float these bits are the same number, 2^(difference of biases) smaller;
        // multiplying it back makes subnormals normal as well.
        constexpr int kDifference = FloatFormat::kBias - Format::kBias;
        constexpr auto kScale =
            std::bit_cast<float>(std::uint32_t(FloatFormat::kBias + kDifference)
                                 << FloatFormat::kMantissaBits);
        wide = std::bit_cast<std::uint32_t>(std::bit_cast<float>(wide) * kScale);
    }
    return std::bit_cast<float>(wide | sign);
}

// TUTORIAL: rounding twice can go wrong: 1 + 2^-8 + 2^-60 is above the middle of two bf16
// numbers, but as a double it *is* the middle and then goes to the even one. Rounding to
// odd first (inexact results take the neighbour whose last bit is 1) keeps a trace of
// what was cut, and the second rounding comes out as if it were the only one.

/// `rounded` was rounded to nearest; the exact result lies on the `error`'s side of it.
inline double make_odd(double rounded, double error) {
    auto bits = std::bit_cast<std::uint64_t>(rounded);
    if (error == 0 || !std::isfinite(rounded) || (bits & 1)) return rounded;
    bits += (error > 0) == (rounded > 0) ? 1 : -1;
    return std::bit_cast<double>(bits);
}

/// a + b, rounded to odd. Exponents of floats and of their products do not overflow.
inline double odd_sum(double a, double b) {
    const double sum = a + b, from_b = sum - a;
    return make_odd(sum, (a - (sum - from_b)) + (b - from_b));
}

/// An integer of 64 bits has up to 11 more than a double: they leave one bit as a trace.
inline double odd_double(std::uint64_t magnitude) {
    if (magnitude >> 53) magnitude = (magnitude >> 11 | ((magnitude & 0x7ff) != 0)) << 11;
    return double(magnitude);
}
template <typename Integer>
double odd_double_of(Integer value) {
    if constexpr (std::numeric_limits<Integer>::is_signed)
        if (value < 0) return -odd_double(0 - std::uint64_t(value));
    return odd_double(std::uint64_t(value));
}

/// `value` as an integer; numbers out of range give the nearest in range. NaN gives 0, or
/// where 64 bits are involved on either side, the highest bit alone (PTX ISA, cvt).
template <typename Integer, typename Floating>
Integer to_integer(Floating value, Rounding rounding) {
    using Limits = std::numeric_limits<Integer>;
    constexpr bool kWide = sizeof(Integer) == 8 || sizeof(Floating) == 8;
    if (std::isnan(value))
        return kWide ? Integer(1ull << (8 * sizeof(Integer) - 1)) : Integer(0);
    double whole = double(value);
    switch (rounding) {
        case Rounding::nearest: whole = std::nearbyint(whole); break;
        case Rounding::zero: whole = std::trunc(whole); break;
        case Rounding::down: whole = std::floor(whole); break;
        case Rounding::up: whole = std::ceil(whole); break;
    }
    if (whole < double(Limits::min())) return Limits::min();
    if (whole >= std::ldexp(1.0, Limits::digits)) return Limits::max();
    return Integer(whole);
}

}  // namespace cuda_on_cpu
