/// @file
/// What `moe compare` prints of a comparison on one rank.
#pragma once

#include <string>

#include "cli/compare/comparison.h"

namespace moe {

/// The layer and the text, the table of its steps, losses, experts that changed, what is
/// kept, the experts' load, and the verdict.
/// @param report  its folder, or "none"
void print_comparison(const Comparison& comparison, const std::string& report);

}  // namespace moe
