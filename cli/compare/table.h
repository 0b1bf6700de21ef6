/// @file
/// The steps of `moe compare` as a table on the terminal.
#pragma once

#include "cli/compare/comparison.h"

namespace moe {

/// One row per step, with times and errors of every supplier, as far as the terminal has
/// room for them; what it has not is named in a line, with the report that has it.
/// @param report  its folder, or "none"
void print_steps(const Comparison& comparison, const std::string& report);

}  // namespace moe
