// program.cpp: the command line as a whole, and the one place where errors end.

#include <fmt/ranges.h>

#include <algorithm>

#include "cli/commands.h"
#include "core/error.h"
#include "naive_gpu/tier.h"
#include "reference_cpu/tier.h"

namespace moe {
namespace {

std::vector<std::string> given_arguments;

void print_error(const std::string& message) {
    fmt::print(stderr, "moe: {}\n", one_line(message));
}

/// CLI11 would only say that a subcommand is required.
void require_known_command(const CLI::App& app,
                           const std::vector<std::string>& arguments) {
    if (arguments.empty() || arguments[0].starts_with("-")) return;
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands({})) {
        if (command->get_name() == arguments[0]) return;
        names.push_back(command->get_name());
    }
    reject("command", arguments[0], fmt::format("known are {}", fmt::join(names, ", ")));
}

}  // namespace

void register_all_tiers() {
    cpu::register_reference_cpu();
    naive::register_naive_gpu();
}

const std::vector<std::string>& program_arguments() {
    return given_arguments;
}

int run_program(std::vector<std::string> arguments) {
    given_arguments = arguments;
    CLI::App app(
        "Megatron's Mixture-of-Experts layer, one text in three scripts.\n\n"
        "Examples:\n"
        "  moe compare                              real text through the layer, "
        "checked\n"
        "  moe compare --preset deepseek_v3 --scale 64\n"
        "  moe verify tests/golden/*.safetensors    Megatron's own numbers\n"
        "  moe trace                                eight tokens, every value\n"
        "  moe bench                                what is fast, and what could be\n"
        "  moe info --fields                        what can be configured",
        "moe");
    app.require_subcommand(1);
    app.set_help_all_flag("--help-all", "Help of every subcommand");
    Action action;
    add_compare(app, action);
    add_verify(app, action);
    add_trace(app, action);
    add_bench(app, action);
    add_info(app, action);
    add_gpu_check(app, action);
    add_results(app, action);
    add_completion(app, action);

    try {
        require_known_command(app, arguments);
        std::reverse(arguments.begin(),
                     arguments.end());  // CLI11 takes them from the back
        app.parse(std::move(arguments));
        return action();
    } catch (const CLI::Success& help) {
        return app.exit(help);
    } catch (const CLI::ParseError& error) {
        print_error(std::string(error.what()) + " (moe --help shows what is allowed)");
    } catch (const InputError& error) {
        print_error(error.what());
    } catch (const std::bad_alloc&) {
        print_error("memory = exhausted: use smaller sizes (or a larger --scale)");
    } catch (const std::exception& error) {
        print_error(std::string("internal error, please report: ") + error.what());
        return 70;  // EX_SOFTWARE
    }
    return kExitBadInput;
}

}  // namespace moe
