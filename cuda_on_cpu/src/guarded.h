/// @file
/// Device memory between forbidden pages, so that an access past an allocation, before
/// it, or after it was freed faults where it happens. What lies between an allocation and
/// the pages (its start is aligned, its size is not) holds a pattern, the canary, that
/// tells of writes later.
///
/// A freed allocation stays forbidden until 1024 others were freed after it: its
/// addresses then mean nothing new to a pointer that was kept. Its memory goes back at
/// once.
#pragma once

#include <cstddef>
#include <string>

namespace cuda_on_cpu {

/// Aligned to 256 bytes; contents are zero. Null when there is no memory, or when the
/// process has no more mappings (an allocation needs two of Linux's 65530).
void* guarded_allocate(std::size_t bytes);

/// Frees what guarded_allocate() gave. Says of its canaries what repair_canaries() would.
std::string guarded_free(void* pointer);

/// Looks at the canaries after a launch: of all allocations up to 256, of more only those
/// to which a word of the launch's arguments points. Empty when they are whole, else what
/// was written where; they are whole again then.
std::string repair_canaries(const void* arguments, std::size_t argument_bytes);

/// "512 bytes past the end of a device allocation of 4096 bytes" for an address that no
/// kernel may touch but that is near an allocation; else empty.
std::string describe_forbidden(const void* address);

}  // namespace cuda_on_cpu
