/// @file
/// Faults inside kernels: wild pointers, stack overflows, divisions by zero and failed
/// assertions become launch errors instead of ending the program.
#pragma once

#include <string>

namespace cuda_on_cpu {

/// While one exists, faults on this CPU thread are caught.
class FaultGuard {
  public:
    FaultGuard();
};

/// The function at an address, in C++, or the address.
std::string symbol_name(const void* address);

}  // namespace cuda_on_cpu
