#include "gpu/foreign_memory.h"

#include "gpu/check.h"
#ifndef __CUDACC__
#include "cuda_on_cpu/foreign_memory.h"
#endif

namespace moe::gpu {

#ifdef __CUDACC__
void adopt_device_memory(void*, std::size_t) {
    throw DeviceError("shared memory = of processes: a GPU cannot have it as its own");
}
void disown_device_memory(void*) {}
#else
void adopt_device_memory(void* pointer, std::size_t bytes) {
    cuda_on_cpu::adopt_device_memory(pointer, bytes);
}
void disown_device_memory(void* pointer) {
    cuda_on_cpu::disown_device_memory(pointer);
}
#endif

}  // namespace moe::gpu
