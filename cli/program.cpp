// program.cpp: the command line as a whole, and the one place where errors end.

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <system_error>

#include "cli/commands.h"
#include "cli/notes.h"
#include "core/error.h"
#include "naive_gpu/tier.h"
#include "optimized_gpu/tier.h"
#include "reference_cpu/tier.h"

namespace moe {
namespace {

std::vector<std::string> given_arguments;

void print_error(const std::string& message) {
    fmt::print(stderr, "moe: {}\n", one_line(message));
}

/// `code`, once all that was printed has arrived; else one line says why not. A reader
/// who left, as `head` does, ends the program by SIGPIPE, without a word.
int finish_output(int code, int error = 0) {
    errno = 0;
    if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return code;
    if (error == 0) error = errno == 0 ? EIO : errno;
    print_error(std::string("stdout = ") + std::strerror(error) +
                ": must take all that is printed");
    std::clearerr(stdout);
    return kExitBadInput;
}

int run_line(CommandLine& line, std::vector<std::string> arguments) {
    try {
        return finish_output(line.run(std::move(arguments)));
    } catch (const InputError& error) {
        print_error(error.what());
    } catch (const std::bad_alloc&) {
        print_error("memory = exhausted: use smaller sizes (or a larger --scale)");
    } catch (const std::system_error& error) {
        if (std::ferror(stdout)) return finish_output(kExitOk, error.code().value());
        print_error(std::string("internal error, please report: ") + error.what());
        return 70;  // EX_SOFTWARE
    } catch (const std::exception& error) {
        print_error(std::string("internal error, please report: ") + error.what());
        return 70;  // EX_SOFTWARE
    }
    return kExitBadInput;
}

}  // namespace

void register_all_tiers() {
    cpu::register_reference_cpu();
    naive::register_naive_gpu();
    optimized::register_optimized_gpu();
}

const std::vector<std::string>& program_arguments() {
    return given_arguments;
}

int run_program(const std::vector<AddCommand>& commands,
                const std::vector<std::string>& elsewhere,
                std::vector<std::string> arguments) {
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
        elsewhere);
    for (const AddCommand add : commands) add(line);
    print_notes(true);

    // Else the first file that is opened would take the place of stdout.
    if (fcntl(STDOUT_FILENO, F_GETFD) < 0) {
        print_error("stdout = closed: must be open");
        return kExitBadInput;
    }
    // A file that may not grow is an error of that file, as on a full disk.
    std::signal(SIGXFSZ, SIG_IGN);
    return run_line(line, std::move(arguments));
}

}  // namespace moe
