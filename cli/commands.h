/// @file
/// The commands of `moe`.
#pragma once

#include <string>
#include <vector>

#include "cli/flags.h"

namespace moe {

/// Exit codes of `moe`.
inline constexpr int kExitOk = 0;
inline constexpr int kExitDiffers = 1;   ///< a value differs
inline constexpr int kExitBadInput = 2;  ///< one line on stderr says what and why

/// Each adds its command.
void add_compare(CommandLine& line);
void add_verify(CommandLine& line);
void add_trace(CommandLine& line);
void add_bench(CommandLine& line);
void add_info(CommandLine& line);
void add_gpu_check(CommandLine& line);
void add_results(CommandLine& line);
void add_completion(CommandLine& line);

/// Makes all built tiers known. Call once, first.
void register_all_tiers();

/// What run_program() was called with.
const std::vector<std::string>& program_arguments();

/// The whole program; `arguments` without the program's name. Never throws.
int run_program(std::vector<std::string> arguments);

}  // namespace moe
