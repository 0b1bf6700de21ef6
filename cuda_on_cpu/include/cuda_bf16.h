/// @file
/// bfloat16: the upper half of a float (1 sign bit, 8 bits of exponent, 7 of mantissa);
/// alone and in pairs. Names and results are CUDA's. Whatever ends in a NaN gives 0x7fff.
#pragma once

#include "cuda_fp16.h"
#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/small_float.h"
#include "vector_types.h"

struct __nv_bfloat16;
template <>
struct cuda_on_cpu::FormatOf<__nv_bfloat16> {
    using type = Bfloat16Format;
};

struct alignas(2) __nv_bfloat16_raw {
    unsigned short x;
};
struct alignas(4) __nv_bfloat162_raw {
    unsigned short x, y;
};

struct alignas(2) __nv_bfloat16 {
    __nv_bfloat16() = default;  ///< not initialised
    constexpr __nv_bfloat16(const __nv_bfloat16_raw& raw) : bits_(raw.x) {}
    __nv_bfloat16(float value);
    __nv_bfloat16(double value);
    template <std::integral Integer>
    __nv_bfloat16(Integer value);
    explicit __nv_bfloat16(const __half& value) : __nv_bfloat16(float(value)) {}

    constexpr operator __nv_bfloat16_raw() const { return {bits_}; }
    operator float() const {
        return cuda_on_cpu::widen<cuda_on_cpu::Bfloat16Format>(bits_);
    }
    template <std::integral Integer>
    operator Integer() const {
        return cuda_on_cpu::truncated<Integer>(float(*this));
    }

  private:
    unsigned short bits_;
};

struct alignas(4) __nv_bfloat162 {
    __nv_bfloat16 x, y;

    __nv_bfloat162() = default;
    constexpr __nv_bfloat162(const __nv_bfloat16& low, const __nv_bfloat16& high)
        : x(low), y(high) {}
    constexpr __nv_bfloat162(const __nv_bfloat162_raw& raw)
        : x(__nv_bfloat16_raw{raw.x}), y(__nv_bfloat16_raw{raw.y}) {}
    operator __nv_bfloat162_raw() const {
        return {__nv_bfloat16_raw(x).x, __nv_bfloat16_raw(y).x};
    }
};

using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

// --------------------------------------------------------------------------- conversions
inline float __bfloat162float(__nv_bfloat16 value) {
    return value;
}
inline __nv_bfloat16 __double2bfloat16(double value) {
    return cuda_on_cpu::rounded<__nv_bfloat16>(value);
}
/// The conversion that programs do most, so not by way of round_to().
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
    const auto bits = std::bit_cast<std::uint32_t>(value);
    if (std::isnan(value))
        return cuda_on_cpu::from_16_bits<__nv_bfloat16>(
            cuda_on_cpu::Bfloat16Format::kNaN);
    // TUTORIAL: adding 0x7fff, and 1 more where the kept half is odd, carries into it
    // exactly when the dropped half is above the middle, or in the middle beside an odd
    // number. A carry out of the largest number gives the bits of infinity.
    const std::uint32_t rounded = bits + 0x7fffu + (bits >> 16 & 1);
    return cuda_on_cpu::from_16_bits<__nv_bfloat16>(rounded >> 16);
}
inline __nv_bfloat16 __float2bfloat16(float value) {
    return __float2bfloat16_rn(value);
}
inline __nv_bfloat16 __float2bfloat16_rz(float value) {
    return cuda_on_cpu::rounded<__nv_bfloat16>(value, cuda_on_cpu::Rounding::zero);
}
inline __nv_bfloat16 __float2bfloat16_rd(float value) {
    return cuda_on_cpu::rounded<__nv_bfloat16>(value, cuda_on_cpu::Rounding::down);
}
inline __nv_bfloat16 __float2bfloat16_ru(float value) {
    return cuda_on_cpu::rounded<__nv_bfloat16>(value, cuda_on_cpu::Rounding::up);
}
inline __nv_bfloat16::__nv_bfloat16(float value)
    : __nv_bfloat16(__float2bfloat16_rn(value)) {}
inline __nv_bfloat16::__nv_bfloat16(double value)
    : __nv_bfloat16(__double2bfloat16(value)) {}
template <std::integral Integer>
__nv_bfloat16::__nv_bfloat16(Integer value)
    : __nv_bfloat16(cuda_on_cpu::rounded_integer<__nv_bfloat16>(value)) {}

inline __half::__half(const __nv_bfloat16& value) : __half(float(value)) {}

CUDA_ON_CPU_INTEGERS(__nv_bfloat16, bfloat16)  // __bfloat162int_rn, __int2bfloat16_rn, …

inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 value) {
    return cuda_on_cpu::as_16_bits(value);
}
inline short __bfloat16_as_short(__nv_bfloat16 value) {
    return short(cuda_on_cpu::as_16_bits(value));
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return cuda_on_cpu::from_16_bits<__nv_bfloat16>(bits);
}
inline __nv_bfloat16 __short_as_bfloat16(short bits) {
    return cuda_on_cpu::from_16_bits<__nv_bfloat16>(unsigned(bits));
}

// --------------------------------------------------------------------------------- pairs
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high) {
    return {low, high};
}
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 both) {
    return {both, both};
}
inline __nv_bfloat162 __float2bfloat162_rn(float both) {
    return __bfloat162bfloat162(both);
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
inline __nv_bfloat162 __float22bfloat162_rn(float2 value) {
    return __floats2bfloat162_rn(value.x, value.y);
}
inline float2 __bfloat1622float2(__nv_bfloat162 value) {
    return {float(value.x), float(value.y)};
}
inline float __low2float(__nv_bfloat162 value) {
    return value.x;
}
inline float __high2float(__nv_bfloat162 value) {
    return value.y;
}
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 value) {
    return value.x;
}
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 value) {
    return value.y;
}
inline __nv_bfloat162 __low2bfloat162(__nv_bfloat162 value) {
    return {value.x, value.x};
}
inline __nv_bfloat162 __high2bfloat162(__nv_bfloat162 value) {
    return {value.y, value.y};
}
inline __nv_bfloat162 __lows2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {a.x, b.x};
}
inline __nv_bfloat162 __highs2bfloat162(__nv_bfloat162 a, __nv_bfloat162 b) {
    return {a.y, b.y};
}
inline __nv_bfloat162 __lowhigh2highlow(__nv_bfloat162 value) {
    return {value.y, value.x};
}

#define CUDA_SCALAR __nv_bfloat16
#define CUDA_PAIR __nv_bfloat162
#include "cuda_on_cpu/small_float_functions.h"
#undef CUDA_SCALAR
#undef CUDA_PAIR
