/// @file
/// Where the program finds what belongs to it: beside itself, as in the folder of
/// `moe gpu-check --bundle`, or else in the source tree it was built from.
#pragma once

#include <string>

namespace moe {

/// This program's own file.
std::string own_program();

/// The golden cases: `golden/` of the bundle, or tests/golden of the source tree; one
/// that does not exist when neither is there.
std::string golden_folder();

/// `compare` without --text: the bundle's README.md, or that of the source tree.
std::string default_text();

/// The program `moe`: bin/ of the bundle, or cli/ of a build.
std::string moe_program();

/// moe_tests: beside the program in a bundle, in tests/ of a build.
std::string tests_program();

/// libmoe.so, the C interface (bench/moe_c.h): lib/ of the bundle, or of a build.
std::string c_library();

/// The folder of the sources this program was built from, with README.md and docs/.
std::string project_root();

/// bench/peers.py of the bundle, or of the source tree.
std::string peers_script();

}  // namespace moe
