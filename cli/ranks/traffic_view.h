/// @file
/// The parts of `moe compare --ranks` that tell who sent what to whom.
#pragma once

#include <string>

#include "cli/ranks/comparison.h"

namespace moe {

/// Rows, bytes and host waits of each dispatcher.
void print_traffic(const RankComparison& comparison);

/// Kernel launches and host waits of each dispatcher in each column, if any uses a
/// device.
void print_asked(const RankComparison& comparison);

/// What may run beside what on a rank's device, if anything may.
void print_beside(const RankComparison& comparison);

/// Every link of ⑥, where the ranks are few enough for a table.
/// @param report  the folder of the report, which has the rest, or ""
void print_matrices(const RankComparison& comparison, const std::string& report);

}  // namespace moe
