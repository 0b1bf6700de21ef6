// completion.cpp: `moe completion bash|zsh`, written from the flags the program really
// has.

#include <fmt/ranges.h>

#include "cli/commands.h"
#include "core/error.h"

namespace moe {
namespace {

std::vector<std::string> flags_of(const CLI::App& command) {
    std::vector<std::string> flags;
    for (const CLI::Option* option : command.get_options())
        for (const std::string& name : option->get_lnames()) flags.push_back("--" + name);
    return flags;
}

/// zsh runs bash completions once bashcompinit is loaded, so one script serves both.
std::string completion_script(const CLI::App& app, const std::string& shell) {
    std::string cases, commands;
    for (const CLI::App* command : app.get_subcommands({})) {
        commands += command->get_name() + " ";
        cases += fmt::format("        {}) words=\"{}\" ;;\n", command->get_name(),
                             fmt::join(flags_of(*command), " "));
    }
    const std::string zsh =
        shell == "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" : "";
    return fmt::format(
        R"(# {} completion for moe. Load it with: source <(./moe completion {})
{}_moe() {{
    local words current="${{COMP_WORDS[COMP_CWORD]}}"
    case "${{COMP_WORDS[1]}}" in
{}        *) words="{}--help" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{}test docs --help"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ "$current" == -* ]] || COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -o filenames -F _moe moe ./moe
)",
        shell, shell, zsh, cases, commands, commands);
}

}  // namespace

void add_completion(CLI::App& app, Action& action) {
    auto shell = std::make_shared<std::string>("bash");
    CLI::App* command = app.add_subcommand(
        "completion",
        "Print a completion script.\n\nExample: source <(./moe completion bash)");
    command->add_option("shell", *shell, "bash or zsh (default bash)");
    command->callback([&app, &action, shell] {
        action = [&app, shell] {
            if (*shell != "bash" && *shell != "zsh")
                reject("shell", *shell, "allowed are bash, zsh");
            fmt::print("{}", completion_script(app, *shell));
            return kExitOk;
        };
    });
}

}  // namespace moe
