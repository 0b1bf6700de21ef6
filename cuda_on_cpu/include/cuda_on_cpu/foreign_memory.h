/// @file
/// Device memory that the executor did not allocate: a window that several processes
/// share.
#pragma once

#include <cstddef>

namespace cuda_on_cpu {

/// From now on these bytes are device memory, for kernels, copies and checks.
void adopt_device_memory(void* pointer, std::size_t bytes);
/// No longer; the bytes themselves stay as they are.
void disown_device_memory(void* pointer);

}  // namespace cuda_on_cpu
