// The system's pages, which stacks and device memory are guarded with.
#pragma once

#include <unistd.h>

#include <cstddef>

namespace cuda_on_cpu {

/// Bytes of one.
inline const std::size_t kPage = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));

}  // namespace cuda_on_cpu
