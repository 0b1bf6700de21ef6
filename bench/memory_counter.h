/// @file
/// How many bytes of tensors there are, and how many there were at most.
#pragma once

#include <cstdint>

#include "core/tensor.h"

namespace moe::bench {

/// From the first call on, bytes of tensors made in a memory space are counted, by
/// functions put before those that core/transfer.h has registered. InternalError when the
/// space is not registered yet.
void count_memory(MemorySpace space);

struct MemoryUse {
    std::int64_t now = 0;   ///< bytes
    std::int64_t peak = 0;  ///< most bytes since the counting or the last reset began
};

/// Zeros in a space that is not counted.
MemoryUse memory_use(MemorySpace space);

/// From now on the peak is that of what follows.
void reset_memory_peak(MemorySpace space);

}  // namespace moe::bench
