/// @file
/// The arrays of the C interface as tensors, and back.
#pragma once

#include <string>

#include "bench/moe_c.h"
#include "core/tensor.h"

namespace moe::bench {

/// The array as a tensor that borrows its memory. InputError, naming `field`, when the
/// array is null, has a dtype, space, rank or size that there is not, a null pointer, a
/// pointer into the other memory space, or one that no element of its dtype can have.
Tensor borrow_array(const std::string& field, const moe_array* array);

/// The array that points at a tensor's elements.
moe_array array_of(const TensorView& tensor);

/// MOE_HOST or MOE_DEVICE as a memory space. InputError for another number.
MemorySpace space_of(const std::string& field, std::int32_t space);

}  // namespace moe::bench
