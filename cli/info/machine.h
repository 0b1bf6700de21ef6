/// @file
/// The machine a result was made on.
#pragma once

#include <string>

#include "bench/result.h"

namespace moe {

/// A result without runs: when, by which commit, on what. Its device is the GPU where
/// there is one; otherwise the executor, if this build has it and `emulated` says that
/// kernels ran, or the CPU.
bench::Result make_result(bool emulated);

/// "Intel(R) Xeon(R) …, 2 threads".
std::string cpu_in_words();

}  // namespace moe
