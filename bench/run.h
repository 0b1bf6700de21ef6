/// @file
/// `moe bench` without its words: hold every part against the reference, count what it
/// does, and time it where time means something.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/parts.h"
#include "bench/result.h"
#include "bench/workload.h"

namespace moe::bench {

struct BenchRequest {
    std::string model;  ///< in words
    MoEConfig config;   ///< finalized
    Routing routing;
    std::string routing_name;  ///< as the user wrote it
    std::int64_t tokens = 0;
    std::uint64_t seed = 1234;
    DType reference_dtype = DType::f64;
    std::vector<ModuleSpec> specs;
    std::vector<ModuleSpec> waterfall;  ///< see waterfall_specs(); empty: none
    std::vector<std::string> subjects;  ///< of part_names()
    std::vector<std::string> passes;    ///< of kPasses
    double seconds = 20.0;              ///< for timing, about
    /// Called with what is being done now.
    std::function<void(const std::string&)> progress = [](const std::string&) {};
};

inline const std::vector<std::string> kPasses = {"forward", "backward", "both"};

struct BenchOutcome {
    Run run;
    /// One line for each part that is not what the reference says; it has no time.
    std::vector<std::string> failures;
    /// One line for what was left out: a calibration without cuBLAS, …
    std::vector<std::string> notes;
};

BenchOutcome run_bench(const BenchRequest& request);

/// The layer from supplier to supplier: the first, then all of the second, and from
/// there one component after another from each that follows.
std::vector<ModuleSpec> waterfall_specs(const std::vector<ComponentSpec>& suppliers);

}  // namespace moe::bench
