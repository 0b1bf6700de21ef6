/// @file
/// threadIdx and its family: what the executor tells a CUDA thread about itself.
#pragma once

#include "vector_types.h"

// TUTORIAL: objects, not macros, so that `config.gridDim` can still be a field. Each CPU
// thread runs one CUDA thread at a time; the executor writes these at every switch.
inline thread_local uint3 threadIdx = {0, 0, 0};
inline thread_local uint3 blockIdx = {0, 0, 0};
inline thread_local dim3 blockDim = {1, 1, 1};
inline thread_local dim3 gridDim = {1, 1, 1};
inline constexpr int warpSize = 32;
