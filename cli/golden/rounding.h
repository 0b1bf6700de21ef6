/// @file
/// What rounding alone does to the values of a golden case: the bound on the error of a
/// right layer where the agreed one does not fit, because terms cancel, sums are long, or
/// so few elements are compared that their errors do not average out.
///
/// A right layer computes what the exact layer makes of inputs that differ by a rounding
/// (backward error; Higham, "Accuracy and stability of numerical algorithms", 1.5). So
/// reference_cpu in fp64 runs with inputs so changed, at random and several times, and
/// how far a tensor moves is how far it may lie from what is expected.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "cli/golden/golden.h"

namespace moe {

/// ‖change‖ by rank and name of the expectation; absent where no draw could tell.
using RoundingDistances = std::vector<std::map<std::string, double>>;

/// A layer rounds more often than each input once: what it holds between its steps, and
/// what it adds up in another order than its source.
inline constexpr double kRoundingFactor = 2.0;

/// The largest distance of several draws. Empty where the changed inputs are refused. A
/// draw that sends a token to another expert is left out: that is no rounding.
/// @param dtype  of the experts; router and sums are at least in fp32, and scores never
///               in more
RoundingDistances measure_rounding(const GoldenCase& golden, DType dtype);

}  // namespace moe
