/// @file
/// The report's pictures, as inline SVG. Their colours come from the page's style sheet,
/// so that they follow light and dark.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/compare/comparison.h"
#include "cli/report/svg.h"

namespace moe {

/// Rows per expert (E); zeros when nothing was dispatched.
std::vector<std::int64_t> expert_load(const Comparison& comparison);

std::string token_name(const Comparison& comparison, std::int64_t token);

/// One byte of the text, smaller when it takes two digits.
void draw_byte(Canvas& canvas, double x, double y, std::uint8_t byte);

/// Whether a level line at `line` would cross, or touch, words that stand on `baseline`.
bool is_crossed(double baseline, double line);

/// Colour class of the component whose step it is; step n has that of step 21 - n.
std::string component_hue(Step step);

/// A step's number as a badge: few fonts have ⑪ to ⑳.
std::string badge(Step step);

/// The first tokens of the first sequence against the experts, shaded by probability.
std::string draw_routing_map(const Comparison& comparison);

/// Rows per expert, with the even share.
std::string draw_expert_load(const Comparison& comparison);

/// Curves from the first tokens of the batch to their rows in expert order.
std::string draw_permutation(const Comparison& comparison);

/// Whether the layer has this step at all; one that is off has no cost.
bool is_on(const Comparison& comparison, Step step);

/// A column's time, step after step. `longest` seconds fill the width, so that columns
/// compare.
std::string draw_time_line(const Comparison& comparison, const ColumnOutcome& column,
                           double longest);

/// A bar for a table cell, filled to `share` of its length.
std::string draw_share(Step step, double share);

}  // namespace moe
