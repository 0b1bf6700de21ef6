/// @file
/// The arguments of a Megatron launch script, as they are pasted into a shell or kept in
/// a file, and the words that they are made of.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// One flag with what follows it up to the next one.
struct ScriptFlag {
    std::string name;  ///< "--moe-router-topk"
    std::vector<std::string> values;
    bool operator==(const ScriptFlag&) const = default;
};

/// The flags in a text of shell: quotes, comments, lines that go on after a backslash,
/// arrays, and variables where they are used are understood; variables that the text does
/// not set stay as they are. Where no flag is used, those count that variables hold.
/// InputError naming `field` for a quote that does not end.
std::vector<ScriptFlag> read_script_flags(const std::string& field,
                                          const std::string& text);

}  // namespace moe
