// completion.cpp: `moe completion bash|zsh`, written from the flags the program really
// has and the values that they may take.

#include <fmt/ranges.h>

#include "cli/commands.h"
#include "core/known_names.h"

namespace moe {
namespace {

/// "        compare) words=… ;;", and before it what each of its flags may be followed
/// by.
std::string case_of(const Command& command) {
    std::string values;
    std::vector<std::string> flags = {"--help"};
    for (const Flag& flag : command.flags()) {
        if (flag.names()[0].starts_with("--"))
            flags.insert(flags.end(), flag.names().begin(), flag.names().end());
        if (!flag.offered().empty())
            values +=
                fmt::format("                {}) words=\"{}\" ;;\n",
                            fmt::join(flag.names(), "|"), fmt::join(flag.offered(), " "));
    }
    return fmt::format(R"(        {})
            case "$previous" in
{}                *) words="{}" ;;
            esac ;;
)",
                       command.name(), values, fmt::join(flags, " "));
}

/// zsh runs bash completions once bashcompinit is loaded, so one script serves both.
std::string completion_script(const CommandLine& line, const std::string& shell) {
    std::string cases;
    std::vector<std::string> commands = line.elsewhere();
    for (const Command& command : line.commands()) {
        commands.push_back(command.name());
        cases += case_of(command);
    }
    const std::string zsh =
        shell == "zsh" ? "autoload -U +X bashcompinit && bashcompinit\n" : "";
    return fmt::format(
        R"(# {} completion for moe. Load it with: source <(./moe completion {})
{}_moe() {{
    local words current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
    # bash takes --flag=value for three words
    if [ "$current" = = ]; then current="";
    elif [ "$previous" = = ]; then previous="${{COMP_WORDS[COMP_CWORD-2]}}"; fi
    case "${{COMP_WORDS[1]}}" in
{}        *) words="{} --help" ;;
    esac
    [ "$COMP_CWORD" -eq 1 ] && words="{} --help"
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [[ "$current" == -* || "$words" != *--* ]] || COMPREPLY+=($(compgen -f -- "$current"))
}}
complete -o filenames -F _moe moe ./moe
)",
        shell, shell, zsh, cases, fmt::join(commands, " "), fmt::join(commands, " "));
}

}  // namespace

void add_completion(CommandLine& line) {
    auto shell = std::make_shared<std::string>("bash");
    Command& command = line.add(
        "completion",
        "Print a completion script.\n\nExample: source <(./moe completion bash)");
    command.option("shell", *shell, "bash or zsh (default bash)").values({"bash", "zsh"});
    command.runs([&line, shell] {
        if (*shell != "bash" && *shell != "zsh")
            reject_unknown("shell", *shell, {"bash", "zsh"});
        fmt::print("{}", completion_script(line, *shell));
        return kExitOk;
    });
}

}  // namespace moe
