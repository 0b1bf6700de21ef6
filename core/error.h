/// @file
/// Errors: one line for what a user can mend, file and line for what only we can.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace moe {

/// Bad input from outside: a flag, a file, a shape, a value. Programs print `what()` as
/// one line and leave with exit code 2. Raise it through reject().
class InputError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

/// A broken promise inside the program; raised by MOE_CHECK.
class InternalError : public std::logic_error {
  public:
    using std::logic_error::logic_error;
};

/// The text on one line: control characters, a line break among them, become "?". Names
/// in files are somebody else's.
inline std::string one_line(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
    return text;
}

/// Throws InputError with the line "<field> = <value>: <allowed>".
/// @param field    name as the user typed it (config field, flag, path, tensor name)
/// @param value    what was found there
/// @param allowed  what is allowed instead
template <typename Value>
[[noreturn]] void reject(const std::string& field, const Value& value,
                         const std::string& allowed) {
    throw InputError(one_line(fmt::format("{} = {}: {}", field, value, allowed)));
}

namespace detail {
[[noreturn]] inline void check_failed(const char* expression, const std::string& values,
                                      const char* file, int line) {
    throw InternalError(
        fmt::format("{}:{}: check failed: {}{}", file, line, expression, values));
}
}  // namespace detail

}  // namespace moe

/// Throws moe::InternalError when `cond` is false.
#define MOE_CHECK(cond) \
    ((cond) ? (void)0 : moe::detail::check_failed(#cond, "", __FILE__, __LINE__))

/// Like MOE_CHECK(a == b), printing both values.
#define MOE_CHECK_EQ(a, b)                                                               \
    (((a) == (b))                                                                        \
         ? (void)0                                                                       \
         : moe::detail::check_failed(#a " == " #b, fmt::format(" ({} vs {})", (a), (b)), \
                                     __FILE__, __LINE__))
