/// @file
/// How the functions of this folder are made: one per instruction, with inline assembly
/// for nvcc beside a call into the executor for a CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace moe::gpu::ptx {

// Where a kernel stands, for the executor's messages; nothing on a GPU.
//
// TUTORIAL: a default argument is evaluated where the function is called. A function of a
// kernel that calls these on behalf of others passes its own caller's Site on.
#ifdef __CUDACC__
struct Site {};
#define MOE_HERE \
    {}
#else
using cuda_on_cpu::Site;
#define MOE_HERE \
    { __builtin_FILE(), __builtin_LINE() }
#endif

// MOE_PTX(assembly, on a CPU); MOE_PTX_HOPPER: the assembly is for sm_90a alone, and a
// kernel that reaches it on another GPU traps.
#ifndef __CUDACC__
#define MOE_PTX(assembly, on_cpu) on_cpu
#define MOE_PTX_HOPPER(assembly, on_cpu) on_cpu
#elif defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MOE_PTX(assembly, on_cpu) assembly
#define MOE_PTX_HOPPER(assembly, on_cpu) assembly
#else
#define MOE_PTX(assembly, on_cpu) assembly
#define MOE_PTX_HOPPER(assembly, on_cpu) __trap()
#endif

#ifdef __CUDACC__
/// An address of the block's shared memory as instructions take it: 32 bits.
__device__ inline std::uint32_t shared_address(const void* pointer) {
    return std::uint32_t(__cvta_generic_to_shared(pointer));
}
#endif

}  // namespace moe::gpu::ptx
