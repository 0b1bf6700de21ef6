/// @file
/// What rounding means, from its definition and in integers only: for tests to compare
/// with. Slow, and shares nothing with the code under test.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

namespace moe::test {

/// A binary floating-point format: sign, exponent, mantissa from high bits to low.
struct Format {
    int exponent_bits, mantissa_bits;

    std::uint32_t sign_bit() const { return 1u << (exponent_bits + mantissa_bits); }
    std::uint32_t infinity() const {
        return ((1u << exponent_bits) - 1) << mantissa_bits;
    }
    std::uint32_t nan() const { return sign_bit() - 1; }  ///< CUDA's: all ones
    bool is_nan(std::uint32_t bits) const { return (bits & nan()) > infinity(); }
};
inline constexpr Format kBfloat16{8, 7}, kHalf{5, 10}, kFloat{8, 23};

/// significand * 2^exponent
struct Parts {
    std::int64_t significand;
    int exponent;
};

/// The finite number that `bits` stand for.
inline Parts parts_of(Format format, std::uint32_t bits) {
    const std::uint32_t magnitude = bits & format.nan();
    const int biased = int(magnitude >> format.mantissa_bits);
    const std::int64_t mantissa = magnitude & ((1u << format.mantissa_bits) - 1);
    const int bias = (1 << (format.exponent_bits - 1)) - 1;
    const std::int64_t significand =
        biased == 0 ? mantissa : mantissa + (1 << format.mantissa_bits);
    return {bits & format.sign_bit() ? -significand : significand,
            (biased == 0 ? 1 : biased) - bias - format.mantissa_bits};
}
inline double value_of(Format format, std::uint32_t bits) {
    const Parts parts = parts_of(format, bits);
    return std::ldexp(double(parts.significand), parts.exponent);
}
/// The product of two finite numbers, exactly.
inline Parts product(Parts a, Parts b) {
    return {a.significand * b.significand, a.exponent + b.exponent};
}

/// A sum of Parts without any rounding: an integer of 896 bits, in units of 2^-448.
class Exact {
  public:
    Exact& add(Parts parts) {
        const int shift = parts.exponent + 448;
        std::uint64_t carry = 0;
        for (int i = 0; i < int(words_.size()); ++i) {
            carry +=
                std::uint64_t(words_[i]) + word_of(parts.significand, 32 * i - shift);
            words_[i] = std::uint32_t(carry);
            carry >>= 32;
        }
        return *this;
    }
    Exact& subtract(Parts parts) { return add({-parts.significand, parts.exponent}); }
    /// -1, 0 or 1.
    int sign() const {
        if (words_.back() >> 31) return -1;
        for (std::uint32_t word : words_)
            if (word != 0) return 1;
        return 0;
    }

  private:
    /// 32 bits of a two's complement number, from bit `first`, which may be negative.
    static std::uint32_t word_of(std::int64_t value, int first) {
        if (first <= -32) return 0;
        if (first < 0) return std::uint32_t(std::uint64_t(value) << -first);
        return std::uint32_t(value >> (first < 63 ? first : 63));
    }
    std::array<std::uint32_t, 28> words_{};
};

/// The bits nearest to a magnitude, ties to even bits. compare(parts) gives the sign of
/// magnitude - parts. The middle above the largest number is where infinity begins.
template <typename Compare>
std::uint32_t nearest_magnitude(Format format, Compare compare) {
    std::uint32_t low = 0, high = format.infinity();  // the first that is not too small
    while (low < high) {
        const std::uint32_t middle = low + (high - low) / 2;
        const Parts parts = parts_of(format, middle);
        const int side = compare(Parts{2 * parts.significand + 1, parts.exponent - 1});
        if (side < 0 || (side == 0 && middle % 2 == 0))
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

/// The largest finite bits that are not above a magnitude.
template <typename Compare>
std::uint32_t truncated_magnitude(Format format, Compare compare) {
    std::uint32_t low = 0, high = format.infinity() - 1;
    while (low < high) {
        const std::uint32_t middle = low + (high - low + 1) / 2;
        if (compare(parts_of(format, middle)) >= 0)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

enum class Direction { nearest, zero, down, up };

/// A sum, rounded. `negative` is the sign of a result that is exactly zero.
inline std::uint32_t rounded(Format format, Exact sum, Direction direction,
                             bool negative = false) {
    if (sum.sign() != 0) negative = sum.sign() < 0;
    const auto compare = [&](Parts parts) {
        Exact rest = sum;
        if (!negative) return rest.subtract(parts).sign();
        return -rest.add(parts).sign();
    };
    const std::uint32_t sign = negative ? format.sign_bit() : 0;
    if (direction == Direction::nearest) return sign | nearest_magnitude(format, compare);
    const std::uint32_t bits = truncated_magnitude(format, compare);
    const bool outward = direction == (negative ? Direction::down : Direction::up);
    const bool inexact = compare(parts_of(format, bits)) != 0;
    return sign | (bits + (outward && inexact));  // one more than the largest: infinity
}

}  // namespace moe::test
