#include "bench/timing.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <random>

#include "core/error.h"

namespace moe::bench {

Timing summarize(std::vector<double> samples) {
    MOE_CHECK(!samples.empty());
    std::sort(samples.begin(), samples.end());
    const std::size_t n = samples.size();
    const double median =
        n % 2 == 1 ? samples[n / 2] : 0.5 * (samples[n / 2 - 1] + samples[n / 2]);
    return {median, samples[n / 10], samples[n * 9 / 10], int(n)};
}

namespace {

double sample(const TimedWork& work) {
    work.prepare();
    return work.stopwatch->time(work.run);
}

}  // namespace

std::vector<Timing> time_interleaved(const std::vector<TimedWork>& works,
                                     const TimingPlan& plan) {
    double round_ms = 0.0;
    for (std::size_t i = 0; i < works.size(); ++i) {
        plan.progress(
            fmt::format("warming up {} of {}: {}", i + 1, works.size(), works[i].name));
        sample(works[i]);
        round_ms += sample(works[i]);
    }
    const int rounds = std::clamp(int(1e3 * plan.seconds / std::max(round_ms, 1e-3)),
                                  plan.least_rounds, plan.most_rounds);

    std::vector<std::vector<double>> samples(works.size());
    std::vector<std::size_t> order(works.size());
    std::iota(order.begin(), order.end(), 0);
    std::mt19937_64 random(plan.seed);
    for (int round = 0; round < rounds; ++round) {
        plan.progress(fmt::format("timing, round {} of {}", round + 1, rounds));
        std::shuffle(order.begin(), order.end(), random);
        for (std::size_t i : order) samples[i].push_back(sample(works[i]));
    }
    std::vector<Timing> timings;
    for (const std::vector<double>& list : samples) timings.push_back(summarize(list));
    return timings;
}

}  // namespace moe::bench
