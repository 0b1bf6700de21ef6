// flags.cpp: CLI11, compiled once, and its errors in this program's words.

#include "cli/flags.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <map>

#include "cli/help.h"
#include "core/error.h"
#include "core/known_names.h"
#include "core/lacking_fields.h"

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

}  // namespace

std::int64_t parse_integer(const std::string& flag, const std::string& text) {
    return parse<std::int64_t>(flag, text, "must be an integer");
}

// ---------------------------------------------------------------------------- one flag
Flag::Flag(CLI::Option* option, std::vector<std::string> names, Takes takes, Words words)
    : option_(option),
      names_(std::move(names)),
      takes_(takes),
      words_(std::move(words)) {}

Flag& Flag::list(int most) {
    takes_ = Takes::several;
    most_ = most;
    option_->expected(1, most)->allow_extra_args()->delimiter(',');
    return *this;
}

Flag& Flag::required() {
    required_ = true;
    option_->required();
    return *this;
}

Flag& Flag::group(const std::string& heading) {
    heading_ = heading;
    return *this;
}

Flag& Flag::values(std::vector<std::string> offered) {
    offered_ = std::move(offered);
    return *this;
}

Flag& Flag::excludes(const Flag& other) {
    excluded_.push_back(other.names_[0]);
    return *this;
}

// ------------------------------------------------------------------------- one command
Command::Command(CLI::App* app, std::string name, std::string about)
    : app_(app), name_(std::move(name)), about_(std::move(about)) {}

Flag& Command::add(const std::string& name, const std::string& help, const char* type,
                   std::function<void(const Texts&)> take) {
    CLI::Option* option =
        app_->add_option(name, [take = std::move(take)](const Texts& texts) {
            take(texts);
            return true;
        });
    return flags_.emplace_back(option, Texts{name}, Flag::Takes::one,
                               Flag::Words{type, help});
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
        name, [&value](std::int64_t count) { value = count > 0; });
    return flags_.emplace_back(option, Texts{name}, Flag::Takes::nothing,
                               Flag::Words{"", help});
}

Flag& Command::flag(const std::string& name, const std::string& opposite,
                    std::function<void(bool)> take, const std::string& help) {
    CLI::Option* option = app_->add_flag_function(
        name + ",!" + opposite,
        [take = std::move(take)](std::int64_t count) { take(count > 0); });
    return flags_.emplace_back(option, Texts{name, opposite}, Flag::Takes::nothing,
                               Flag::Words{"", help});
}

const Flag* Command::find(const std::string& name) const {
    for (const Flag& flag : flags_)
        if (std::count(flag.names_.begin(), flag.names_.end(), name) > 0) return &flag;
    return nullptr;
}

void Command::check(const Texts& words) const {
    const auto name_in = [](const std::string& word) {
        return word.substr(0, word.find('='));
    };
    std::map<const Flag*, int> given;
    for (std::size_t i = 0; i < words.size() && words[i] != "--"; ++i) {
        const std::string name = name_in(words[i]);
        const bool equals = name.size() < words[i].size();
        const std::string after = equals ? words[i].substr(name.size() + 1) : "";
        const Flag* flag = name.starts_with("-") ? find(name) : nullptr;
        if (flag == nullptr) continue;
        if (flag->takes_ == Flag::Takes::nothing) {
            const Texts allowed = {"true", "false", "1", "-1", "0"};
            if (equals && std::count(allowed.begin(), allowed.end(), after) == 0)
                reject(name, after, "must be true or false");
            continue;
        }
        const auto is_value = [&](std::size_t at) {
            if (at >= words.size() || words[at] == "--help") return false;
            // Several words in quotes are no flag
            return words[at].find(' ') != std::string::npos ||
                   !(words[at].starts_with("-") && find(name_in(words[at])));
        };
        if (equals ? after.empty() : !is_value(i + 1))
            reject(name, "missing", "needs a value");
        const int times = ++given[flag];
        if (flag->takes_ == Flag::Takes::one) {
            if (times > 1)
                reject(name, fmt::format("given {} times", times), "at most once");
            i += !equals;  // its value is no flag, whatever it looks like
            continue;
        }
        int values = 1 + int(std::count(after.begin(), after.end(), ','));
        if (!equals)
            for (values = 0; is_value(i + 1) && words[i + 1] != "--"; ++i)
                values +=
                    1 + int(std::count(words[i + 1].begin(), words[i + 1].end(), ','));
        if (values > flag->most_)
            reject(name, fmt::format("{} values", values),
                   fmt::format("at most {}", flag->most_));
    }
}

