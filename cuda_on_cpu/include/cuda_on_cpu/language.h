/// @file
/// CUDA's additions to C++ that a CPU does not need. Left out on purpose, so that using
/// them is an error that names them: `__shared__` (use moe::gpu::shared_memory) and
/// `__noinline__` (the C++ library's own attribute; a macro would break its headers).
#pragma once

#define __host__
#define __device__
#define __global__
#define __constant__
#define __managed__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))
