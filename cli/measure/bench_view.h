/// @file
/// What `moe bench` says on the terminal.
#pragma once

#include "bench/result.h"

namespace moe {

/// The layer, its tokens, the machine, its ceilings.
void print_bench_header(const bench::Result& result, const bench::Run& run);

/// One row per part, pass and supplier: times and shares for what was timed, counts for
/// what used a device.
void print_bench_table(const bench::Result& result, const bench::Run& run);

/// The medians as bars, where at least two were timed for the same.
void print_bars(const bench::Run& run);

/// The whole layer, step by step from supplier to supplier.
void print_waterfall(const bench::Run& run);

}  // namespace moe
