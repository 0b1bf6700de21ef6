/// @file
/// The last error of each CPU thread, with its story.
#pragma once

#include <string>

#include "cuda_on_cpu/runtime_types.h"

namespace cuda_on_cpu {

/// Remembers the error for cudaGetLastError() and the story for cudaGetErrorString().
cudaError_t set_error(cudaError_t error, std::string story);

}  // namespace cuda_on_cpu
