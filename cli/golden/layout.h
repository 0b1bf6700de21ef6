/// @file
/// A case that differs because the rows of its FC1 weights lie in another order.
#pragma once

#include <functional>
#include <string>

#include "cli/golden/golden.h"

namespace moe {

/// In which other order of the gate and up rows of FC1 the case's output is the expected
/// one, in words; "" if in none, or if the output is right as it is.
/// @param result  what verify_golden() made of the case
/// @param verify  verify_golden() of a changed case
std::string layout_hint(const GoldenCase& golden, const CaseResult& result,
                        const std::function<CaseResult(const GoldenCase&)>& verify);

}  // namespace moe
