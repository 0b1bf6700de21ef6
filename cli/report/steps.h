/// @file
/// The report's section on the twenty steps.
#pragma once

#include <string>

#include "cli/compare/comparison.h"

namespace moe {

/// Every step in every column: cost, time and error, and where the time goes.
std::string steps_section(const Comparison& comparison);

}  // namespace moe
