/// @file
/// A picture that stands alone: an SVG file with its own colours for light and for dark,
/// no script, and the fonts of the system. Sites show such a file as an image.
#pragma once

#include <string>
#include <vector>

#include "cli/report/svg.h"

namespace moe {

/// Width of a sheet in its own units.
inline constexpr double kSheetWidth = 900.0;

/// About how wide a text is drawn; rather too much than too little. Entities such as
/// "&amp;" count as one character.
double text_width(const std::string& words, double size);

/// A round value beside an axis: "0.01", "1", "1000".
std::string tick_label(double value);

/// Text escaped, and cut off with "…" where it would not fit.
std::string fitted(const std::string& words, double width, double size);

/// The file: `canvas` on paper, below a title and a line that says more.
/// @param height    of the whole, the title's 64 units among it
/// @param title     both are plain text, escaped here
std::string standalone_svg(const Canvas& canvas, double height, const std::string& title,
                           const std::string& subtitle);

/// Where the part below the title begins.
inline constexpr double kSheetTop = 72.0;

/// Values along an axis, from `low` to `high`; logarithmic when they span more than 30
/// times.
class Axis {
  public:
    /// An axis for bars of these values: from zero, or, when it is logarithmic, from the
    /// power of ten below the least, so that every bar is to be seen.
    /// @param from, to  where it lies in the picture
    Axis(const std::vector<double>& values, double from, double to);

    bool is_log() const { return log_; }
    /// Where a value lies; what is beyond an end lies on the end.
    double at(double value) const;
    /// Round values to mark, few enough to be labelled.
    std::vector<double> ticks() const;

  private:
    double low_ = 0.0, high_ = 0.0, from_, to_;
    bool log_ = false;
};

}  // namespace moe
