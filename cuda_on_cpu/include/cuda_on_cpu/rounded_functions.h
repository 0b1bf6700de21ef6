/// @file
/// Arithmetic and conversions with the rounding in their names (_rn nearest, _rz towards
/// zero, _rd down, _ru up), and values taken as bits.
#pragma once

#include <bit>
#include <cmath>

#include "cuda_on_cpu/rounding.h"

namespace cuda_on_cpu {

/// The value, rounded by itself: the compiler may not make a fused multiply-add of the
/// operation behind it and the one in front, whatever its options.
template <typename T>
inline T separate(T value) {
    return __builtin_assoc_barrier(value);
}

/// a + b in fp32. Opposite numbers give +0, and -0 when rounding down.
inline float rounded_sum(double a, double b, Rounding rounding) {
    const double sum = odd_sum(a, b);
    if (sum == 0 && rounding == Rounding::down && (std::signbit(a) || std::signbit(b)))
        return -0.0f;
    return round_to_float(sum, rounding);
}

}  // namespace cuda_on_cpu

// ---------------------------------------------------------- arithmetic, to nearest even
#define CUDA_ON_CPU_ARITHMETIC(T, t, fma_name) \
    inline T __##t##add_rn(T a, T b) {         \
        return cuda_on_cpu::separate(a + b);   \
    }                                          \
    inline T __##t##sub_rn(T a, T b) {         \
        return cuda_on_cpu::separate(a - b);   \
    }                                          \
    inline T __##t##mul_rn(T a, T b) {         \
        return cuda_on_cpu::separate(a * b);   \
    }                                          \
    inline T __##t##div_rn(T a, T b) {         \
        return a / b;                          \
    }                                          \
    inline T __##t##rcp_rn(T a) {              \
        return 1 / a;                          \
    }                                          \
    inline T __##t##sqrt_rn(T a) {             \
        return std::sqrt(a);                   \
    }                                          \
    inline T fma_name(T a, T b, T c) {         \
        return std::fma(a, b, c);              \
    }
CUDA_ON_CPU_ARITHMETIC(float, f, __fmaf_rn)
CUDA_ON_CPU_ARITHMETIC(double, d, __fma_rn)
#undef CUDA_ON_CPU_ARITHMETIC
/// Checked for all floats: the double is never so near to the middle of two floats that
/// its own error could matter.
inline float __frsqrt_rn(float a) {
    return float(1 / std::sqrt(double(a)));
}

// --------------------------------------------------- fp32 arithmetic, other directions
// A product of floats is exact in double; sums go through "odd"; quotients and roots, if
// not floats or middles themselves, are farther from them (2^-49) than a double's error.
#define CUDA_ON_CPU_ARITHMETIC(mode, direction)                                   \
    inline float __fadd_##mode(float a, float b) {                                \
        return cuda_on_cpu::rounded_sum(a, b, cuda_on_cpu::Rounding::direction);  \
    }                                                                             \
    inline float __fsub_##mode(float a, float b) {                                \
        return cuda_on_cpu::rounded_sum(a, -b, cuda_on_cpu::Rounding::direction); \
    }                                                                             \
    inline float __fmul_##mode(float a, float b) {                                \
        return cuda_on_cpu::round_to_float(double(a) * b,                         \
                                           cuda_on_cpu::Rounding::direction);     \
    }                                                                             \
    inline float __fmaf_##mode(float a, float b, float c) {                       \
        return cuda_on_cpu::rounded_sum(double(a) * b, c,                         \
                                        cuda_on_cpu::Rounding::direction);        \
    }                                                                             \
    inline float __fdiv_##mode(float a, float b) {                                \
        return cuda_on_cpu::round_to_float(double(a) / b,                         \
                                           cuda_on_cpu::Rounding::direction);     \
    }                                                                             \
    inline float __frcp_##mode(float a) {                                         \
        return __fdiv_##mode(1, a);                                               \
    }                                                                             \
    inline float __fsqrt_##mode(float a) {                                        \
        return cuda_on_cpu::round_to_float(std::sqrt(double(a)),                  \
                                           cuda_on_cpu::Rounding::direction);     \
    }
CUDA_ON_CPU_ARITHMETIC(rz, zero)
CUDA_ON_CPU_ARITHMETIC(rd, down)
CUDA_ON_CPU_ARITHMETIC(ru, up)
#undef CUDA_ON_CPU_ARITHMETIC

// --------------------------------------------------------------------------- conversions
// __float2int_rn, __double2ull_rz, __ll2float_rd, …
#define CUDA_ON_CPU_CONVERSIONS(Integer, integer, mode, direction)                 \
    inline Integer __float2##integer##_##mode(float value) {                       \
        return cuda_on_cpu::to_integer<Integer>(value,                             \
                                                cuda_on_cpu::Rounding::direction); \
    }                                                                              \
    inline Integer __double2##integer##_##mode(double value) {                     \
        return cuda_on_cpu::to_integer<Integer>(value,                             \
                                                cuda_on_cpu::Rounding::direction); \
    }                                                                              \
    inline float __##integer##2float_##mode(Integer value) {                       \
        return cuda_on_cpu::round_to_float(cuda_on_cpu::odd_double_of(value),      \
                                           cuda_on_cpu::Rounding::direction);      \
    }
#define CUDA_ON_CPU_ALL_CONVERSIONS(mode, direction)                                 \
    CUDA_ON_CPU_CONVERSIONS(int, int, mode, direction)                               \
    CUDA_ON_CPU_CONVERSIONS(unsigned, uint, mode, direction)                         \
    CUDA_ON_CPU_CONVERSIONS(long long, ll, mode, direction)                          \
    CUDA_ON_CPU_CONVERSIONS(unsigned long long, ull, mode, direction)                \
    inline float __double2float_##mode(double value) {                               \
        return cuda_on_cpu::round_to_float(value, cuda_on_cpu::Rounding::direction); \
    }
CUDA_ON_CPU_ALL_CONVERSIONS(rn, nearest)
CUDA_ON_CPU_ALL_CONVERSIONS(rz, zero)
CUDA_ON_CPU_ALL_CONVERSIONS(rd, down)
CUDA_ON_CPU_ALL_CONVERSIONS(ru, up)
#undef CUDA_ON_CPU_ALL_CONVERSIONS
#undef CUDA_ON_CPU_CONVERSIONS

inline double __int2double_rn(int value) {
    return value;
}
inline double __uint2double_rn(unsigned value) {
    return value;
}
inline double __ll2double_rn(long long value) {
    return double(value);
}
inline double __ull2double_rn(unsigned long long value) {
    return double(value);
}

// --------------------------------------------------------------------------- same bits
inline int __float_as_int(float value) {
    return std::bit_cast<int>(value);
}
inline unsigned __float_as_uint(float value) {
    return std::bit_cast<unsigned>(value);
}
inline float __int_as_float(int bits) {
    return std::bit_cast<float>(bits);
}
inline float __uint_as_float(unsigned bits) {
    return std::bit_cast<float>(bits);
}
inline long long __double_as_longlong(double value) {
    return std::bit_cast<long long>(value);
}
inline double __longlong_as_double(long long bits) {
    return std::bit_cast<double>(bits);
}
inline int __double2hiint(double value) {
    return int(std::bit_cast<unsigned long long>(value) >> 32);
}
inline int __double2loint(double value) {
    return int(std::bit_cast<unsigned long long>(value));
}
inline double __hiloint2double(int high, int low) {
    return std::bit_cast<double>(static_cast<unsigned long long>(unsigned(high)) << 32 |
                                 unsigned(low));
}
