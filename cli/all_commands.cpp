// all_commands.cpp: what the program has that is not for gdb, and the whole of it.

#include "cli/commands.h"

namespace moe {

int run_program(std::vector<std::string> arguments) {
    return run_program({add_compare, add_verify, add_convert, add_trace, add_bench,
                        add_profile, add_microscope, add_timeline, add_wire, add_info,
                        add_gpu_check, add_results, add_completion},
                       {"test", "docs", "gdb", "python"}, std::move(arguments));
}

}  // namespace moe
