/// @file
/// Values of a device tensor in another floating-point type, without a wait: transfer()
/// casts by way of the host.
#pragma once

#include "core/tensor.h"

namespace moe::gpu {

/// The source itself where it has that dtype; else bf16 as fp32, or fp32 rounded to
/// nearest even to bf16, in this thread's stream.
/// @param source  in device memory
Tensor cast(const Tensor& source, DType dtype);

}  // namespace moe::gpu
