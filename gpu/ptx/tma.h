/// @file
/// The Tensor Memory Accelerator: one thread starts the copy of a whole box of a tensor,
/// or of a line of bytes, between global and shared memory. Source: PTX ISA,
/// "cp.async.bulk", "cp.async.bulk.tensor", "cp.reduce.async.bulk".
///
/// TUTORIAL: a load completes on an mbarrier, to which its bytes must be announced
/// (mbarrier_expect_tx): always those of the whole box, also where it hangs over the
/// tensor's edge; what is missing arrives as zeros. Stores skip it. A store's thread
/// waits for it by groups: bulk_wait_read() before it reuses the shared memory or exits.
#pragma once

#include <cuda.h>
#include <cuda_bf16.h>

#include "gpu/ptx/site.h"

namespace moe::gpu::ptx {

/// Fetches the map itself, before its first use.
__device__ inline void prefetch_tensormap(const CUtensorMap* map) {
    MOE_PTX_HOPPER(asm volatile("prefetch.tensormap [%0];" ::"l"(map)
                                : "memory"),
                   static_cast<void>(map));
}

#ifndef __CUDACC__
template <typename... Coordinates>
void tensor_load(void* shared, const CUtensorMap* map, std::uint64_t* barrier,
                 std::uint32_t blocks, Site site, Coordinates... coordinates) {
    const int corner[] = {coordinates...};
    cuda_on_cpu::tensor_load(shared, map, corner, sizeof...(coordinates), barrier, blocks,
                             site);
}
template <typename... Coordinates>
void tensor_store(const CUtensorMap* map, const void* shared, cuda_on_cpu::BulkOp op,
                  Site site, Coordinates... coordinates) {
    const int corner[] = {coordinates...};
    cuda_on_cpu::tensor_store(map, corner, sizeof...(coordinates), shared, op, site);
}
#endif

// ------------------------------------------------------------------- boxes of a tensor
// x counts elements along the innermost axis, and may be negative or past the end.
// `shared` is aligned to 128 bytes, with a swizzle to 8 of its rows.
__device__ inline void tma_load_1d(void* shared, const CUtensorMap* map,
                                   std::uint64_t* barrier, int x, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global"
                     ".mbarrier::complete_tx::bytes [%0], [%1, {%3}], [%2];" ::"r"(
                         shared_address(shared)),
                     "l"(map), "r"(shared_address(barrier)), "r"(x)
                     : "memory"),
        (tensor_load(shared, map, barrier, 0, site, x)));
}
__device__ inline void tma_load_2d(void* shared, const CUtensorMap* map,
                                   std::uint64_t* barrier, int x, int y,
                                   Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global"
                     ".mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
                         shared_address(shared)),
                     "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y)
                     : "memory"),
        (tensor_load(shared, map, barrier, 0, site, x, y)));
}
__device__ inline void tma_load_3d(void* shared, const CUtensorMap* map,
                                   std::uint64_t* barrier, int x, int y, int z,
                                   Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile(
            "cp.async.bulk.tensor.3d.shared::cluster.global"
            ".mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(
                shared_address(shared)),
            "l"(map), "r"(shared_address(barrier)), "r"(x), "r"(y), "r"(z)
            : "memory"),
        (tensor_load(shared, map, barrier, 0, site, x, y, z)));
}
/// Into the same place of every block of the cluster whose bit is set; each completes on
/// its own barrier, in the same place.
__device__ inline void tma_load_multicast_2d(void* shared, const CUtensorMap* map,
                                             std::uint64_t* barrier, std::uint16_t blocks,
                                             int x, int y, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global"
                     ".mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, "
                     "%5}], [%2], %3;" ::"r"(shared_address(shared)),
                     "l"(map), "r"(shared_address(barrier)), "h"(blocks), "r"(x), "r"(y)
                     : "memory"),
        (tensor_load(shared, map, barrier, blocks, site, x, y)));
}
__device__ inline void tma_load_multicast_3d(void* shared, const CUtensorMap* map,
                                             std::uint64_t* barrier, std::uint16_t blocks,
                                             int x, int y, int z, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global"
                     ".mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%4, "
                     "%5, %6}], [%2], %3;" ::"r"(shared_address(shared)),
                     "l"(map), "r"(shared_address(barrier)), "h"(blocks), "r"(x), "r"(y),
                     "r"(z)
                     : "memory"),
        (tensor_load(shared, map, barrier, blocks, site, x, y, z)));
}
__device__ inline void tma_store_1d(const CUtensorMap* map, const void* shared, int x,
                                    Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group "
                                "[%0, {%2}], [%1];" ::"l"(map),
                                "r"(shared_address(shared)), "r"(x)
                                : "memory"),
                   (tensor_store(map, shared, cuda_on_cpu::BulkOp::copy, site, x)));
}
__device__ inline void tma_store_2d(const CUtensorMap* map, const void* shared, int x,
                                    int y, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group "
                                "[%0, {%2, %3}], [%1];" ::"l"(map),
                                "r"(shared_address(shared)), "r"(x), "r"(y)
                                : "memory"),
                   (tensor_store(map, shared, cuda_on_cpu::BulkOp::copy, site, x, y)));
}
__device__ inline void tma_store_3d(const CUtensorMap* map, const void* shared, int x,
                                    int y, int z, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group "
                                "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                                "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
                                : "memory"),
                   (tensor_store(map, shared, cuda_on_cpu::BulkOp::copy, site, x, y, z)));
}
/// Adds the box to the tensor, element by element, atomically.
__device__ inline void tma_reduce_add_1d(const CUtensorMap* map, const void* shared,
                                         int x, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.tensor.1d.global.shared::cta.add.bulk_group "
                     "[%0, {%2}], [%1];" ::"l"(map),
                     "r"(shared_address(shared)), "r"(x)
                     : "memory"),
        (tensor_store(map, shared, cuda_on_cpu::BulkOp::add_f32, site, x)));
}
__device__ inline void tma_reduce_add_2d(const CUtensorMap* map, const void* shared,
                                         int x, int y, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group "
                     "[%0, {%2, %3}], [%1];" ::"l"(map),
                     "r"(shared_address(shared)), "r"(x), "r"(y)
                     : "memory"),
        (tensor_store(map, shared, cuda_on_cpu::BulkOp::add_f32, site, x, y)));
}
__device__ inline void tma_reduce_add_3d(const CUtensorMap* map, const void* shared,
                                         int x, int y, int z, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group "
                     "[%0, {%2, %3, %4}], [%1];" ::"l"(map),
                     "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
                     : "memory"),
        (tensor_store(map, shared, cuda_on_cpu::BulkOp::add_f32, site, x, y, z)));
}
// ----------------------------------------------------------------------- lines of bytes
/// Addresses aligned to 16, `bytes` a multiple of 16.
__device__ inline void bulk_load(void* shared, const void* global, std::uint32_t bytes,
                                 std::uint64_t* barrier, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes "
                     "[%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                     "l"(global), "r"(bytes), "r"(shared_address(barrier))
                     : "memory"),
        cuda_on_cpu::bulk_load(shared, global, bytes, barrier, 0, site));
}
__device__ inline void bulk_load_multicast(void* shared, const void* global,
                                           std::uint32_t bytes, std::uint64_t* barrier,
                                           std::uint16_t blocks, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
            ".multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
            "l"(global), "r"(bytes), "r"(shared_address(barrier)), "h"(blocks)
            : "memory"),
        cuda_on_cpu::bulk_load(shared, global, bytes, barrier, blocks, site));
}
__device__ inline void bulk_store(void* global, const void* shared, std::uint32_t bytes,
                                  Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile(
            "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global),
            "r"(shared_address(shared)), "r"(bytes)
            : "memory"),
        cuda_on_cpu::bulk_store(global, shared, bytes, cuda_on_cpu::BulkOp::copy, site));
}
/// Adds to what is there, element by element, atomically.
__device__ inline void bulk_reduce_add_f32(float* global, const float* shared,
                                           std::uint32_t bytes, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 "
                     "[%0], [%1], %2;" ::"l"(global),
                     "r"(shared_address(shared)), "r"(bytes)
                     : "memory"),
        cuda_on_cpu::bulk_store(global, shared, bytes, cuda_on_cpu::BulkOp::add_f32,
                                site));
}
__device__ inline void bulk_reduce_add_bf16(__nv_bfloat16* global,
                                            const __nv_bfloat16* shared,
                                            std::uint32_t bytes, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 "
                     "[%0], [%1], %2;" ::"l"(global),
                     "r"(shared_address(shared)), "r"(bytes)
                     : "memory"),
        cuda_on_cpu::bulk_store(global, shared, bytes, cuda_on_cpu::BulkOp::add_bf16,
                                site));
}
__device__ inline void bulk_reduce_add_s32(int* global, const int* shared,
                                           std::uint32_t bytes, Site site = MOE_HERE) {
    MOE_PTX_HOPPER(
        asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32 "
                     "[%0], [%1], %2;" ::"l"(global),
                     "r"(shared_address(shared)), "r"(bytes)
                     : "memory"),
        cuda_on_cpu::bulk_store(global, shared, bytes, cuda_on_cpu::BulkOp::add_s32,
                                site));
}

/// The thread's stores since the last commit are a group.
__device__ inline void bulk_commit() {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.commit_group;" ::
                                    : "memory"),
                   cuda_on_cpu::bulk_commit());
}
/// Until at most Groups of the thread's youngest groups still read shared memory; without
/// _read, until all the others have also written.
template <int Groups>
__device__ void bulk_wait_read() {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(Groups)
                                : "memory"),
                   cuda_on_cpu::bulk_wait(Groups));
}
template <int Groups>
__device__ void bulk_wait() {
    MOE_PTX_HOPPER(asm volatile("cp.async.bulk.wait_group %0;" ::"n"(Groups)
                                : "memory"),
                   cuda_on_cpu::bulk_wait(Groups));
}

}  // namespace moe::gpu::ptx
