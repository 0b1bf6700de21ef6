/// @file
/// Clusters: blocks that run at the same time, next to each other, and reach each other's
/// shared memory. Source: PTX ISA, "barrier.cluster", "mapa", "Special Registers".
#pragma once

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// Which of the cluster's blocks this is, and how many there are.
__device__ inline std::uint32_t cluster_ctarank() {
    std::uint32_t rank = 0;
    MOE_PTX_HOPPER(asm volatile("mov.u32 %0, %%cluster_ctarank;"
                                : "=r"(rank)),
                   rank = cuda_on_cpu::cluster_rank());
    return rank;
}
__device__ inline std::uint32_t cluster_nctarank() {
    std::uint32_t size = 0;
    MOE_PTX_HOPPER(asm volatile("mov.u32 %0, %%cluster_nctarank;"
                                : "=r"(size)),
                   size = cuda_on_cpu::cluster_size());
    return size;
}

/// The barrier of all threads of the cluster, in two halves: what a thread wrote before
/// it arrives, all see after they have waited. Each arrival needs its wait.
__device__ inline void cluster_arrive(Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("barrier.cluster.arrive.release;" ::
                                    : "memory"),
                   cuda_on_cpu::cluster_arrive(site));
}
__device__ inline void cluster_wait(Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("barrier.cluster.wait.acquire;" ::
                                    : "memory"),
                   cuda_on_cpu::cluster_wait(site));
}

/// The same place in the shared memory of block `rank`. That block must not exit before
/// the last access: end with cluster_arrive() and cluster_wait().
template <typename T>
__device__ T* map_shared_rank(T* pointer, std::uint32_t rank, Site site = MOE_HERE) {
    T* mapped = nullptr;
    MOE_PTX_HOPPER(
        asm volatile("mapa.u64 %0, %1, %2;"
                     : "=l"(mapped)
                     : "l"(pointer), "r"(rank)),
        mapped = static_cast<T*>(cuda_on_cpu::map_shared_rank(pointer, rank, site)));
    return mapped;
}

}  // namespace moe::gpu::ptx
