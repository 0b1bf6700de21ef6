/// @file
/// The last error of each CPU thread, with its story.
#pragma once

#include <string>

#include "cuda_on_cpu/runtime_types.h"

namespace cuda_on_cpu {

/// Remembers the error for cudaGetLastError() and the story for cudaGetErrorString().
cudaError_t set_error(cudaError_t error, std::string story);

/// Work that a stream had held back failed with `error`, whose story this thread has. As
/// on a GPU, each thread is told by its next calls, until its cudaGetLastError().
void note_held_failure(cudaError_t error);

/// What held work failed with, as this call's error; cudaSuccess when all went well.
cudaError_t held_failure();

}  // namespace cuda_on_cpu
