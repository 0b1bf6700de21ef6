/// @file
/// What the executor's own copies ask of the table of allocations.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_on_cpu {

/// Why a kernel may not touch these bytes, "12 bytes past the end of …"; empty when they
/// lie in one allocation that it may.
std::string describe_outside(const void* address, std::size_t bytes);

}  // namespace cuda_on_cpu
