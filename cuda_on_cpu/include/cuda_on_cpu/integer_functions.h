/// @file
/// Integer intrinsics: bits, bytes, high halves of products, sums of products of bytes.
#pragma once

#include <bit>
#include <cstdint>

#include "vector_types.h"

// ---------------------------------------------------------------------------------- bits
inline int __popc(unsigned x) {
    return std::popcount(x);
}
inline int __popcll(unsigned long long x) {
    return std::popcount(x);
}
/// Leading zeros; 32 for 0.
inline int __clz(int x) {
    return std::countl_zero(unsigned(x));
}
inline int __clzll(long long x) {
    return std::countl_zero(static_cast<unsigned long long>(x));
}
/// Position of the lowest set bit, counted from 1; 0 for 0.
inline int __ffs(int x) {
    return x == 0 ? 0 : std::countr_zero(unsigned(x)) + 1;
}
inline int __ffsll(long long x) {
    return x == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(x)) + 1;
}
/// The bits in reverse order.
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; ++i, x >>= 1) reversed = reversed << 1 | (x & 1);
    return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
    const std::uint64_t low = __brev(unsigned(x));
    return low << 32 | __brev(unsigned(x >> 32));
}

/// High and low word of (high:low) shifted by `shift` mod 32, or, with c, by at most 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned(((std::uint64_t(high) << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((std::uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}

// --------------------------------------------------------------------------------- bytes
/// Byte i of the result is byte number (selector >> 4i & 7) of (y:x).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t bytes = std::uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i)
        result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return result;
}

/// sum + the four products of a's and b's bytes. Wraps around.
inline int __dp4a(int a, int b, int sum) {
    auto total = unsigned(sum);
    for (int i = 0; i < 32; i += 8)
        total += unsigned(std::int8_t(a >> i) * std::int8_t(b >> i));
    return int(total);
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
    for (int i = 0; i < 32; i += 8) sum += (a >> i & 0xff) * (b >> i & 0xff);
    return sum;
}
inline int __dp4a(char4 a, char4 b, int sum) {
    return __dp4a(std::bit_cast<int>(a), std::bit_cast<int>(b), sum);
}
inline unsigned __dp4a(uchar4 a, uchar4 b, unsigned sum) {
    return __dp4a(std::bit_cast<unsigned>(a), std::bit_cast<unsigned>(b), sum);
}

// ---------------------------------------------------------------------------- arithmetic
inline int __mulhi(int a, int b) {
    return int(std::int64_t(a) * b >> 32);
}
inline unsigned __umulhi(unsigned a, unsigned b) {
    return unsigned(std::uint64_t(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    const std::uint64_t a_low = unsigned(a), a_high = a >> 32;
    const std::uint64_t b_low = unsigned(b), b_high = b >> 32;
    // None of these sums overflows: (2^32 - 1)^2 + 2 (2^32 - 1) = 2^64 - 1.
    const std::uint64_t middle = a_high * b_low + (a_low * b_low >> 32);
    const std::uint64_t other_middle = a_low * b_high + unsigned(middle);
    return a_high * b_high + (middle >> 32) + (other_middle >> 32);
}
inline long long __mul64hi(long long a, long long b) {
    // A negative number's bits are 2^64 more than the number.
    unsigned long long high = __umul64hi(a, b);
    if (a < 0) high -= static_cast<unsigned long long>(b);
    if (b < 0) high -= static_cast<unsigned long long>(a);
    return static_cast<long long>(high);
}
/// Low 32 bits of the product of the low 24 bits.
inline unsigned __umul24(unsigned a, unsigned b) {
    return (a & 0xffffff) * (b & 0xffffff);
}
inline int __mul24(int a, int b) {
    const int a24 = int(unsigned(a) << 8) >> 8, b24 = int(unsigned(b) << 8) >> 8;
    return int(unsigned(a24) * unsigned(b24));
}
/// |a - b| + sum.
inline unsigned __sad(int a, int b, unsigned sum) {
    return sum + (a > b ? unsigned(a) - unsigned(b) : unsigned(b) - unsigned(a));
}
inline unsigned __usad(unsigned a, unsigned b, unsigned sum) {
    return sum + (a > b ? a - b : b - a);
}
/// Means without overflow, rounded down, or up (r).
inline int __hadd(int a, int b) {
    return int((std::int64_t(a) + b) >> 1);
}
inline int __rhadd(int a, int b) {
    return int((std::int64_t(a) + b + 1) >> 1);
}
inline unsigned __uhadd(unsigned a, unsigned b) {
    return unsigned((std::uint64_t(a) + b) >> 1);
}
inline unsigned __urhadd(unsigned a, unsigned b) {
    return unsigned((std::uint64_t(a) + b + 1) >> 1);
}
