/// @file
/// Atomic functions on global and shared memory: relaxed, as CUDA's are.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_on_cpu/executor.h"
#include "cuda_on_cpu/language.h"

namespace cuda_on_cpu {

/// An integer of T's size, which __atomic functions take.
template <typename T>
using Word =
    std::conditional_t<sizeof(T) == 8, std::uint64_t,
                       std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint16_t>>;

// TUTORIAL: inlined always, so that the observed build finds the atomic in the kernel
// that calls it.
/// Replaces *address by update(*address); returns what was there. T may be a float.
template <typename T, typename Update>
__forceinline__ T atomic_update(T* address, Update update) {
    count_atomic();
    auto* word = reinterpret_cast<Word<T>*>(address);
    Word<T> seen = __atomic_load_n(word, __ATOMIC_RELAXED);
    for (;;) {
        const T old = std::bit_cast<T>(seen);
        const auto wanted = std::bit_cast<Word<T>>(static_cast<T>(update(old)));
        if (__atomic_compare_exchange_n(word, &seen, wanted, true, __ATOMIC_RELAXED,
                                        __ATOMIC_RELAXED))
            return old;
    }
}

}  // namespace cuda_on_cpu

#define CUDA_ON_CPU_ATOMIC(T)                                                           \
    __forceinline__ T atomicAdd(T* address, T value) {                                  \
        return cuda_on_cpu::atomic_update(address, [=](T old) { return old + value; }); \
    }                                                                                   \
    __forceinline__ T atomicExch(T* address, T value) {                                 \
        return cuda_on_cpu::atomic_update(address, [=](T) { return value; });           \
    }
CUDA_ON_CPU_ATOMIC(int)
CUDA_ON_CPU_ATOMIC(unsigned)
CUDA_ON_CPU_ATOMIC(unsigned long long)
CUDA_ON_CPU_ATOMIC(float)
#undef CUDA_ON_CPU_ATOMIC
__forceinline__ double atomicAdd(double* address, double value) {
    return cuda_on_cpu::atomic_update(address, [=](double old) { return old + value; });
}

#define CUDA_ON_CPU_ATOMIC(T)                                                           \
    __forceinline__ T atomicMin(T* address, T value) {                                  \
        return cuda_on_cpu::atomic_update(                                              \
            address, [=](T old) { return old < value ? old : value; });                 \
    }                                                                                   \
    __forceinline__ T atomicMax(T* address, T value) {                                  \
        return cuda_on_cpu::atomic_update(                                              \
            address, [=](T old) { return old > value ? old : value; });                 \
    }                                                                                   \
    __forceinline__ T atomicAnd(T* address, T value) {                                  \
        return cuda_on_cpu::atomic_update(address, [=](T old) { return old & value; }); \
    }                                                                                   \
    __forceinline__ T atomicOr(T* address, T value) {                                   \
        return cuda_on_cpu::atomic_update(address, [=](T old) { return old | value; }); \
    }                                                                                   \
    __forceinline__ T atomicXor(T* address, T value) {                                  \
        return cuda_on_cpu::atomic_update(address, [=](T old) { return old ^ value; }); \
    }                                                                                   \
    __forceinline__ T atomicCAS(T* address, T compare, T value) {                       \
        cuda_on_cpu::count_atomic();                                                    \
        T seen = compare;                                                               \
        if (__atomic_compare_exchange_n(address, &seen, value, false, __ATOMIC_RELAXED, \
                                        __ATOMIC_RELAXED))                              \
            return compare;                                                             \
        /* Perhaps a spin lock whose owner is another thread of this block. */          \
        cuda_on_cpu::yield_thread();                                                    \
        return seen;                                                                    \
    }
CUDA_ON_CPU_ATOMIC(int)
CUDA_ON_CPU_ATOMIC(unsigned)
CUDA_ON_CPU_ATOMIC(unsigned long long)
#undef CUDA_ON_CPU_ATOMIC

__forceinline__ int atomicSub(int* address, int value) {
    return atomicAdd(address, -value);
}
__forceinline__ unsigned atomicSub(unsigned* address, unsigned value) {
    return atomicAdd(address, 0u - value);
}
__forceinline__ unsigned atomicInc(unsigned* address, unsigned limit) {
    return cuda_on_cpu::atomic_update(
        address, [=](unsigned old) { return old >= limit ? 0u : old + 1u; });
}
__forceinline__ unsigned atomicDec(unsigned* address, unsigned limit) {
    return cuda_on_cpu::atomic_update(address, [=](unsigned old) {
        return old == 0u || old > limit ? limit : old - 1u;
    });
}
