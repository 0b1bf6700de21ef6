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

/// Adds a command.
using AddCommand = void (*)(CommandLine& line);
void add_compare(CommandLine& line);
void add_verify(CommandLine& line);
void add_convert(CommandLine& line);
void add_trace(CommandLine& line);
void add_bench(CommandLine& line);
void add_profile(CommandLine& line);
void add_microscope(CommandLine& line);
void add_timeline(CommandLine& line);
void add_wire(CommandLine& line);
void add_info(CommandLine& line);
void add_gpu_check(CommandLine& line);
void add_results(CommandLine& line);
void add_completion(CommandLine& line);

/// Makes all built tiers known. Call once, first.
void register_all_tiers();

/// What run_program() was called with.
const std::vector<std::string>& program_arguments();

/// A program of these commands; `arguments` without its name. Never throws.
/// @param elsewhere  commands that another program has, for the reply to a wrong name
int run_program(const std::vector<AddCommand>& commands,
                const std::vector<std::string>& elsewhere,
                std::vector<std::string> arguments);

/// The whole program, with every command.
int run_program(std::vector<std::string> arguments);

}  // namespace moe
