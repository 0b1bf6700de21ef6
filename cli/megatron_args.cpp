#include "cli/megatron_args.h"

#include <fmt/ranges.h>

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
        std::string quoted = text_.substr(at_ + 1, end - at_ - 1);
        for (std::size_t cut; (cut = quoted.find("\\\n")) != std::string::npos;)
            quoted.erase(cut, 2);
        word_ += quoted;
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
    void set(const std::string& name, std::vector<std::string> words, bool adds) {
        if (!values_.contains(name)) order_.push_back(name);
        Value& value = values_[name];
        if (!adds) value.words.clear();
        value.words.insert(value.words.end(), words.begin(), words.end());
    }
    /// The words that $NAME, ${NAME} or ${NAME[@]}, when that is all, stands for; null
    /// when nothing is known of it.
    const std::vector<std::string>* words_of(const std::string& reference) {
        std::string name = reference.starts_with("$") ? reference.substr(1) : "";
        if (name.starts_with("{") && name.ends_with("}"))
            name = name.substr(1, name.size() - 2);
        for (const char* all : {"[@]", "[*]"})
            if (name.ends_with(all)) name.resize(name.size() - 3);
        const auto found = values_.find(name);
        if (found == values_.end()) return nullptr;
        found->second.is_used = true;
        return &found->second.words;
    }
    /// With $NAME, ${NAME} and ${NAME:-otherwise} replaced, where that is known.
    std::string resolve(const std::string& word) {
        std::string result;
        for (std::size_t at = 0; at < word.size();) {
            std::size_t end = at + 1;
            std::string reference, otherwise;
            bool has_otherwise = false;
            if (word[at] == '$' && end < word.size() && word[end] == '{') {
                const std::size_t close = std::min(word.find('}', end), word.size());
                reference = word.substr(at, close - at) + "}";
                if (const std::size_t dash = reference.find(":-");
                    dash != std::string::npos) {
                    has_otherwise = true;
                    otherwise = word.substr(at + dash + 2, close - at - dash - 2);
                    reference = reference.substr(0, dash) + "}";
                }
                end = std::min(close + 1, word.size());
            } else if (word[at] == '$') {
                while (end < word.size() && is_name(word.substr(end, 1))) ++end;
                reference = word.substr(at, end - at);
            }
            const std::vector<std::string>* known = words_of(reference);
            result += known != nullptr ? fmt::format("{}", fmt::join(*known, " "))
                      : has_otherwise  ? otherwise
                                       : word.substr(at, end - at);
            at = end;
        }
        return result;
    }
    /// What was set and never used, in order.
    std::vector<std::vector<std::string>> unused() const {
        std::vector<std::vector<std::string>> words;
        for (const std::string& name : order_)
            if (!values_.at(name).is_used) words.push_back(values_.at(name).words);
        return words;
    }

  private:
    struct Value {
        std::vector<std::string> words;
        bool is_used = false;
    };
    std::map<std::string, Value> values_;
    std::vector<std::string> order_;
};

/// Puts the words of a text together as flags.
class FlagReader {
  public:
    explicit FlagReader(const std::string& field) : field_(field) {}

    std::vector<ScriptFlag> read(const std::string& text) {
        for (const std::string& word : Words(field_, text).read()) take(word);
        // A file that sets variables alone is for another script to use them
        if (!flags_.empty()) return std::move(flags_);
        for (const auto& words : variables_.unused())
            for (const std::string& word : words) add(word);
        return std::move(flags_);
    }

  private:
    void take(const std::string& word) {
        if (!array_.empty()) return take_of_array(word);
        if (const std::size_t equals = word.find('='); equals != std::string::npos) {
            const bool adds = equals > 0 && word[equals - 1] == '+';
            const std::string name = word.substr(0, equals - (adds ? 1 : 0));
            if (is_name(name)) {
                open_ = false;
                return set(name, word.substr(equals + 1), adds);
            }
        }
        if (const auto* known = variables_.words_of(word)) {
            for (const std::string& one : *known) add(one);
            return;
        }
        for (const std::string& one : resolved(inner_words(word))) add(one);
    }
    void set(const std::string& name, const std::string& value, bool adds) {
        if (!value.starts_with("("))
            return variables_.set(name, resolved(inner_words(value)), adds);
        if (!adds) variables_.set(name, {}, false);
        array_ = name;
        if (value.size() > 1) take_of_array(value.substr(1));
    }
    void take_of_array(std::string word) {
        const bool closes = word.ends_with(")") && word.find('(') == std::string::npos;
        if (closes) word.pop_back();
        if (const auto* known = variables_.words_of(word))
            variables_.set(array_, std::vector<std::string>(*known), true);
        else if (!word.empty())
            variables_.set(array_, resolved(inner_words(word)), true);
        if (closes) array_.clear();
    }
    /// Flags that one pair of quotes holds together.
    std::vector<std::string> inner_words(const std::string& word) const {
        const std::size_t first = word.find_first_not_of(" \t\r\n\\");
        const bool has_flags = first != std::string::npos &&
                               word.compare(first, 2, "--") == 0 &&
                               word.find_first_of(" \t\n") != std::string::npos;
        return has_flags ? Words(field_, word).read() : std::vector<std::string>{word};
    }
    std::vector<std::string> resolved(const std::vector<std::string>& words) {
        std::vector<std::string> result;
        for (const std::string& word : words)
            for (std::string& inner : inner_words(variables_.resolve(word)))
                result.push_back(std::move(inner));
        return result;
    }

    void add(std::string word) {
        // A command ends: ";", "a;", "&&", "|", ">", "2>&1"
        const bool ends = word.ends_with(";");
        if (ends) word.pop_back();
        if (word.starts_with("&") || word.starts_with("|") || word.starts_with("<") ||
            word.starts_with(">") || word.starts_with("2>") || word.starts_with("1>")) {
            open_ = false;
        } else if (is_flag(word)) {
            const std::size_t equals = word.find('=');
            flags_.push_back({word.substr(0, equals), {}});
            if (equals != std::string::npos)
                flags_.back().values.push_back(word.substr(equals + 1));
            open_ = true;
        } else if (open_ && !word.empty()) {
            flags_.back().values.push_back(word);
        }
        if (ends) open_ = false;
    }

    const std::string& field_;
    Variables variables_;
    std::string array_;  // the one that is being set
    std::vector<ScriptFlag> flags_;
    bool open_ = false;  // the last flag may get more values
};

}  // namespace

std::vector<ScriptFlag> read_script_flags(const std::string& field,
                                          const std::string& text) {
    return FlagReader(field).read(text);
}

}  // namespace moe
