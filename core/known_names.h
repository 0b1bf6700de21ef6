/// @file
/// Names out of a known list: what somebody may have meant, and which values a config
/// field of such names has.
#pragma once

#include <string>
#include <vector>

namespace moe {

/// The known name nearest to a mistyped one, or "" when none is near: one letter in four
/// may differ, or it is a beginning that one name alone has.
std::string nearest(const std::string& word, const std::vector<std::string>& known);

/// Throws InputError "<field> = <name>: did you mean …? <are> a, b, c".
[[noreturn]] void reject_unknown(const std::string& field, const std::string& name,
                                 const std::vector<std::string>& known,
                                 const std::string& are = "allowed are");

/// The names that a field of MoEConfig may hold; none for a field of another kind.
const std::vector<std::string>& allowed_values(const std::string& field);

}  // namespace moe
