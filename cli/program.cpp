// program.cpp: the command line as a whole, and the one place where errors end.

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
    CommandLine line(
        "moe", "Megatron's Mixture-of-Experts layer, one text in three scripts.",
        "Examples\n"
        "  moe compare                              real text through the layer, "
        "checked\n"
        "  moe compare --preset deepseek_v3 --scale 64\n"
        "  moe verify tests/golden/*.safetensors    Megatron's own numbers\n"
        "  moe trace                                eight tokens, every value\n"
        "  moe bench                                what is fast, and what could be\n"
        "  moe info --fields                        what can be configured\n\n"
        "Every command has flags of its own: moe compare --help",
        {"test", "docs", "gdb"});
    add_compare(line);
    add_verify(line);
    add_trace(line);
    add_bench(line);
    add_info(line);
    add_gpu_check(line);
    add_results(line);
    add_completion(line);

    try {
        return line.run(std::move(arguments));
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
