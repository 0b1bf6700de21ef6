/// @file
/// Waits and fences inside a block, and how registers and kernels follow each other.
/// Source: PTX ISA, "barrier", "fence", "elect.sync", "setmaxnreg", "griddepcontrol".
#pragma once

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// Waits until `threads` threads have arrived at barrier `id`, by this or by
/// named_barrier_arrive(). Whole warps.
/// @param id  1 to 15; 0 is __syncthreads()
/// @param threads  a multiple of 32
__device__ inline void named_barrier_sync(std::uint32_t id, std::uint32_t threads,
                                          Site site = MOE_HERE) {
    MOE_PTX(asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads)
                         : "memory"),
            cuda_on_cpu::named_barrier(id, threads, true, site));
}
/// Arrives and goes on.
__device__ inline void named_barrier_arrive(std::uint32_t id, std::uint32_t threads,
                                            Site site = MOE_HERE) {
    MOE_PTX(asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads)
                         : "memory"),
            cuda_on_cpu::named_barrier(id, threads, false, site));
}

/// What this thread has stored in its block's shared memory is seen by TMA, bulk copies
/// and wgmma.
/// TUTORIAL: without .shared::cta the fence is for global memory too, and ptxas makes it
/// a barrier of the whole GPU's memory, in the hottest of loops.
__device__ inline void fence_proxy_async() {
    MOE_PTX_HOPPER(asm volatile("fence.proxy.async.shared::cta;" ::
                                    : "memory"),
                   cuda_on_cpu::fence_proxy_async());
}
/// The mbarriers that this thread has initialised are seen by copies and by the cluster.
__device__ inline void fence_mbarrier_init() {
    MOE_PTX_HOPPER(asm volatile("fence.mbarrier_init.release.cluster;" ::
                                    : "memory"),
                   cuda_on_cpu::fence_mbarrier_init());
}

/// True in one lane of the warp, always the same one; all 32 must call it.
__device__ inline bool elect_one(Site site = MOE_HERE) {
    std::uint32_t elected = 0;
    MOE_PTX_HOPPER(asm volatile("{\n"
                                ".reg .pred p;\n"
                                "elect.sync _|p, 0xffffffff;\n"
                                "selp.b32 %0, 1, 0, p;\n"
                                "}"
                                : "=r"(elected)),
                   elected = cuda_on_cpu::elect_one(site));
    return elected != 0;
}

/// The warps of a warpgroup take more registers, or give some back.
/// @tparam Registers  per thread, a multiple of 8 from 24 to 256
template <int Registers>
__device__ void setmaxnreg_inc(Site site = MOE_HERE) {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0,
                  "setmaxnreg takes multiples of 8 from 24 to 256");
    MOE_PTX_HOPPER(asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers)),
                   cuda_on_cpu::set_max_registers(Registers, true, site));
}
template <int Registers>
__device__ void setmaxnreg_dec(Site site = MOE_HERE) {
    static_assert(Registers >= 24 && Registers <= 256 && Registers % 8 == 0,
                  "setmaxnreg takes multiples of 8 from 24 to 256");
    MOE_PTX_HOPPER(asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers)),
                   cuda_on_cpu::set_max_registers(Registers, false, site));
}

/// Programmatic dependent launch: the next kernel of the stream may begin …
__device__ inline void griddep_launch() {
    MOE_PTX_HOPPER(asm volatile("griddepcontrol.launch_dependents;" ::
                                    : "memory"),
                   void());  // kernels of a stream follow each other on the executor
}
/// … and waits here until the kernel before it has ended and its writes are seen.
__device__ inline void griddep_wait() {
    MOE_PTX_HOPPER(asm volatile("griddepcontrol.wait;" ::: "memory"), void());
}

}  // namespace moe::gpu::ptx
