/// @file
/// --help, of the program and of a command.
#pragma once

#include <string>

#include "cli/flags.h"

namespace moe {

/// One line per command between the first words and the last.
void print_help(const CommandLine& line);

/// What the command does, and its flags, heading by heading.
void print_help(const std::string& program, const Command& command);

}  // namespace moe
