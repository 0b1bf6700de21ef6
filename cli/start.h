/// @file
/// What every program does first.
#pragma once

namespace moe {

/// Waiting threads sleep, freed memory is kept, tiers are known. May start the program
/// once more, with an environment variable set.
void start(char** argv);

}  // namespace moe
