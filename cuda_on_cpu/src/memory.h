/// @file
/// What the executor knows of memory: allocations, and of which kind they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda_on_cpu/runtime_types.h"

namespace cuda_on_cpu {

struct Allocation {
    std::size_t bytes;
    cudaMemoryType type;
};

/// An allocation and where it begins; base 0: none.
struct Found {
    std::uintptr_t base = 0;
    Allocation allocation{0, cudaMemoryTypeUnregistered};
};

/// The one that holds this address, or ends there.
Found find_allocation(const void* pointer);

inline bool on_device(cudaMemoryType type) {
    return type == cudaMemoryTypeDevice || type == cudaMemoryTypeManaged;
}

/// One side of a copy: the range lies in one allocation, and on the side it should.
cudaError_t check_range(const char* function, const char* side, const void* pointer,
                        std::size_t bytes, bool want_device, bool want_host);

/// Why a kernel may not touch these bytes, "12 bytes past the end of …"; empty when they
/// lie in one allocation that it may.
std::string describe_outside(const void* address, std::size_t bytes);

}  // namespace cuda_on_cpu
