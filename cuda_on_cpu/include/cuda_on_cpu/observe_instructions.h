/// @file
/// What the functions that stand for instructions tell the observed build, because the
/// compiler cannot see it. In other builds these do nothing.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_on_cpu/executor.h"

namespace cuda_on_cpu::observe {

#ifdef CUDA_ON_CPU_OBSERVE
inline constexpr bool kObserved = true;
#else
inline constexpr bool kObserved = false;
#endif

// What the compiler cannot see, said by the functions that stand for instructions.
#ifdef CUDA_ON_CPU_OBSERVE
/// An asynchronous instruction of this CUDA thread reads, or writes, so many bytes of
/// global or shared memory. Whoever waits for it acquires what it releases.
void async_read(const void* address, std::size_t bytes, Site site);
void async_write(void* address, std::size_t bytes, Site site);
/// Thread `thread` of the block takes part in an instruction of its warp with so many
/// bytes, up to 16: what an ordinary load or store would be.
void lane_access(int thread, const void* address, unsigned bytes, bool writes, Site site);
/// An asynchronous copy moves so many bytes.
void async_bytes(std::uint64_t bytes, Site site);
/// A tensor-core instruction does so many additions and multiplications.
void mma_flops(std::uint64_t flops, Site site);
/// __threadfence_block() and what orders no less.
void fence();
/// What this CUDA thread did before release() is seen by whoever acquires the same
/// object later: an mbarrier, a named barrier, a flag.
void release(const void* object);
void acquire(const void* object);
#else
inline void async_read(const void*, std::size_t, Site) {}
inline void async_write(void*, std::size_t, Site) {}
inline void lane_access(int, const void*, unsigned, bool, Site) {}
inline void async_bytes(std::uint64_t, Site) {}
inline void mma_flops(std::uint64_t, Site) {}
inline void fence() {}
inline void release(const void*) {}
inline void acquire(const void*) {}
#endif

}  // namespace cuda_on_cpu::observe
