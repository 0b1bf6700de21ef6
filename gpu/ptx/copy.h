/// @file
/// cp.async: copies of 4, 8 or 16 bytes from global to shared memory that a thread issues
/// and goes on. sm_80. Source: PTX ISA, "cp.async".
#pragma once

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// Both addresses aligned to Bytes.
/// @param source_bytes  fewer than Bytes: the rest becomes zero, and is not read
template <int Bytes>
__device__ void cp_async(void* shared, const void* global,
                         std::uint32_t source_bytes = Bytes, Site site = MOE_HERE) {
    static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16");
    // Whole sectors go past the first-level cache.
    if constexpr (Bytes == 16)
        MOE_PTX(asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                                 shared_address(shared)),
                             "l"(global), "r"(source_bytes)
                             : "memory"),
                cuda_on_cpu::cp_async(shared, global, 16, source_bytes, site));
    else
        MOE_PTX(asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(
                                 shared_address(shared)),
                             "l"(global), "n"(Bytes), "r"(source_bytes)
                             : "memory"),
                cuda_on_cpu::cp_async(shared, global, Bytes, source_bytes, site));
}

/// All copies since the last commit are a group.
__device__ inline void cp_async_commit() {
    MOE_PTX(asm volatile("cp.async.commit_group;" ::
                             : "memory"),
            cuda_on_cpu::cp_async_commit());
}

/// Until at most Groups of the thread's youngest groups are on their way. Other threads
/// see the data after a barrier.
template <int Groups>
__device__ void cp_async_wait() {
    MOE_PTX(asm volatile("cp.async.wait_group %0;" ::"n"(Groups)
                         : "memory"),
            cuda_on_cpu::cp_async_wait(Groups));
}

/// The thread arrives at the barrier when all its copies so far have. This arrival is not
/// one of the barrier's count: one more is expected in this phase.
__device__ inline void cp_async_mbarrier_arrive(std::uint64_t* barrier,
                                                Site site = MOE_HERE) {
    MOE_PTX(asm volatile("cp.async.mbarrier.arrive.shared::cta.b64 [%0];" ::"r"(
                             shared_address(barrier))
                         : "memory"),
            cuda_on_cpu::cp_async_mbarrier_arrive(barrier, false, site));
}
/// The same; the arrival is one of the count.
__device__ inline void cp_async_mbarrier_arrive_noinc(std::uint64_t* barrier,
                                                      Site site = MOE_HERE) {
    MOE_PTX(asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(
                             shared_address(barrier))
                         : "memory"),
            cuda_on_cpu::cp_async_mbarrier_arrive(barrier, true, site));
}

}  // namespace moe::gpu::ptx
