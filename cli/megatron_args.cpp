#include "cli/megatron_args.h"

#include <algorithm>
#include <cctype>
#include <map>

#include "core/error.h"

namespace moe {
namespace {

bool is_blank(char c) {
    return std::isspace(static_cast<unsigned char>(c)) != 0;
}

/// Words as a shell cuts them, as far as arguments of a program need it.
class Words {
  public:
    Words(const std::string& field, const std::string& text)
        : field_(field), text_(text) {}

    std::vector<std::string> read() {
        while (at_ < text_.size()) {
            const char c = text_[at_];
            if (is_blank(c))
                end_word();
            else if (c == '#' && !in_word_)
                at_ = std::min(text_.find('\n', at_), text_.size()) - 1;
            else if (c == '\\')
                escape();
            else if (c == '\'' || c == '"')
                quote(c);
            else
                add(c);
            ++at_;
        }
        end_word();
        return words_;
    }

  private:
    void add(char c) {
        word_ += c;
        in_word_ = true;
    }
    void end_word() {
        if (in_word_) words_.push_back(word_);
        word_.clear();
        in_word_ = false;
    }
    /// A line's end after a backslash is a blank; other characters stand for themselves.
    void escape() {
        std::size_t next = at_ + 1;
        if (next < text_.size() && text_[next] == '\r') ++next;
        if (next < text_.size() && text_[next] == '\n') {
            end_word();
            at_ = next;
        } else if (++at_ < text_.size()) {
            add(text_[at_]);
        }
    }
    void quote(char mark) {
        const std::size_t end = text_.find(mark, at_ + 1);
        if (end == std::string::npos)
            reject(field_, text_.substr(at_, 20), "must end the quote that it begins");
        word_ += text_.substr(at_ + 1, end - at_ - 1);
        in_word_ = true;
        at_ = end;
    }

    const std::string& field_;
    const std::string& text_;
    std::size_t at_ = 0;
    std::string word_;
    bool in_word_ = false;
    std::vector<std::string> words_;
};

bool is_flag(const std::string& word) {
    return word.size() > 2 && word.starts_with("--") && word[2] != '-';
}

bool is_name(const std::string& text) {
    return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) {
        return std::isalnum(c) != 0 || c == '_';
    });
}

/// What a text of shell sets, and what stands for it where it is used.
class Variables {
  public:
    void set(const std::string& name, const std::string& value) { values_[name] = value; }
    /// With $NAME, ${NAME} and ${NAME:-otherwise} replaced, where that is known.
    std::string resolve(const std::string& word) const {
        std::string result;
        for (std::size_t at = 0; at < word.size();) {
            std::size_t end = at + 1;
            std::string name, otherwise;
            bool has_otherwise = false;
            if (word[at] == '$' && end < word.size() && word[end] == '{') {
                const std::size_t close = std::min(word.find('}', end), word.size());
                name = word.substr(end + 1, close - end - 1);
                if (const std::size_t dash = name.find(":-"); dash != std::string::npos) {
                    has_otherwise = true;
                    otherwise = name.substr(dash + 2);
                    name.resize(dash);
                }
                end = std::min(close + 1, word.size());
            } else if (word[at] == '$') {
                while (end < word.size() && is_name(word.substr(end, 1))) ++end;
                name = word.substr(at + 1, end - at - 1);
            }
            const auto found = values_.find(name);
            result += found != values_.end() ? found->second
                      : has_otherwise        ? otherwise
                                             : word.substr(at, end - at);
            at = end;
        }
        return result;
    }

  private:
    std::map<std::string, std::string> values_;
};

/// Puts the words of a text together as flags.
class FlagReader {
  public:
    explicit FlagReader(const std::string& field) : field_(field) {}

    void read(const std::string& text) {
        for (std::string& word : Words(field_, text).read()) {
            // NAME=value, NAME="--flag …", NAME=( --flag … )
            const std::size_t equals = word.find('=');
            if (equals != std::string::npos && is_name(word.substr(0, equals))) {
                open_ = false;
                const std::string name = word.substr(0, equals);
                word.erase(0, equals + 1);
                if (word.starts_with("("))
                    word.erase(0, 1);
                else if (!word.starts_with("--"))
                    variables_.set(name, variables_.resolve(word));
                if (!word.starts_with("--")) continue;
            }
            if (word.find_first_of(" \t\n") != std::string::npos &&
                word.starts_with("--")) {
                read(word);  // several words in quotes
                open_ = false;
                continue;
            }
            add(std::move(word));
        }
    }
    std::vector<ScriptFlag> flags;

  private:
    void add(std::string word) {
        const bool closes = word.ends_with(")") && word.find('(') == std::string::npos;
        if (closes) word.pop_back();
        word = variables_.resolve(word);
        if (is_flag(word)) {
            const std::size_t equals = word.find('=');
            flags.push_back({word.substr(0, equals), {}});
            if (equals != std::string::npos)
                flags.back().values.push_back(word.substr(equals + 1));
            open_ = true;
        } else if (open_ && !word.empty()) {
            flags.back().values.push_back(word);
        }
        if (closes) open_ = false;
    }

    const std::string& field_;
    Variables variables_;
    bool open_ = false;  // the last flag may get more values
};

}  // namespace

std::vector<ScriptFlag> read_script_flags(const std::string& field,
                                          const std::string& text) {
    FlagReader reader(field);
    reader.read(text);
    return reader.flags;
}

}  // namespace moe
