/// @file
/// What bf16 and half share: how their types are built on the rounding of rounding.h.
#pragma once

#include <concepts>

#include "cuda_on_cpu/float_functions.h"
#include "cuda_on_cpu/rounding.h"

namespace cuda_on_cpu {

template <typename T>
struct FormatOf;  ///< FormatOf<__half>::type is HalfFormat

template <typename T>
std::uint16_t as_16_bits(T value) {
    return std::bit_cast<std::uint16_t>(value);
}
template <typename T>
T from_16_bits(unsigned bits) {
    return std::bit_cast<T>(static_cast<std::uint16_t>(bits));
}
template <typename T>
T rounded(double value, Rounding rounding = Rounding::nearest) {
    return from_16_bits<T>(round_to<typename FormatOf<T>::type>(value, rounding));
}
template <typename T, std::integral Integer>
T rounded_integer(Integer value, Rounding rounding = Rounding::nearest) {
    return rounded<T>(odd_double_of(value), rounding);
}

/// As C++ converts: towards zero, but out of range gives the nearest in range. A bool
/// says whether the number is not zero.
template <std::integral Integer>
Integer truncated(float value) {
    if constexpr (std::same_as<Integer, bool>)
        return value != 0;
    else
        return to_integer<Integer>(value, Rounding::zero);
}

}  // namespace cuda_on_cpu

// All conversions between a type and integers: CUDA_ON_CPU_INTEGERS(__half, half) defines
// __half2int_rn, __half2uint_rz, …, __int2half_rn, __ull2half_ru, …
#define CUDA_ON_CPU_INTEGER_MODE(T, name, Integer, integer, mode, direction)             \
    inline Integer __##name##2##integer##_##mode(T value) {                              \
        return cuda_on_cpu::to_integer<Integer>(float(value),                            \
                                                cuda_on_cpu::Rounding::direction);       \
    }                                                                                    \
    inline T __##integer##2##name##_##mode(Integer value) {                              \
        return cuda_on_cpu::rounded_integer<T>(value, cuda_on_cpu::Rounding::direction); \
    }
#define CUDA_ON_CPU_INTEGER(T, name, Integer, integer)               \
    CUDA_ON_CPU_INTEGER_MODE(T, name, Integer, integer, rn, nearest) \
    CUDA_ON_CPU_INTEGER_MODE(T, name, Integer, integer, rz, zero)    \
    CUDA_ON_CPU_INTEGER_MODE(T, name, Integer, integer, rd, down)    \
    CUDA_ON_CPU_INTEGER_MODE(T, name, Integer, integer, ru, up)
#define CUDA_ON_CPU_INTEGERS(T, name)                               \
    CUDA_ON_CPU_INTEGER(T, name, short, short)                      \
    CUDA_ON_CPU_INTEGER(T, name, unsigned short, ushort)            \
    CUDA_ON_CPU_INTEGER(T, name, int, int)                          \
    CUDA_ON_CPU_INTEGER(T, name, unsigned, uint)                    \
    CUDA_ON_CPU_INTEGER(T, name, long long, ll)                     \
    CUDA_ON_CPU_INTEGER(T, name, unsigned long long, ull)           \
    inline signed char __##name##2char_rz(T value) {                \
        return cuda_on_cpu::truncated<signed char>(float(value));   \
    }                                                               \
    inline unsigned char __##name##2uchar_rz(T value) {             \
        return cuda_on_cpu::truncated<unsigned char>(float(value)); \
    }
