/// @file
/// How the traces of single programs are read: what they left, and whether that is right.
#pragma once

#include <string>

#include "cli/gpu_check/stage.h"

namespace moe::gpu_check {

/// `moe info --json`: one object {"commit", "kind", "device", "facts"} for the result;
/// it may go without the commit.
Finding judge_facts(const std::vector<Trace>& traces);

/// `moe verify --json`: how many cases match, and the worst share of a bound.
Finding judge_verify(const std::vector<Trace>& traces);

/// `moe bench --json FILE`: its runs, for the result.
Finding judge_bench(const std::vector<Trace>& traces, const std::string& file);

/// `ncu --csv --log-file FILE`: kernels counted; skipped where counters are not allowed.
Finding judge_counters(const std::vector<Trace>& traces, const std::string& file);

/// `peers.py --json FILE`: the times of peers, for the result.
Finding judge_peers(const std::vector<Trace>& traces, const std::string& file);

}  // namespace moe::gpu_check
