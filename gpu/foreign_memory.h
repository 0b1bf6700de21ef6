/// @file
/// Device memory that gpu/ did not allocate: a window that several processes share.
#pragma once

#include <cstddef>

namespace moe::gpu {

/// Makes host memory device memory, until disown_device_memory(): on the CPU executor,
/// where they are of one kind. DeviceError on a GPU.
void adopt_device_memory(void* pointer, std::size_t bytes);
void disown_device_memory(void* pointer);

}  // namespace moe::gpu
