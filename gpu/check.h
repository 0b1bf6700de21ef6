/// @file
/// CUDA calls whose failure must not pass unseen.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "core/error.h"
#include "gpu/kernel_reports.h"

namespace moe::gpu {

/// Something went wrong on the device, or in reaching it. Programs print `what()` and
/// leave with exit code 2, as they do for other bad input.
class DeviceError : public InputError {
  public:
    using InputError::InputError;
};

/// Throws DeviceError "<what>: <the error in words> (<its name>)" unless all went well,
/// with what kernels reported. On the CPU executor the words name kernel, block, thread
/// and source line.
inline void check(cudaError_t status, const std::string& what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // told here; the next call starts afresh
    throw DeviceError(fmt::format("{}: {} ({}){}", what, cudaGetErrorString(status),
                                  cudaGetErrorName(status), kernel_reports()));
}

}  // namespace moe::gpu
