/// @file
/// How wide what is printed may be, and what is done where that is too little.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <vector>

namespace moe {

/// Where no line is too long: a pipe, a file.
inline constexpr std::size_t kAnyWidth = std::size_t(1) << 20;

/// Columns of a line on stdout: those that COLUMNS says, else those of the terminal;
/// kAnyWidth where stdout is none.
std::size_t terminal_width();

/// Columns that a text takes; every character takes one.
std::size_t columns_of(const std::string& text);

/// The text with line breaks instead of blanks where it would be wider than `width`; all
/// lines but the first are indented. A word that is too wide stays whole.
std::string wrapped(const std::string& text, std::size_t indent,
                    std::size_t width = terminal_width());

/// A table's parts that may be left out, in the order in which they go, and how many of
/// them must.
class TableParts {
  public:
    /// @param width_without  of the table without the first n parts
    TableParts(std::vector<std::string> parts,
               const std::function<std::size_t(std::size_t)>& width_without);

    /// How many are left out, from the first on.
    std::size_t left_out() const { return left_out_; }
    bool has(std::size_t part) const { return part >= left_out_; }
    /// "Left out at 80 columns: …; a wider terminal has them", wrapped, with a line
    /// break; "" when nothing is left out.
    /// @param elsewhere  what else has them, or ""
    std::string note(const std::string& elsewhere = "") const;

  private:
    std::vector<std::string> parts_;
    std::size_t left_out_ = 0;
};

}  // namespace moe
