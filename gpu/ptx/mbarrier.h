/// @file
/// mbarriers: 64 bits of shared memory that count the arrivals of threads and the bytes
/// that asynchronous copies have moved. Source: PTX ISA, "mbarrier".
///
/// TUTORIAL: a barrier goes through phases. One completes when `count` threads have
/// arrived and as many bytes have come as were announced; the next begins at once. Who
/// waits names a phase by its parity: the first is 0. A consumer waits on its stage's
/// t-th use for parity t mod 2; a producer that waits for an *empty* stage starts with
/// parity 1, which a fresh barrier lets pass.
#pragma once

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// Makes a barrier of 8 bytes of shared memory, aligned to 8. One thread; then
/// fence_mbarrier_init() by the same thread, then a barrier of the block (or cluster).
/// @param count  arrivals that complete a phase, 1 to 2^20 - 1
__device__ inline void mbarrier_init(std::uint64_t* barrier, std::uint32_t count,
                                     Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(
                                    shared_address(barrier)),
                                "r"(count)
                                : "memory"),
                   cuda_on_cpu::mbarrier_init(barrier, count, site));
}

/// The memory may be used for something else.
__device__ inline void mbarrier_invalidate(std::uint64_t* barrier, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(shared_address(barrier))
                     : "memory"),
        cuda_on_cpu::mbarrier_invalidate(barrier, site));
}

/// `count` arrivals. What the thread wrote before is seen by whoever waits for the phase.
__device__ inline void mbarrier_arrive(std::uint64_t* barrier, std::uint32_t count = 1,
                                       Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(
                                    shared_address(barrier)),
                                "r"(count)
                                : "memory"),
                   cuda_on_cpu::mbarrier_arrive(barrier, count, site));
}

/// One arrival at the barrier in the same place of block `rank` of the cluster. What the
/// thread wrote before is seen by whoever waits for the phase.
__device__ inline void mbarrier_arrive_remote(std::uint64_t* barrier, std::uint32_t rank,
                                              Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("{\n"
                     ".reg .b32 remote;\n"
                     "mapa.shared::cluster.u32 remote, %0, %1;\n"
                     "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [remote];\n"
                     "}" ::"r"(shared_address(barrier)),
                     "r"(rank)
                     : "memory"),
        cuda_on_cpu::mbarrier_arrive_remote(barrier, rank, site));
}

/// The same by a thread that has only read, and says so: what it has read may be written
/// over, and nothing that it wrote is promised to the other block.
/// TUTORIAL: the promise is dear. For .release.cluster ptxas puts a barrier of the whole
/// GPU's memory before the arrival; without scope, which is .cta, it puts none. Pipelines
/// release their stages so. Source: CUTLASS, arch/barrier.h, ClusterBarrier::arrive.
__device__ inline void mbarrier_release_remote(std::uint64_t* barrier, std::uint32_t rank,
                                               Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("{\n"
                                ".reg .b32 remote;\n"
                                "mapa.shared::cluster.u32 remote, %0, %1;\n"
                                "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
                                "}" ::"r"(shared_address(barrier)),
                                "r"(rank)
                                : "memory"),
                   cuda_on_cpu::mbarrier_arrive_remote(barrier, rank, site));
}

/// Announces bytes that asynchronous copies will move in this phase.
__device__ inline void mbarrier_expect_tx(std::uint64_t* barrier, std::uint32_t bytes,
                                          Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 "
                                "[%0], %1;" ::"r"(shared_address(barrier)),
                                "r"(bytes)
                                : "memory"),
                   cuda_on_cpu::mbarrier_expect_tx(barrier, bytes, site));
}

/// The same, then one arrival.
__device__ inline void mbarrier_arrive_expect_tx(std::uint64_t* barrier,
                                                 std::uint32_t bytes,
                                                 Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(
                         shared_address(barrier)),
                     "r"(bytes)
                     : "memory"),
        (cuda_on_cpu::mbarrier_expect_tx(barrier, bytes, site),
         cuda_on_cpu::mbarrier_arrive(barrier, 1, site)));
}

/// True when the phase of that parity has completed; does not wait.
__device__ inline bool mbarrier_test_wait(std::uint64_t* barrier, std::uint32_t parity,
                                          Site site = MOE_HERE) {
    std::uint32_t done = 0;
    MOE_PTX_HOPPER(asm volatile("{\n"
                                ".reg .pred p;\n"
                                "mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                                "selp.b32 %0, 1, 0, p;\n"
                                "}"
                                : "=r"(done)
                                : "r"(shared_address(barrier)), "r"(parity)
                                : "memory"),
                   done = cuda_on_cpu::mbarrier_test_wait(barrier, parity, site));
    return done != 0;
}

/// The same, but the thread may sleep for a while first. False: try again.
__device__ inline bool mbarrier_try_wait(std::uint64_t* barrier, std::uint32_t parity,
                                         Site site = MOE_HERE) {
    std::uint32_t done = 0;
    MOE_PTX_HOPPER(asm volatile("{\n"
                                ".reg .pred p;\n"
                                "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                                "selp.b32 %0, 1, 0, p;\n"
                                "}"
                                : "=r"(done)
                                : "r"(shared_address(barrier)), "r"(parity)
                                : "memory"),
                   (cuda_on_cpu::mbarrier_wait(barrier, parity, site), done = 1));
    return done != 0;
}

/// Until the phase of that parity has completed: the loop that every kernel writes.
__device__ inline void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity,
                                     Site site = MOE_HERE) {
    while (!mbarrier_try_wait(barrier, parity, site)) {
    }
}

}  // namespace moe::gpu::ptx
