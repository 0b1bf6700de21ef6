/// @file
/// Barriers, shuffles, votes, matches and reductions. Rules: CUDA C++ Programming Guide,
/// "Synchronization Functions", "Warp Shuffle Functions" and their neighbours. What
/// hardware leaves undefined is an error here.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda_on_cpu/builtins.h"
#include "cuda_on_cpu/executor.h"
#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/observe_instructions.h"
#include "cuda_on_cpu/sanitizers.h"

// TUTORIAL: default arguments are evaluated where the function is called, so file and
// line are the kernel's, without a macro.
#define CUDA_ON_CPU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

// ---------------------------------------------------------------------------- the block
inline void __syncthreads(CUDA_ON_CPU_SITE) {
    cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::none, 0, {file, line});
}
inline int __syncthreads_count(int predicate, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::count, predicate, {file, line});
}
inline int __syncthreads_and(int predicate, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::all, predicate, {file, line});
}
inline int __syncthreads_or(int predicate, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::block_barrier(cuda_on_cpu::Vote::any, predicate, {file, line});
}

namespace cuda_on_cpu {
/// Orders memory between the CPU threads that run blocks.
inline void host_fence() {
#ifdef CUDA_ON_CPU_TSAN  // it knows no fences; one shared atomic orders as much
    static int everybody = 0;
    __atomic_fetch_add(&everybody, 1, __ATOMIC_SEQ_CST);
#else
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}
}  // namespace cuda_on_cpu

inline void __threadfence() {
    cuda_on_cpu::host_fence();
}
// Threads of a block run one at a time: nothing to order, only to tell of.
inline void __threadfence_block() {
    cuda_on_cpu::observe::fence();
}
inline void __threadfence_system() {
    cuda_on_cpu::host_fence();
}
inline void __nanosleep(unsigned) {
    cuda_on_cpu::yield_thread();
}
inline void __trap(CUDA_ON_CPU_SITE) {
    cuda_on_cpu::trap("__trap()", {file, line});
}

// ----------------------------------------------------------------------------- the warp
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_ON_CPU_SITE) {
    cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::sync, mask, 0, 0, 32, {file, line});
}

namespace cuda_on_cpu {

/// A value of at most 8 bytes as bits, and back.
template <typename T>
std::uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof(T));
    return bits;
}
template <typename T>
T from_bits(std::uint64_t bits) {
    T value;
    std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
    return value;
}
template <typename T>
T shuffle(WarpOp op, unsigned mask, T value, int argument, int width, Site site) {
    return from_bits<T>(warp_op(op, mask, to_bits(value), argument, width, site));
}

}  // namespace cuda_on_cpu

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(cuda_on_cpu::WarpOp::shfl, mask, value, lane, width,
                                {file, line});
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(cuda_on_cpu::WarpOp::shfl_up, mask, value, int(delta),
                                width, {file, line});
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(cuda_on_cpu::WarpOp::shfl_down, mask, value, int(delta),
                                width, {file, line});
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  CUDA_ON_CPU_SITE) {
    return cuda_on_cpu::shuffle(cuda_on_cpu::WarpOp::shfl_xor, mask, value, lane_mask,
                                width, {file, line});
}

inline int __all_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return int(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::all, mask, predicate != 0, 0, 32,
                                    {file, line}));
}
inline int __any_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return int(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::any, mask, predicate != 0, 0, 32,
                                    {file, line}));
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_ON_CPU_SITE) {
    return unsigned(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::ballot, mask,
                                         predicate != 0, 0, 32, {file, line}));
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_ON_CPU_SITE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    return unsigned(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::match_any, mask,
                                         cuda_on_cpu::to_bits(value), 0, 32,
                                         {file, line}));
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* predicate, CUDA_ON_CPU_SITE) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    const auto same =
        unsigned(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::match_all, mask,
                                      cuda_on_cpu::to_bits(value), 0, 32, {file, line}));
    *predicate = same != 0;
    return same;
}

#define CUDA_ON_CPU_REDUCE(name, type, op)                                         \
    inline type name(unsigned mask, type value, CUDA_ON_CPU_SITE) {                \
        return type(cuda_on_cpu::warp_op(cuda_on_cpu::WarpOp::op, mask,            \
                                         static_cast<std::uint32_t>(value), 0, 32, \
                                         {file, line}));                           \
    }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, unsigned, add)
CUDA_ON_CPU_REDUCE(__reduce_add_sync, int, add)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, unsigned, min_unsigned)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, int, min_signed)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, unsigned, max_unsigned)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, int, max_signed)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, unsigned, bit_and)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, unsigned, bit_or)
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef CUDA_ON_CPU_REDUCE
