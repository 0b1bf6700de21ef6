/// @file
/// Short vectors (float4, uint3, …) with CUDA's sizes and alignments, and dim3.
#pragma once

// TUTORIAL: one load or store moves a whole float4 only if its address is a multiple of
// 16, so the type demands it. Three components have no such instruction and no demand.
#define CUDA_ON_CPU_VECTORS(Name, T)                              \
    struct alignas(2 * sizeof(T)) Name##2 {                       \
        T x, y;                                                   \
    };                                                            \
    struct Name##3 {                                              \
        T x, y, z;                                                \
    };                                                            \
    struct alignas(4 * sizeof(T)) Name##4 {                       \
        T x, y, z, w;                                             \
    };                                                            \
    inline constexpr Name##2 make_##Name##2(T x, T y) {           \
        return {x, y};                                            \
    }                                                             \
    inline constexpr Name##3 make_##Name##3(T x, T y, T z) {      \
        return {x, y, z};                                         \
    }                                                             \
    inline constexpr Name##4 make_##Name##4(T x, T y, T z, T w) { \
        return {x, y, z, w};                                      \
    }
CUDA_ON_CPU_VECTORS(char, signed char)
CUDA_ON_CPU_VECTORS(uchar, unsigned char)
CUDA_ON_CPU_VECTORS(short, short)
CUDA_ON_CPU_VECTORS(ushort, unsigned short)
CUDA_ON_CPU_VECTORS(int, int)
CUDA_ON_CPU_VECTORS(uint, unsigned)
CUDA_ON_CPU_VECTORS(float, float)
#undef CUDA_ON_CPU_VECTORS

// Of 8-byte components only pairs: 16 bytes are the most that one instruction moves.
#define CUDA_ON_CPU_WIDE_PAIR(Name, T)            \
    struct alignas(16) Name {                     \
        T x, y;                                   \
    };                                            \
    inline constexpr Name make_##Name(T x, T y) { \
        return {x, y};                            \
    }
CUDA_ON_CPU_WIDE_PAIR(longlong2, long long)
CUDA_ON_CPU_WIDE_PAIR(ulonglong2, unsigned long long)
CUDA_ON_CPU_WIDE_PAIR(double2, double)
#undef CUDA_ON_CPU_WIDE_PAIR

/// A grid's or a block's extents; those left out are 1.
struct dim3 {
    unsigned x, y, z;

    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};