void Command::check_read() const {
    for (const Flag& flag : flags_) {
        if (flag.required_ && flag.option_->count() == 0)
            reject(flag.names_[0], "missing", "needs at least one");
        if (flag.option_->count() > 0)
            for (const std::string& other : flag.excluded_)
                if (find(other)->option_->count() > 0)
                    reject(flag.names_[0], "given", "must be left out with " + other);
    }
}

// -------------------------------------------------------------------------- all of them
CommandLine::CommandLine(const std::string& name, const std::string& about,
                         const std::string& footer, std::vector<std::string> elsewhere)
    : about_(about),
      footer_(footer),
      app_(std::make_unique<CLI::App>(about, name)),
      elsewhere_(std::move(elsewhere)) {
    app_->require_subcommand(1);
}

CommandLine::~CommandLine() = default;

Command& CommandLine::add(const std::string& name, const std::string& about) {
    return commands_.emplace_back(app_->add_subcommand(name), name, about);
}

std::vector<std::string> CommandLine::command_names() const {
    std::vector<std::string> names;
    for (const Command& command : commands_) names.push_back(command.name());
    names.insert(names.end(), elsewhere_.begin(), elsewhere_.end());
    return names;
}

Command& CommandLine::find(const std::string& name) {
    for (Command& command : commands_)
        if (command.name() == name) return command;
    reject_unknown("command", name, command_names(), "known are");
}

void CommandLine::reject_word(const Command& command, const std::string& word) const {
    const std::string flag = word.substr(0, word.find('='));
    const std::string help =
        fmt::format("moe {} --help shows what is allowed", command.name());
    if (!flag.starts_with("-"))
        reject("argument", word,
               fmt::format("moe {} takes no such word; {}", command.name(), help));
    std::string field = flag.substr(std::min(flag.find_first_not_of('-'), flag.size()));
    std::replace(field.begin(), field.end(), '-', '_');
    if (const std::string& why = why_not_here(field); !why.empty())
        reject("flag", flag, why);
    std::vector<std::string> known = {"--help"};
    for (const Flag& one : command.flags())
        known.insert(known.end(), one.names().begin(), one.names().end());
    const std::string meant = nearest(flag, known);
    reject(
        "flag", flag,
        meant.empty() ? "not known; " + help : "not known; did you mean " + meant + "?");
}

int CommandLine::run(std::vector<std::string> arguments) {
    if (arguments.empty())
        reject("command", "missing",
               fmt::format("known are {}; moe --help says what they do",
                           fmt::join(command_names(), ", ")));
    if (arguments[0] == "--help" || arguments[0] == "-h") {
        print_help(*this);
        return 0;
    }
    if (arguments[0].starts_with("-"))
        reject("flag", arguments[0],
               "must come after a command; moe --help shows what there is");
    Command& command = find(arguments[0]);
    const Command::Texts words(arguments.begin() + 1, arguments.end());
    command.check(words);
    try {
        // CLI11 takes them from the back.
        std::reverse(arguments.begin(), arguments.end());
        app_->parse(std::move(arguments));
    } catch (const CLI::CallForHelp&) {
        print_help(app_->get_name(), command);
        return 0;
    } catch (const CLI::ExtrasError&) {
        auto extra = command.app_->remaining();
        if (extra.empty()) extra = app_->remaining();
        reject_word(command, extra.empty() ? words.back() : extra.front());
    } catch (const CLI::ParseError&) {
        // Its own words are another's; what it found is found again
        command.check_read();
        reject("arguments", fmt::format("{}", fmt::join(words, " ")),
               fmt::format("moe {} --help shows what is allowed", command.name()));
    }
    command.check_read();
    return command.action_();
}

}  // namespace moe
