/// @file
/// Memory ordered between blocks, GPUs and ranks, and the clock for deadlines. Source:
/// PTX ISA, "Memory Consistency Model" and "Special Registers".
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// A load that sees everything written before the matching st_release, by any thread of
/// this GPU (gpu) or of the whole system, other GPUs and the host included (sys). What a
/// loop that waits for a flag polls.
__device__ inline std::uint32_t ld_acquire_gpu(const std::uint32_t* address) {
#ifdef __CUDACC__
    std::uint32_t value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                 : "=r"(value)
                 : "l"(address)
                 : "memory");
    return value;
#else
    cuda_on_cpu::yield_thread();  // the writer may be a thread of this block
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
#endif
}
__device__ inline std::uint32_t ld_acquire_sys(const std::uint32_t* address) {
#ifdef __CUDACC__
    std::uint32_t value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
                 : "=r"(value)
                 : "l"(address)
                 : "memory");
    return value;
#else
    cuda_on_cpu::yield_thread();
    return __atomic_load_n(address, __ATOMIC_ACQUIRE);
#endif
}

/// A store after which everything that this thread wrote before is seen by whoever
/// acquires the value.
__device__ inline void st_release_gpu(std::uint32_t* address, std::uint32_t value) {
#ifdef __CUDACC__
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(address), "r"(value)
                 : "memory");
#else
    __atomic_store_n(address, value, __ATOMIC_RELEASE);
#endif
}
__device__ inline void st_release_sys(std::uint32_t* address, std::uint32_t value) {
#ifdef __CUDACC__
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(address), "r"(value)
                 : "memory");
#else
    __atomic_store_n(address, value, __ATOMIC_RELEASE);
#endif
}

/// Orders this thread's accesses before it and after it, for threads of the cluster, of
/// this GPU, or of the whole system.
__device__ inline void fence_acq_rel_cluster() {
    MOE_PTX_HOPPER(asm volatile("fence.acq_rel.cluster;" ::
                                    : "memory"),
                   __threadfence_block());
}
__device__ inline void fence_acq_rel_gpu() {
    MOE_PTX(asm volatile("fence.acq_rel.gpu;" ::: "memory"), __threadfence());
}
__device__ inline void fence_acq_rel_sys() {
    MOE_PTX(asm volatile("fence.acq_rel.sys;" ::: "memory"), __threadfence_system());
}

/// Nanoseconds of a clock that all blocks share; for deadlines, not for measuring.
__device__ inline std::uint64_t globaltimer() {
#ifdef __CUDACC__
    std::uint64_t now;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    return now;
#else
    return cuda_on_cpu::nanoseconds();
#endif
}

}  // namespace moe::gpu::ptx
