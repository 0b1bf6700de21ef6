/// @file
/// The subcommands of `moe`: each adds its flags to the program and runs when chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace moe {

/// Exit codes of `moe`.
inline constexpr int kExitOk = 0;
inline constexpr int kExitDiffers = 1;   ///< a value differs
inline constexpr int kExitBadInput = 2;  ///< one line on stderr says what and why

/// What runs once the flags are parsed; returns the exit code.
using Action = std::function<int()>;

/// Each adds a subcommand and sets `action` when it is the one chosen.
void add_compare(CLI::App& app, Action& action);
void add_verify(CLI::App& app, Action& action);
void add_trace(CLI::App& app, Action& action);
void add_bench(CLI::App& app, Action& action);
void add_info(CLI::App& app, Action& action);
void add_gpu_check(CLI::App& app, Action& action);
void add_results(CLI::App& app, Action& action);
void add_completion(CLI::App& app, Action& action);

/// Makes all built tiers known. Call once, first.
void register_all_tiers();

/// What run_program() was called with.
const std::vector<std::string>& program_arguments();

/// The whole program; `arguments` without the program's name. Never throws.
int run_program(std::vector<std::string> arguments);

}  // namespace moe
