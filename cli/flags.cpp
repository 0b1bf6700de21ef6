// flags.cpp: CLI11, compiled once, and its errors in this program's words.

#include "cli/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <numeric>

#include "core/error.h"

namespace moe {
namespace {

/// The number that `text` is, all of it.
template <typename Number>
Number parse(const std::string& flag, const std::string& text, const char* allowed) {
    Number value{};
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || stop != end) reject(flag, text, allowed);
    return value;
}

/// A switch may be given a value; it must be one that CLI11 can turn into yes or no.
std::string check_switch(const std::string& text) {
    for (const char* allowed : {"true", "false", "1", "-1", "0"})
        if (text == allowed) return "";
    return one_line(text) + ": must be true or false";
}

/// Levenshtein's distance: letters to put in, leave out or change.
std::size_t distance(const std::string& a, const std::string& b) {
    std::vector<std::size_t> row(b.size() + 1);
    std::iota(row.begin(), row.end(), 0);
    for (std::size_t i = 0; i < a.size(); ++i) {
        std::size_t diagonal = row[0]++;
        for (std::size_t j = 0; j < b.size(); ++j) {
            const std::size_t change = diagonal + (a[i] != b[j]);
            diagonal = row[j + 1];
            row[j + 1] = std::min({change, row[j] + 1, row[j + 1] + 1});
        }
    }
    return row.back();
}

}  // namespace

std::int64_t parse_integer(const std::string& flag, const std::string& text) {
    return parse<std::int64_t>(flag, text, "must be an integer");
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
    std::string best;
    std::size_t least = std::max<std::size_t>(word.size() / 4, 1) + 1;
    for (const std::string& name : known)
        if (const std::size_t far = distance(word, name); far < least) {
            least = far;
            best = name;
        }
    if (!best.empty() || word.size() < 5) return best;
    // A beginning that only one name has
    for (const std::string& name : known)
        if (name.starts_with(word)) {
            if (!best.empty()) return "";
            best = name;
        }
    return best;
}

// ---------------------------------------------------------------------------- one flag
Flag::Flag(CLI::Option* option, std::vector<std::string> names)
    : option_(option), names_(std::move(names)) {}

Flag& Flag::list(int most) {
    option_->expected(1, most)->allow_extra_args()->delimiter(',');
    return *this;
}

Flag& Flag::required() {
    option_->required();
    return *this;
}

Flag& Flag::group(const std::string& heading) {
    option_->group(heading);
    return *this;
}

Flag& Flag::values(std::vector<std::string> offered) {
    offered_ = std::move(offered);
    return *this;
}

Flag& Flag::excludes(const Flag& other) {
    option_->excludes(other.option_);
    return *this;
}

// ------------------------------------------------------------------------- one command
Command::Command(CLI::App* app, std::string name) : app_(app), name_(std::move(name)) {}

Flag& Command::add(const std::string& name, const std::string& help, const char* type,
                   std::function<void(const Texts&)> take) {
    CLI::Option* option = app_->add_option(
        name,
        [take = std::move(take)](const Texts& texts) {
            take(texts);
            return true;
        },
        help);
    option->type_name(type);
    return flags_.emplace_back(option, Texts{name});
}

Flag& Command::option(const std::string& name, std::string& value,
                      const std::string& help) {
    return add(name, help, "TEXT", [&value](const Texts& texts) { value = texts[0]; });
}

Flag& Command::option(const std::string& name, std::optional<std::string>& value,
                      const std::string& help) {
    return add(name, help, "TEXT", [&value](const Texts& texts) { value = texts[0]; });
}

Flag& Command::option(const std::string& name, std::int64_t& value,
                      const std::string& help) {
    return add(name, help, "INT", [name, &value](const Texts& texts) {
        value = parse_integer(name, texts[0]);
    });
}

Flag& Command::option(const std::string& name, std::optional<std::int64_t>& value,
                      const std::string& help) {
    return add(name, help, "INT", [name, &value](const Texts& texts) {
        value = parse_integer(name, texts[0]);
    });
}

Flag& Command::option(const std::string& name, double& value, const std::string& help) {
    return add(name, help, "NUMBER", [name, &value](const Texts& texts) {
        value = parse<double>(name, texts[0], "must be a number");
    });
}

