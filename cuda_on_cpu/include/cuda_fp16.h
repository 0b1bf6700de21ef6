/// @file
/// half precision (fp16): 1 sign bit, 5 bits of exponent, 10 of mantissa; alone and in
/// pairs. Names and results are CUDA's. Whatever ends in a NaN gives 0x7fff.
#pragma once

#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/small_float.h"
#include "vector_types.h"

struct __half;
struct __nv_bfloat16;
template <>
struct cuda_on_cpu::FormatOf<__half> {
    using type = HalfFormat;
};

struct alignas(2) __half_raw {
    unsigned short x;
};
struct alignas(4) __half2_raw {
    unsigned short x, y;
};

struct alignas(2) __half {
    __half() = default;  ///< not initialised
    constexpr __half(const __half_raw& raw) : bits_(raw.x) {}
    __half(float value);
    __half(double value);
    template <std::integral Integer>
    __half(Integer value);
    explicit __half(const __nv_bfloat16& value);  ///< needs cuda_bf16.h

    constexpr operator __half_raw() const { return {bits_}; }
    operator float() const { return cuda_on_cpu::widen<cuda_on_cpu::HalfFormat>(bits_); }
    template <std::integral Integer>
    operator Integer() const {
        return cuda_on_cpu::truncated<Integer>(float(*this));
    }

  private:
    unsigned short bits_;
};

struct alignas(4) __half2 {
    __half x, y;

    __half2() = default;
    constexpr __half2(const __half& low, const __half& high) : x(low), y(high) {}
    constexpr __half2(const __half2_raw& raw)
        : x(__half_raw{raw.x}), y(__half_raw{raw.y}) {}
    operator __half2_raw() const { return {__half_raw(x).x, __half_raw(y).x}; }
};

using half = __half;
using half2 = __half2;
using nv_half = __half;
using nv_half2 = __half2;

// --------------------------------------------------------------------------- conversions
inline float __half2float(__half value) {
    return value;
}
inline __half __double2half(double value) {
    return cuda_on_cpu::rounded<__half>(value);
}
inline __half __float2half_rn(float value) {
    return cuda_on_cpu::rounded<__half>(value);
}
inline __half __float2half(float value) {
    return __float2half_rn(value);
}
inline __half __float2half_rz(float value) {
    return cuda_on_cpu::rounded<__half>(value, cuda_on_cpu::Rounding::zero);
}
inline __half __float2half_rd(float value) {
    return cuda_on_cpu::rounded<__half>(value, cuda_on_cpu::Rounding::down);
}
inline __half __float2half_ru(float value) {
    return cuda_on_cpu::rounded<__half>(value, cuda_on_cpu::Rounding::up);
}
inline __half::__half(float value) : __half(__float2half_rn(value)) {}
inline __half::__half(double value) : __half(__double2half(value)) {}
template <std::integral Integer>
__half::__half(Integer value) : __half(cuda_on_cpu::rounded_integer<__half>(value)) {}

CUDA_ON_CPU_INTEGERS(__half, half)  // __half2int_rn, __int2half_rn, …

inline unsigned short __half_as_ushort(__half value) {
    return cuda_on_cpu::as_16_bits(value);
}
inline short __half_as_short(__half value) {
    return short(cuda_on_cpu::as_16_bits(value));
}
inline __half __ushort_as_half(unsigned short bits) {
    return cuda_on_cpu::from_16_bits<__half>(bits);
}
inline __half __short_as_half(short bits) {
    return cuda_on_cpu::from_16_bits<__half>(unsigned(bits));
}

// --------------------------------------------------------------------------------- pairs
inline __half2 make_half2(__half low, __half high) {
    return {low, high};
}
inline __half2 __halves2half2(__half low, __half high) {
    return {low, high};
}
inline __half2 __half2half2(__half both) {
    return {both, both};
}
inline __half2 __float2half2_rn(float both) {
    return __half2half2(both);
}
inline __half2 __floats2half2_rn(float low, float high) {
    return {__float2half_rn(low), __float2half_rn(high)};
}
inline __half2 __float22half2_rn(float2 value) {
    return __floats2half2_rn(value.x, value.y);
}
inline float2 __half22float2(__half2 value) {
    return {float(value.x), float(value.y)};
}
inline float __low2float(__half2 value) {
    return value.x;
}
inline float __high2float(__half2 value) {
    return value.y;
}
inline __half __low2half(__half2 value) {
    return value.x;
}
inline __half __high2half(__half2 value) {
    return value.y;
}
inline __half2 __low2half2(__half2 value) {
    return {value.x, value.x};
}
inline __half2 __high2half2(__half2 value) {
    return {value.y, value.y};
}
inline __half2 __lows2half2(__half2 a, __half2 b) {
    return {a.x, b.x};
}
inline __half2 __highs2half2(__half2 a, __half2 b) {
    return {a.y, b.y};
}
inline __half2 __lowhigh2highlow(__half2 value) {
    return {value.y, value.x};
}

#define CUDA_SCALAR __half
#define CUDA_PAIR __half2
#include "cuda_on_cpu/small_float_functions.h"
#undef CUDA_SCALAR
#undef CUDA_PAIR
