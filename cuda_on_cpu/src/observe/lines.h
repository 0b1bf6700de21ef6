/// @file
/// The source line of an instruction, from the program's debug information.
#pragma once

#include <cstdint>
#include <string>

namespace cuda_on_cpu::observe {

struct SourceLine {
    std::string file;  ///< "0x55d0…" where unknown
    int line = 0;
};

/// The line in a kernel, or in a helper of it, to which a call returns. A function of the
/// executor's headers or of the C++ library that was inlined counts for the line that
/// called it. Looked up once for each instruction.
const SourceLine& source_line(std::uint64_t pc);

/// "linear.cu:44"; with the folder before it where there is one.
std::string to_string(const SourceLine& line);

}  // namespace cuda_on_cpu::observe
