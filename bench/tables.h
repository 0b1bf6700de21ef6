/// @file
/// Markdown tables of results; "" where there is nothing to tell. What stands in a cell
/// was written by others, and is escaped.
#pragma once

#include <string>
#include <vector>

#include "bench/result.h"

namespace moe::bench {

/// Text in a cell, or anywhere in a page: on one line, no bar, no tag, no comment.
std::string cell(const std::string& text);

/// Per subject and pass what each supplier took: milliseconds (p10 to p90), rates, their
/// shares of the calibration and of the floor, launches, host waits, memory, error.
std::string ladder_table(const Run& run);

/// The whole layer, one component after another from the next tier.
std::string waterfall_table(const Run& run);

/// Launches, host waits, memory and least bytes of what ran on the CPU executor; no
/// times.
std::string counts_table(const Run& run);

/// What the whole layer keeps from a forward for its backward, of each supplier.
std::string kept_table(const Run& run);

/// The ceilings before and after a run, and how far the machine drifted between them.
std::string calibration_table(const Run& run);

/// Device, commit, and what else the machine says about itself.
std::string facts_table(const Result& result);

/// The stages of `moe gpu-check`.
std::string stages_table(const Result& result);

/// Where hardware and executor differ; a sentence when tests ran and nothing differed.
std::string disagreements_table(const Result& result);

/// Peers beside our fastest layer for the same work.
std::string peers_table(const Result& result);

}  // namespace moe::bench