Flag& Command::option(const std::string& name, Texts& values, const std::string& help) {
    return add(name, help, "TEXT", [&values](const Texts& texts) { values = texts; })
        .list();
}

Flag& Command::option(const std::string& name, std::vector<std::int64_t>& values,
                      const std::string& help) {
    return add(name, help, "INT",
               [name, &values](const Texts& texts) {
                   values.clear();
                   for (const std::string& text : texts)
                       values.push_back(parse_integer(name, text));
               })
        .list();
}

Flag& Command::option(const std::string& name,
                      std::function<void(const std::string&)> take,
                      const std::string& help) {
    return add(name, help, "TEXT",
               [take = std::move(take)](const Texts& texts) { take(texts[0]); });
}

Flag& Command::flag(const std::string& name, bool& value, const std::string& help) {
    CLI::Option* option = app_->add_flag_function(
        name, [&value](std::int64_t count) { value = count > 0; }, help);
    option->check(check_switch);
    return flags_.emplace_back(option, Texts{name});
}

Flag& Command::flag(const std::string& name, const std::string& opposite,
                    std::function<void(bool)> take, const std::string& help) {
    CLI::Option* option = app_->add_flag_function(
        name + ",!" + opposite,
        [take = std::move(take)](std::int64_t count) { take(count > 0); }, help);
    option->check(check_switch);
    return flags_.emplace_back(option, Texts{name, opposite});
}

// -------------------------------------------------------------------------- all of them
CommandLine::CommandLine(const std::string& name, const std::string& help,
                         const std::string& footer, std::vector<std::string> elsewhere)
    : app_(std::make_unique<CLI::App>(help, name)), elsewhere_(std::move(elsewhere)) {
    app_->require_subcommand(1);
    app_->set_help_all_flag("--help-all", "Help of every command");
    app_->footer(footer);
}

CommandLine::~CommandLine() = default;

Command& CommandLine::add(const std::string& name, const std::string& help) {
    return commands_.emplace_back(app_->add_subcommand(name, help), name);
}

Command& CommandLine::find(const std::string& name) {
    std::vector<std::string> known;
    for (Command& command : commands_) {
        if (command.name() == name) return command;
        known.push_back(command.name());
    }
    known.insert(known.end(), elsewhere_.begin(), elsewhere_.end());
    const std::string meant = nearest(name, known);
    reject(
        "command", name,
        fmt::format("{}known are {}", meant.empty() ? "" : "did you mean " + meant + "? ",
                    fmt::join(known, ", ")));
}

void CommandLine::reject_word(const Command& command, const std::string& word) const {
    const std::string flag = word.substr(0, word.find('='));
    const std::string help =
        fmt::format("moe {} --help shows what is allowed", command.name());
    if (!flag.starts_with("-"))
        reject("argument", word,
               fmt::format("moe {} takes no such word; {}", command.name(), help));
    std::vector<std::string> known;
    for (const Flag& one : command.flags())
        known.insert(known.end(), one.names().begin(), one.names().end());
    const std::string meant = nearest(flag, known);
    reject(
        "flag", flag,
        meant.empty() ? "not known; " + help : "not known; did you mean " + meant + "?");
}

int CommandLine::run(std::vector<std::string> arguments) {
    const bool names_command = !arguments.empty() && !arguments[0].starts_with("-");
    Command* const command = names_command ? &find(arguments[0]) : nullptr;
    try {
        // CLI11 takes them from the back.
        std::reverse(arguments.begin(), arguments.end());
        app_->parse(std::move(arguments));
        return command->action_();
    } catch (const CLI::Success& help) {
        return app_->exit(help);
    } catch (const CLI::ExtrasError&) {
        const auto extra = command ? command->app_->remaining() : app_->remaining();
        if (command && !extra.empty()) reject_word(*command, extra.front());
        reject("flag", extra.empty() ? "" : extra.front(),
               "not known; moe --help shows what is allowed");
    } catch (const CLI::ParseError& error) {
        throw InputError(fmt::format("{} (moe {}--help shows what is allowed)",
                                     error.what(), command ? command->name() + " " : ""));
    }
}

}  // namespace moe
