/// @file
/// Programs that a machine may have, and the GPU that it should have.
#pragma once

#include <string>

namespace moe::gpu_check {

/// Looks in PATH, and where CUDA and Nsight install themselves; nothing when it is
/// nowhere.
std::string find_tool(const std::string& name);

/// A python3 that says it has torch; nothing when there is none.
std::string find_python_with_torch();

/// How many GPUs there are; an emulated one counts.
int device_count();

/// Why the kernels cannot run on the GPU, "compute capability = 7.5: needs 8.0 or newer";
/// nothing when they can. Leaves the GPU alone: no context stays on it.
std::string unfit_device();

}  // namespace moe::gpu_check
