/// @file
/// Which state of the source a program was built from.
#pragma once

#include <string>

namespace moe {

/// The commit, 12 digits, with "-modified" where tracked files differed from it;
/// "unknown" in a build outside git.
std::string commit();

}  // namespace moe
