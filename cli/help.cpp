// help.cpp: commands and flags in columns that fit the terminal.

#include "cli/help.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "cli/terminal.h"

namespace moe {
namespace {

/// What a flag looks like where it is given: "--list TEXT ...".
std::string form_of(const Flag& flag) {
    return fmt::format("{}{}{}{}", fmt::join(flag.names(), ", "),
                       flag.type().empty() ? "" : " ", flag.type(),
                       flag.takes() == Flag::Takes::several ? " ..." : "");
}

/// Every line within the terminal; what goes on below an example is indented.
void print_wrapped(const std::string& text) {
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find('\n', at), text.size());
        const std::string line = text.substr(at, end - at);
        fmt::print("{}\n", wrapped(line, line.starts_with(" ") ? 4 : 0));
        at = end + 1;
    }
}

/// A flag with its help behind it, or below where the flag is too long.
void print_flag(const std::string& form, const std::string& help) {
    constexpr std::size_t kColumn = 30;
    const std::string start = "  " + form;
    if (columns_of(start) + 2 > kColumn) {
        fmt::print("{}\n", wrapped(start, 6));
        if (!help.empty())
            fmt::print("{}\n", wrapped(std::string(kColumn, ' ') + help, kColumn));
    } else {
        fmt::print("{}\n",
                   wrapped(fmt::format("{:<{}}{}", start, kColumn, help), kColumn));
    }
}

void print_heading(const std::string& heading) {
    fmt::print("\n{}\n", heading);
}

}  // namespace

void print_help(const CommandLine& line) {
    std::size_t width = 0;
    for (const Command& command : line.commands())
        width = std::max(width, command.name().size());
    fmt::print("{}\n", line.about());
    print_heading("Commands");
    for (const Command& command : line.commands()) {
        const std::string about = command.about().substr(0, command.about().find('\n'));
        fmt::print("{}\n",
                   wrapped(fmt::format("  {:<{}}  {}", command.name(), width, about),
                           width + 4));
    }
    fmt::print("\n{}\n", line.footer());
}

void print_help(const std::string& program, const Command& command) {
    std::vector<std::string> headings;  // "" for flags without one
    std::string usage = fmt::format("Usage: {} {} [OPTIONS]", program, command.name());
    for (const Flag& flag : command.flags()) {
        if (std::count(headings.begin(), headings.end(), flag.heading()) == 0)
            headings.push_back(flag.heading());
        if (!flag.is_operand()) continue;
        const std::string dots = flag.takes() == Flag::Takes::several ? " ..." : "";
        usage += flag.is_required() ? " " + flag.names()[0] + dots
                                    : " [" + flag.names()[0] + dots + "]";
    }
    print_wrapped(command.about());
    fmt::print("\n{}\n", wrapped(usage, 4));

    const auto is_operand = [](const Flag& flag) { return flag.is_operand(); };
    if (std::any_of(command.flags().begin(), command.flags().end(), is_operand))
        print_heading("Arguments");
    for (const Flag& flag : command.flags())
        if (flag.is_operand()) print_flag(flag.names()[0], flag.help());
    print_heading("Options");
    print_flag("-h, --help", "Print this and leave");
    for (const std::string& heading : headings) {
        if (!heading.empty()) print_heading(heading);
        for (const Flag& flag : command.flags())
            if (!flag.is_operand() && flag.heading() == heading)
                print_flag(form_of(flag), flag.help());
    }
}

}  // namespace moe
