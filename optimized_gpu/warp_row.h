/// @file
/// A row of up to 1024 values in the registers of one warp, and the choice of its
/// largest.
///
/// The lane holds value e = 32 j + lane in slot j, so that the warp reads 32 neighbours
/// with one instruction. Kernels are compiled for N = 1, 2, 4, … 32 slots: an array whose
/// every index is a constant after unrolling lies in registers, another in local memory.
/// Source of the warp per row: TransformerEngine, fused_topk_with_score_function.cu.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "core/error.h"
#include "optimized_gpu/warp.h"

namespace moe::optimized {

inline constexpr int kMostSlots = 32;  ///< of a lane; a row has 32 of each

/// Calls body(N) with the least N that holds a row of `width`, as a constant.
template <typename Body>
void with_slots(std::int64_t width, Body body) {
    const auto fits = [&](int slots) { return width <= slots * kLanes; };
    if (fits(1)) return body(std::integral_constant<int, 1>());
    if (fits(2)) return body(std::integral_constant<int, 2>());
    if (fits(4)) return body(std::integral_constant<int, 4>());
    if (fits(8)) return body(std::integral_constant<int, 8>());
    if (fits(16)) return body(std::integral_constant<int, 16>());
    MOE_CHECK(fits(kMostSlots));
    body(std::integral_constant<int, kMostSlots>());
}

/// The lane's slots whose values come before value `end`, as bits.
__device__ inline unsigned slots_below(int end, int lane) {
    const int count = (end + kLanes - 1 - lane) / kLanes;
    return count >= kMostSlots ? ~0u : (1u << count) - 1u;
}

/// The lane's slots of the values begin … end − 1.
__device__ inline unsigned slots_between(int begin, int end, int lane) {
    return slots_below(end, lane) & ~slots_below(begin, lane);
}

/// The bit of value `index`; none in the other lanes.
__device__ inline unsigned slot_of(int index, int lane) {
    return index % kLanes == lane ? 1u << (index / kLanes) : 0u;
}

__device__ inline float warp_max(float value) {
    for (int step = kLanes / 2; step > 0; step /= 2)
        value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
    return value;
}

/// Reads a row (width); slots past its end get -∞, of which every score is 0.
template <int N>
__device__ void load_row(float (&row)[N], const float* source, int width, int lane) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        row[j] = e < width ? source[e] : -INFINITY;  // load_row
    }
}

template <int N>
__device__ void store_row(float* target, const float (&row)[N], int width, int lane) {
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        if (e < width) target[e] = row[j];  // store_row
    }
}

/// Value `index` of a row becomes `value`.
template <int N>
__device__ void set_value(float (&row)[N], int index, float value, int lane) {
#pragma unroll
    for (int j = 0; j < N; ++j)
        if (j * kLanes + lane == index) row[j] = value;
}

/// An unsigned number for every float, in the same order: a > b exactly when its key is
/// the larger. -0 and +0 share one; 0 is no number's.
__device__ inline unsigned key_of(float value) {
    // TUTORIAL: the bits of positive floats are in order already, so a set sign bit puts
    // them above all negative ones, whose order turning every bit reverses.
    const unsigned bits = __float_as_uint(value + 0.0f);  // -0 + 0 = +0
    const unsigned key = bits >> 31 ? ~bits : bits | 0x80000000u;
    return key == 0 ? 1u : key;  // a NaN; whatever it is, it must be choosable
}

/// The float of a key.
__device__ inline float value_of(unsigned key) {
    return __uint_as_float(key >> 31 ? key ^ 0x80000000u : ~key);
}

template <int N>
__device__ void keys_of(unsigned (&keys)[N], const float (&row)[N]) {
#pragma unroll
    for (int j = 0; j < N; ++j) keys[j] = key_of(row[j]);
}

/// A value of a row, and its place.
struct Choice {
    int index;
    unsigned key;
};

/// The largest of the values whose slots are open, of equal ones the first; the same in
/// all lanes. Some slot of the warp must be open.
template <int N>
__device__ Choice largest(const unsigned (&keys)[N], unsigned open, int lane) {
    unsigned key = 0;
    int index = kMostSlots * kLanes;
#pragma unroll
    for (int j = 0; j < N; ++j)
        if ((open >> j & 1u) != 0 && keys[j] > key) {
            key = keys[j];
            index = j * kLanes + lane;
        }
    // TUTORIAL: one instruction finds the warp's largest key, a second one the first
    // place that has it; a butterfly of pairs (key, place) takes ten shuffles.
    const unsigned best = __reduce_max_sync(kAllLanes, key);
    const int place = key == best ? index : kMostSlots * kLanes;
    return {__reduce_min_sync(kAllLanes, place), best};
}

/// The K ≤ 32 largest of the open values, equal ones in their order: lane k gets the
/// k-th, lanes past K an index of -1.
template <int N>
__device__ Choice top_k(const unsigned (&keys)[N], unsigned open, int K, int lane) {
    Choice mine = {-1, 0};
    for (int k = 0; k < K; ++k) {
        const Choice next = largest(keys, open, lane);
        open &= ~slot_of(next.index, lane);
        if (k == lane) mine = next;
    }
    return mine;
}

/// The open slots when only the `group_topk` best of `num_groups` groups of equal width
/// may be chosen from. A group's score is the sum of its `group_score_topk` largest
/// values; equal ones: the lower group. Source: moe_utils.py, group_limited_topk
/// (DeepSeek-V3, arXiv 2412.19437).
template <int N>
__device__ unsigned open_groups(const unsigned (&keys)[N], int width, int num_groups,
                                int group_topk, int group_score_topk, int lane) {
    const int size = width / num_groups;
    unsigned group_keys[N] = {};  // of group 32 j + lane
    for (int g = 0; g < num_groups; ++g) {
        unsigned open = slots_between(g * size, (g + 1) * size, lane);
        float score = 0.0f;
        for (int i = 0; i < group_score_topk; ++i) {
            const Choice next = largest(keys, open, lane);
            open &= ~slot_of(next.index, lane);
            score += value_of(next.key);
        }
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (j * kLanes + lane == g) group_keys[j] = key_of(score);
    }

    unsigned open = 0, left = slots_below(num_groups, lane);
    for (int i = 0; i < group_topk; ++i) {
        const int g = largest(group_keys, left, lane).index;
        left &= ~slot_of(g, lane);
        open |= slots_between(g * size, (g + 1) * size, lane);
    }
    return open;
}

}  // namespace moe::optimized
