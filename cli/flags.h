/// @file
/// The command line: commands, and their flags with what they set. CLI11 reads it, in
/// flags.cpp alone.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace moe {

/// One flag of a command, or one of its operands.
class Flag {
  public:
    enum class Takes { one, several, nothing };
    /// What it is, as --help says it.
    struct Words {
        std::string type;  ///< of a value, e.g. "INT"; "" of a switch
        std::string help;
    };
    Flag(CLI::Option* option, std::vector<std::string> names, Takes takes, Words words);

    /// Several values, separated by commas or blanks; at most so many.
    Flag& list(int most = 1 << 20);
    Flag& required();
    /// Its heading in --help.
    Flag& group(const std::string& heading);
    /// What a shell may offer for it. Says nothing about what is allowed.
    Flag& values(std::vector<std::string> offered);
    Flag& excludes(const Flag& other);

    /// "--tier"; without dashes for an operand.
    const std::vector<std::string>& names() const { return names_; }
    const std::vector<std::string>& offered() const { return offered_; }
    const std::string& type() const { return words_.type; }
    const std::string& help() const { return words_.help; }
    const std::string& heading() const { return heading_; }
    Takes takes() const { return takes_; }
    bool is_required() const { return required_; }
    bool is_operand() const { return !names_[0].starts_with("-"); }

  private:
    friend class Command;
    CLI::Option* option_;
    std::vector<std::string> names_, offered_, excluded_;
    Takes takes_;
    Words words_;
    std::string heading_;
    int most_ = 1;  // values
    bool required_ = false;
};

/// One command. What a flag sets must live as long as the command.
class Command {
  public:
    using Texts = std::vector<std::string>;

    Command(CLI::App* app, std::string name, std::string about);

    /// A flag with a value. InputError, when it is read, for a number that is none.
    Flag& option(const std::string& name, std::string& value, const std::string& help);
    Flag& option(const std::string& name, std::optional<std::string>& value,
                 const std::string& help);
    Flag& option(const std::string& name, std::int64_t& value, const std::string& help);
    Flag& option(const std::string& name, std::optional<std::int64_t>& value,
                 const std::string& help);
    Flag& option(const std::string& name, double& value, const std::string& help);
    /// Several values: replaces what `values` had.
    Flag& option(const std::string& name, Texts& values, const std::string& help);
    Flag& option(const std::string& name, std::vector<std::int64_t>& values,
                 const std::string& help);
    /// Calls `take` with the value.
    Flag& option(const std::string& name, std::function<void(const std::string&)> take,
                 const std::string& help);
    /// A switch, on when named; --name=false turns it off.
    Flag& flag(const std::string& name, bool& value, const std::string& help);
    /// A switch with an opposite; `take` is called when either is given.
    Flag& flag(const std::string& name, const std::string& opposite,
               std::function<void(bool)> take, const std::string& help);

    /// What the command does, once its flags are read; returns the exit code.
    void runs(std::function<int()> action) { action_ = std::move(action); }

    const std::string& name() const { return name_; }
    const std::string& about() const { return about_; }
    const std::deque<Flag>& flags() const { return flags_; }

  private:
    friend class CommandLine;
    /// The flag of that name, if there is one.
    const Flag* find(const std::string& name) const;
    /// InputError for words that the flags do not allow, before CLI11 reads them, …
    void check(const Texts& words) const;
    /// … and for what only shows once they are read.
    void check_read() const;
    Flag& add(const std::string& name, const std::string& help, const char* type,
              std::function<void(const Texts&)> take);

    CLI::App* app_;
    std::string name_, about_;
    std::deque<Flag> flags_;
    std::function<int()> action_;
};

/// The whole program's commands.
class CommandLine {
  public:
    /// @param about      the first lines of --help
    /// @param footer     its last
    /// @param elsewhere  commands that another program has, for the reply to a wrong name
    CommandLine(const std::string& name, const std::string& about,
                const std::string& footer, std::vector<std::string> elsewhere = {});
    ~CommandLine();

    Command& add(const std::string& name, const std::string& about);
    const std::string& about() const { return about_; }
    const std::string& footer() const { return footer_; }
    const std::deque<Command>& commands() const { return commands_; }
    const std::vector<std::string>& elsewhere() const { return elsewhere_; }

    /// Reads the flags of the command that `arguments` name and runs it; returns its exit
    /// code. Prints help where that is asked for. InputError for a command, a flag or a
    /// value that is not known.
    int run(std::vector<std::string> arguments);

  private:
    Command& find(const std::string& name);
    std::vector<std::string> command_names() const;
    [[noreturn]] void reject_word(const Command& command, const std::string& word) const;

    std::string about_, footer_;
    std::unique_ptr<CLI::App> app_;
    std::deque<Command> commands_;
    std::vector<std::string> elsewhere_;
};

/// The integer that a flag's text is. InputError when it is none, or has over 64 bits.
std::int64_t parse_integer(const std::string& flag, const std::string& text);

}  // namespace moe
