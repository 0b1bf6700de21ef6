/// @file
/// What `moe verify` says of a case in one supplier.
#pragma once

#include <string>

#include "cli/golden/golden.h"

namespace moe {

/// A verdict, and every check below it.
void print_result(const std::string& title, const CaseResult& result);

/// One JSON object on one line. An infinite error (expected zero, got something) is null.
/// @param chose_dispatcher  the user did: the object names it
void print_json(const CaseResult& result, const DispatcherCase& subject,
                bool chose_dispatcher);

}  // namespace moe
