/// @file
/// Timing several pieces of work side by side: in shuffled order, round after round, so
/// that clocks and heat fall on all alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/result.h"
#include "bench/stopwatch.h"

namespace moe::bench {

/// Median, and the samples at a tenth and nine tenths of the sorted list. Needs one
/// sample.
Timing summarize(std::vector<double> milliseconds);

/// One piece of work.
struct TimedWork {
    std::string name;
    Stopwatch* stopwatch;
    std::function<void()> prepare;  ///< before each sample, untimed
    std::function<void()> run;
};

/// How long and how often.
struct TimingPlan {
    double seconds = 20.0;  ///< for all pieces together, about
    int least_rounds = 3, most_rounds = 25;
    std::uint64_t seed = 1;  ///< of the order
    /// Called with what is being done now.
    std::function<void(const std::string&)> progress = [](const std::string&) {};
};

/// Two samples of each piece are thrown away (the second tells how long a round is), then
/// as many rounds as the plan has time for. Results in the order of `works`.
std::vector<Timing> time_interleaved(const std::vector<TimedWork>& works,
                                     const TimingPlan& plan);

}  // namespace moe::bench
