#include "cli/notes.h"

#include <fmt/format.h>

namespace moe {
namespace {

bool printed = true;

}  // namespace

void note(const std::string& text) {
    if (printed) fmt::print(stderr, "moe: note: {}\n", text);
}

void print_notes(bool on) {
    printed = on;
}

}  // namespace moe
