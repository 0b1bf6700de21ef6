/// @file
/// NCCL is opened when the program runs (gpu/library.h), so that a program built with
/// NCCL's headers starts where there is no NCCL. The functions of nccl.h are called as
/// if it had been linked: nccl_library.cpp defines those that the project calls.
#pragma once

#include "gpu/library.h"

namespace moe::distributed {

/// The library, opened by the first call.
const gpu::Library& nccl_library();

}  // namespace moe::distributed
