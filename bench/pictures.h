/// @file
/// Pictures of a run, each a whole SVG file; "" where the run has nothing to draw.
#pragma once

#include <string>

#include "bench/result.h"

namespace moe::bench {

/// Per subject and pass a bar for every supplier: the median, p10 to p90 as a whisker,
/// the roofline's floor as a tick. Every subject has an axis of its own, logarithmic when
/// its times span more than 30 times.
/// @param device  for the title
std::string ladder_picture(const Run& run, const std::string& device);

/// The whole layer, one component after another from the next tier.
std::string waterfall_picture(const Run& run, const std::string& device);

/// FLOP per byte against TFLOP/s, a point for every measurement with matrix products,
/// below the ceilings that the run itself measured.
std::string roofline_picture(const Run& run, const std::string& device);

/// Launches and host waits of what was only counted.
std::string counts_picture(const Run& run, const std::string& device);

}  // namespace moe::bench
