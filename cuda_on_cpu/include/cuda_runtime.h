/// @file
/// CUDA on a CPU: in builds without nvcc, this is what `#include <cuda_runtime.h>` finds.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <cstdio>

#include "cuda_on_cpu/atomics.h"
#include "cuda_on_cpu/builtins.h"
#include "cuda_on_cpu/executor.h"
#include "cuda_on_cpu/hopper.h"
#include "cuda_on_cpu/language.h"
#include "cuda_on_cpu/math_functions.h"
#include "cuda_on_cpu/runtime_api.h"
#include "cuda_on_cpu/synchronization.h"
#include "vector_types.h"
