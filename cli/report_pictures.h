/// @file
/// The report's pictures, as inline SVG.
#pragma once

#include <string>

#include "cli/comparison.h"

namespace moe {

/// Text made safe for HTML and SVG. Bytes that are not printable ASCII become "·", so
/// that a user's file may hold anything.
std::string escape(const std::string& text);

/// One byte of the text as a visible character: "␣", "⏎", "·" for what cannot be shown.
std::string visible(std::uint8_t byte);

/// The first tokens of the first sequence against the experts, shaded by probability.
std::string draw_routing_map(const Comparison& comparison);

/// Rows per expert, with the even share.
std::string draw_expert_load(const Comparison& comparison);

/// Curves from the first tokens to their rows in expert order.
std::string draw_permutation(const Comparison& comparison);

/// Where a column's time goes, step by step.
std::string draw_time_shares(const ColumnOutcome& column);

}  // namespace moe
