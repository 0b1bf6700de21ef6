/// @file
/// bf16 and half under one set of names, so that each test is written once for both.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "tests/conformance/rounding_reference.h"

namespace moe::test {

using Bits = unsigned short;

struct Bf16Type {
    using Scalar = __nv_bfloat16;
    using Pair = __nv_bfloat162;
    static constexpr const char* name = "bf16";
    static constexpr Format format = kBfloat16;
    static __device__ Scalar of(Bits bits) { return __ushort_as_bfloat16(bits); }
    static __device__ Bits bits(Scalar value) { return __bfloat16_as_ushort(value); }
    static __device__ float widen(Scalar value) { return __bfloat162float(value); }
    static __device__ Scalar of_double(double value) { return __double2bfloat16(value); }
    static __device__ Scalar rn(float value) { return __float2bfloat16_rn(value); }
    static __device__ Scalar rz(float value) { return __float2bfloat16_rz(value); }
    static __device__ Scalar rd(float value) { return __float2bfloat16_rd(value); }
    static __device__ Scalar ru(float value) { return __float2bfloat16_ru(value); }
    static __device__ int int_rn(Scalar value) { return __bfloat162int_rn(value); }
    static __device__ int int_rz(Scalar value) { return __bfloat162int_rz(value); }
    static __device__ unsigned uint_rd(Scalar value) { return __bfloat162uint_rd(value); }
    static __device__ long long ll_ru(Scalar value) { return __bfloat162ll_ru(value); }
    static __device__ Scalar of_int(int value) { return __int2bfloat16_rn(value); }
    static __device__ Scalar of_ll(long long value) { return __ll2bfloat16_rn(value); }
    static __device__ Scalar of_ull(unsigned long long value) {
        return __ull2bfloat16_rn(value);
    }
    static __device__ Pair pair(float a, float b) { return __floats2bfloat162_rn(a, b); }
    static __device__ Pair pair(float2 value) { return __float22bfloat162_rn(value); }
    static __device__ Pair pair(Scalar a, Scalar b) { return __halves2bfloat162(a, b); }
    static __device__ Pair both(Scalar a) { return __bfloat162bfloat162(a); }
    static __device__ float2 widen(Pair value) { return __bfloat1622float2(value); }
    static __device__ Scalar low(Pair value) { return __low2bfloat16(value); }
    static __device__ Scalar high(Pair value) { return __high2bfloat16(value); }
};

struct HalfType {
    using Scalar = __half;
    using Pair = __half2;
    static constexpr const char* name = "half";
    static constexpr Format format = kHalf;
    static __device__ Scalar of(Bits bits) { return __ushort_as_half(bits); }
    static __device__ Bits bits(Scalar value) { return __half_as_ushort(value); }
    static __device__ float widen(Scalar value) { return __half2float(value); }
    static __device__ Scalar of_double(double value) { return __double2half(value); }
    static __device__ Scalar rn(float value) { return __float2half_rn(value); }
    static __device__ Scalar rz(float value) { return __float2half_rz(value); }
    static __device__ Scalar rd(float value) { return __float2half_rd(value); }
    static __device__ Scalar ru(float value) { return __float2half_ru(value); }
    static __device__ int int_rn(Scalar value) { return __half2int_rn(value); }
    static __device__ int int_rz(Scalar value) { return __half2int_rz(value); }
    static __device__ unsigned uint_rd(Scalar value) { return __half2uint_rd(value); }
    static __device__ long long ll_ru(Scalar value) { return __half2ll_ru(value); }
    static __device__ Scalar of_int(int value) { return __int2half_rn(value); }
    static __device__ Scalar of_ll(long long value) { return __ll2half_rn(value); }
    static __device__ Scalar of_ull(unsigned long long value) {
        return __ull2half_rn(value);
    }
    static __device__ Pair pair(float a, float b) { return __floats2half2_rn(a, b); }
    static __device__ Pair pair(float2 value) { return __float22half2_rn(value); }
    static __device__ Pair pair(Scalar a, Scalar b) { return __halves2half2(a, b); }
    static __device__ Pair both(Scalar a) { return __half2half2(a); }
    static __device__ float2 widen(Pair value) { return __half22float2(value); }
    static __device__ Scalar low(Pair value) { return __low2half(value); }
    static __device__ Scalar high(Pair value) { return __high2half(value); }
};

struct TypeName {
    template <typename Type>
    static std::string GetName(int) {
        return Type::name;
    }
};
using BothTypes = testing::Types<Bf16Type, HalfType>;

/// What finite or infinite bits stand for, -0 included.
inline double number(Format format, std::uint32_t bits) {
    const bool is_infinite = (bits & format.nan()) == format.infinity();
    const double magnitude =
        is_infinite ? INFINITY : value_of(format, bits & format.nan());
    return bits & format.sign_bit() ? -magnitude : magnitude;
}

/// A float or double, not NaN, rounded by definition.
inline Bits expected(Format format, double value, Direction direction) {
    const bool negative = std::signbit(value);
    if (std::isinf(value))
        return Bits(format.infinity() | (negative ? format.sign_bit() : 0));
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);
    // Far beyond a format's numbers, all are alike: within 2^-390 .. 2^390 for Exact.
    exponent = std::max(-390, std::min(exponent, 390));
    Exact sum;
    sum.add({std::int64_t(std::ldexp(fraction, 53)), exponent - 53});
    return Bits(rounded(format, sum, direction, negative));
}

}  // namespace moe::test
