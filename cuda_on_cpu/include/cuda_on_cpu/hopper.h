/// @file
/// The instructions behind gpu/ptx/, one function each; what they do is documented there.
/// Whatever hardware leaves undefined, or the executor does not model, ends the launch
/// with an error at `site`.
#pragma once

#include <cstdint>

#include "cuda_on_cpu/executor.h"

namespace cuda_on_cpu {

// ---------------------------------------------------------------------------- mbarrier
void mbarrier_init(std::uint64_t* barrier, std::uint32_t count, Site site);
void mbarrier_invalidate(std::uint64_t* barrier, Site site);
void mbarrier_arrive(std::uint64_t* barrier, std::uint32_t count, Site site);
void mbarrier_expect_tx(std::uint64_t* barrier, std::uint32_t bytes, Site site);
bool mbarrier_test_wait(std::uint64_t* barrier, std::uint32_t parity, Site site);
void mbarrier_wait(std::uint64_t* barrier, std::uint32_t parity, Site site);
/// At the same place in the shared memory of block `rank` of the cluster.
void mbarrier_arrive_remote(std::uint64_t* barrier, std::uint32_t rank, Site site);

// ----------------------------------------------------------------------------- copies
void cp_async(void* target, const void* source, unsigned bytes, unsigned source_bytes,
              Site site);
void cp_async_commit();
void cp_async_wait(unsigned groups);
void cp_async_mbarrier_arrive(std::uint64_t* barrier, bool counted, Site site);

/// What a bulk copy out of shared memory does with what is there.
enum class BulkOp { copy, add_f32, add_bf16, add_s32 };
/// @param blocks  of the cluster that receive it, bit r for rank r; 0: the own block
void bulk_load(void* target, const void* source, std::uint32_t bytes,
               std::uint64_t* barrier, std::uint32_t blocks, Site site);
void bulk_store(void* target, const void* source, std::uint32_t bytes, BulkOp op,
                Site site);
void tensor_load(void* target, const void* tensor_map, const int* corner, int rank,
                 std::uint64_t* barrier, std::uint32_t blocks, Site site);
void tensor_store(const void* tensor_map, const int* corner, int rank, const void* source,
                  BulkOp op, Site site);
void bulk_commit();
void bulk_wait(unsigned groups);

// -------------------------------------------------------------- matrices of a whole warp
void ldmatrix(std::uint32_t* registers, const void* row, int matrices, bool transposed,
              Site site);
void stmatrix(void* row, const std::uint32_t* registers, int matrices, bool transposed,
              Site site);
enum class MmaType { bf16, f16, tf32 };
/// d (16, 8) += a b; 16 deep, 8 for tf32.
void mma_m16n8(float* d, const std::uint32_t* a, const std::uint32_t* b, MmaType type,
               Site site);

// -------------------------------------------------------------------------------- wgmma
void wgmma_fence(Site site);
/// One of `a` (four registers) and `a_descriptor` is used.
struct WgmmaOperands {
    float* d;
    const std::uint32_t* a;
    std::uint64_t a_descriptor, b_descriptor;
    int n;
    bool accumulate, a_transposed, b_transposed;
};
void wgmma(const WgmmaOperands& operands, Site site);
void wgmma_commit(Site site);
void wgmma_wait(unsigned groups, Site site);
/// The address as a matrix descriptor has it: bytes from the start of shared memory.
std::uint32_t shared_address(const void* pointer, Site site);

// --------------------------------------------------------------- waits, fences, clusters
void named_barrier(unsigned id, unsigned count, bool sync, Site site);
/// True in one of the warp's lanes.
bool elect_one(Site site);
void set_max_registers(int registers, bool increase, Site site);
void fence_proxy_async();
void fence_mbarrier_init();
void cluster_arrive(Site site);
void cluster_wait(Site site);
unsigned cluster_rank();
unsigned cluster_size();
/// The same place in the shared memory of block `rank` of the cluster.
void* map_shared_rank(const void* pointer, unsigned rank, Site site);

}  // namespace cuda_on_cpu
