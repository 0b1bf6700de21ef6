/// @file
/// Copies of more than a cache holds.
#pragma once

#include <cstddef>

namespace moe {

/// As std::memcpy().
using CopyBytes = void (*)(void* target, const void* source, std::size_t bytes);

/// How to fill `total` bytes, by one copy or by many: through the cache, for who reads
/// them next, or past it where they would not stay.
CopyBytes copy_for(std::size_t total);

}  // namespace moe
