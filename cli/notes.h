/// @file
/// Notes on stderr: what a user may want to know, and is no error.
#pragma once

#include <string>

namespace moe {

/// "moe: note: <text>"
void note(const std::string& text);

/// Whether notes are printed from here on: of ranks that are processes one tells.
void print_notes(bool on);

}  // namespace moe
