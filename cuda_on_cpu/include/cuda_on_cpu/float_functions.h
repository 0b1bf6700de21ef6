/// @file
/// Floating-point functions beyond <math.h>, and max and min. The fast intrinsics
/// (__expf, …) are as accurate here as the slow ones; only their special cases are kept.
#pragma once

#include <math.h>

#include <numbers>

// Newer C libraries have some of these themselves.
#ifdef __GLIBC_PREREQ
#define CUDA_ON_CPU_LIBC_HAS(major, minor) __GLIBC_PREREQ(major, minor)
#else
#define CUDA_ON_CPU_LIBC_HAS(major, minor) 0
#endif

namespace cuda_on_cpu {

/// sin(pi * x), exact where the result is: the argument is reduced before pi comes in.
inline double sin_of_pi_times(double x) {
    double r = std::remainder(x, 2.0);  // exact, in [-1, 1]
    if (std::fabs(r) > 0.5) r = std::copysign(1.0, r) - r;
    return r == 0 ? std::copysign(0.0, x) : std::sin(std::numbers::pi * r);
}
inline double cos_of_pi_times(double x) {
    const double r = std::fabs(std::remainder(x, 2.0));
    return std::sin(std::numbers::pi * (0.5 - r));
}

}  // namespace cuda_on_cpu

#if !CUDA_ON_CPU_LIBC_HAS(2, 42)
inline double rsqrt(double x) {
    return 1.0 / std::sqrt(x);
}
inline float rsqrtf(float x) {
    return float(1.0 / std::sqrt(double(x)));
}
#endif
#if !CUDA_ON_CPU_LIBC_HAS(2, 41)
inline double sinpi(double x) {
    return cuda_on_cpu::sin_of_pi_times(x);
}
inline float sinpif(float x) {
    return float(cuda_on_cpu::sin_of_pi_times(x));
}
inline double cospi(double x) {
    return cuda_on_cpu::cos_of_pi_times(x);
}
inline float cospif(float x) {
    return float(cuda_on_cpu::cos_of_pi_times(x));
}
#endif
#undef CUDA_ON_CPU_LIBC_HAS
#ifndef __GLIBC__
inline double exp10(double x) {
    return std::pow(10.0, x);
}
inline float exp10f(float x) {
    return float(std::pow(10.0, double(x)));
}
#endif

inline double rcbrt(double x) {
    return 1.0 / std::cbrt(x);
}
inline float rcbrtf(float x) {
    return float(1.0 / std::cbrt(double(x)));
}
/// The standard normal distribution below x.
inline double normcdf(double x) {
    return 0.5 * std::erfc(-x * (0.5 * std::numbers::sqrt2));
}
inline float normcdff(float x) {
    return float(normcdf(double(x)));
}

// As under nvcc, a float argument gives a float.
inline float rsqrt(float x) {
    return rsqrtf(x);
}
inline float rcbrt(float x) {
    return rcbrtf(x);
}
inline float sinpi(float x) {
    return sinpif(x);
}
inline float cospi(float x) {
    return cospif(x);
}
inline float normcdf(float x) {
    return normcdff(x);
}
inline float exp10(float x) {
    return exp10f(x);
}

// ----------------------------------------------------------------------- fast intrinsics
// noexcept: glibc declares functions of these names so, though it does not export them.
inline float __expf(float x) noexcept {
    return expf(x);
}
inline float __exp10f(float x) noexcept {
    return exp10f(x);
}
inline float __logf(float x) noexcept {
    return logf(x);
}
inline float __log2f(float x) noexcept {
    return log2f(x);
}
inline float __log10f(float x) noexcept {
    return log10f(x);
}
/// Through the logarithm, so NaN for negative x, unlike powf.
inline float __powf(float x, float y) noexcept {
    return float(std::exp2(double(y) * std::log2(double(x))));
}
inline float __sinf(float x) noexcept {
    return sinf(x);
}
inline float __cosf(float x) noexcept {
    return cosf(x);
}
inline float __tanf(float x) noexcept {
    return tanf(x);
}
inline void __sincosf(float x, float* sine, float* cosine) noexcept {
    *sine = sinf(x);
    *cosine = cosf(x);
}
/// 0 where the reciprocal of y would be subnormal: for 2^126 < |y| < 2^128 (NaN when x is
/// infinite).
inline float __fdividef(float x, float y) {
    return fabsf(y) > 0x1p126f && isfinite(y) ? x * 0.0f : x / y;
}
inline float fdividef(float x, float y) {
    return x / y;
}
/// To [+0, 1]; NaN gives +0.
inline float __saturatef(float x) {
    return x > 0 ? (x < 1 ? x : 1.0f) : 0.0f;
}

// --------------------------------------------------------------------------- max and min
#define CUDA_ON_CPU_MAX_MIN(Result, A, B) \
    inline Result max(A a, B b) {         \
        const Result x = a, y = b;        \
        return x < y ? y : x;             \
    }                                     \
    inline Result min(A a, B b) {         \
        const Result x = a, y = b;        \
        return y < x ? y : x;             \
    }
CUDA_ON_CPU_MAX_MIN(int, int, int)
CUDA_ON_CPU_MAX_MIN(unsigned, unsigned, unsigned)
CUDA_ON_CPU_MAX_MIN(unsigned, int, unsigned)
CUDA_ON_CPU_MAX_MIN(unsigned, unsigned, int)
CUDA_ON_CPU_MAX_MIN(long, long, long)
CUDA_ON_CPU_MAX_MIN(unsigned long, unsigned long, unsigned long)
CUDA_ON_CPU_MAX_MIN(unsigned long, long, unsigned long)
CUDA_ON_CPU_MAX_MIN(unsigned long, unsigned long, long)
CUDA_ON_CPU_MAX_MIN(long long, long long, long long)
CUDA_ON_CPU_MAX_MIN(unsigned long long, unsigned long long, unsigned long long)
CUDA_ON_CPU_MAX_MIN(unsigned long long, long long, unsigned long long)
CUDA_ON_CPU_MAX_MIN(unsigned long long, unsigned long long, long long)
#undef CUDA_ON_CPU_MAX_MIN

// TUTORIAL: a GPU's maximum of a number and NaN is the number, and +0 is above -0.
#define CUDA_ON_CPU_MAX_MIN(T, A, B)                                    \
    inline T max(A a, B b) {                                            \
        const T x = a, y = b;                                           \
        if (isnan(x) || x == y) return signbit(x) || isnan(x) ? y : x;  \
        return x < y ? y : x;                                           \
    }                                                                   \
    inline T min(A a, B b) {                                            \
        const T x = a, y = b;                                           \
        if (isnan(x) || x == y) return signbit(x) && !isnan(x) ? x : y; \
        return y < x ? y : x;                                           \
    }
CUDA_ON_CPU_MAX_MIN(float, float, float)
CUDA_ON_CPU_MAX_MIN(double, double, double)
CUDA_ON_CPU_MAX_MIN(double, float, double)
CUDA_ON_CPU_MAX_MIN(double, double, float)
#undef CUDA_ON_CPU_MAX_MIN
