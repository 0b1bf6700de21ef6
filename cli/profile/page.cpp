// page.cpp: tables of what kernels did to memory, in markdown.

#include "cli/profile/page.h"

#include <fmt/format.h>

#include "cli/profile/figures.h"
#include "cli/words.h"

namespace moe::profile {
namespace {

std::string run_in_words(const LayerProfile& profile, const std::string& model,
                         const MoEConfig& config) {
    return fmt::format(
        "{}: {}. {} tokens, {} expert rows, forward and backward in {}: {} launches, {} "
        "waits of the host, {} allocations, {} of device memory at most. Compiled by "
        "{}.\n",
        model, layer_in_words(config), profile.sizes.num_tokens, profile.sizes.num_rows,
        to_string(profile.spec.experts), profile.report.launches.size(),
        profile.report.host_waits, profile.report.allocations,
        bytes_in_words(std::int64_t(profile.report.peak_bytes)), compiler_in_words());
}

/// What a step, or a kernel in it, did.
std::string row(const std::string& name, std::int64_t launches, const Counters& c,
                const std::string& floor, const std::string& ratio) {
    return fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n", name,
                       grouped(launches), number(c.loads.requests + c.stores.requests),
                       sectors_per_request(c), efficiency(c),
                       bytes_in_words(std::int64_t(c.requested_bytes())),
                       bytes_in_words(std::int64_t(c.compulsory_bytes())), floor, ratio);
}

std::string kernels_table(const LayerProfile& profile) {
    std::string text =
        "| step, kernels | launches | requests | sectors/request | efficiency | "
        "requested | compulsory | floor | ratio |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for (const StepProfile& step : profile.steps) {
        const std::int64_t floor = step.floor.total_bytes();
        text += row(fmt::format("**{}**", name_of(step)), step.launches(), step.sum(),
                    floor > 0 ? bytes_in_words(floor) : "", over_floor(step));
        for (const KernelUse& use : step.kernels)
            text += row(fmt::format("`{}`", short_name(use.kernel)), use.launches,
                        use.counters, "", "");
    }
    return text;
}

std::string lines_table(const LayerProfile& profile) {
    std::string text =
        "| line | sectors beyond the ideal | sectors/request | efficiency |\n"
        "|---|---:|---:|---:|\n";
    for (const WorstLine& line : worst_lines(profile, "layer"))
        text += fmt::format(
            "| `{}` | {} | {} | {} |\n", line.place, number(waste(line.counters)),
            sectors_per_request(line.counters), efficiency(line.counters));
    return text;
}

/// Steps that some tier takes at once.
std::vector<Steps> rows_of(const std::vector<LayerProfile>& profiles) {
    std::vector<Steps> rows;
    for (int number = 1; number <= kNumSteps; ++number) {
        const Step step = Step(number);
        bool starts = false, goes_on = false;
        for (const LayerProfile& profile : profiles)
            for (const StepProfile& each : profile.steps) {
                if (!each.steps) continue;
                goes_on |= each.steps->first < step && step <= each.steps->last;
                starts |= each.steps->first == step;
            }
        if (goes_on)
            rows.back().last = step;
        else if (starts)
            rows.emplace_back(step);
    }
    return rows;
}

/// What a tier does in a row's steps.
StepProfile within(const LayerProfile& profile, const Steps& row) {
    StepProfile all;
    for (const StepProfile& step : profile.steps) {
        if (!step.steps || step.steps->first < row.first || step.steps->last > row.last)
            continue;
        all.kernels.insert(all.kernels.end(), step.kernels.begin(), step.kernels.end());
        all.floor = all.kernels.size() == step.kernels.size() ? step.floor
                                                              : all.floor + step.floor;
    }
    return all;
}

/// Turns that banks needed beyond one for each 128 bytes.
std::uint64_t conflicts(const Counters& c) {
    return c.shared.wavefronts - c.shared.ideal_wavefronts;
}

std::string beside_table(const std::vector<LayerProfile>& profiles) {
    std::string text =
        "| step, tier | launches | requested | compulsory | floor | ratio | "
        "sectors/request | efficiency | bank conflicts |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|\n";
    for (const Steps& row : rows_of(profiles)) {
        text +=
            fmt::format("| **{} {}{}** | | | | | | | | |\n", circled(row),
                        title(row.first), row.is_fused() ? " to " + title(row.last) : "");
        for (const LayerProfile& profile : profiles) {
            const StepProfile step = within(profile, row);
            const Counters c = step.sum();
            const std::int64_t floor = step.floor.total_bytes();
            text +=
                fmt::format("| {} | {} | {} | {} | {} | {} | {} | {} | {} |\n",
                            profile.spec.experts.tier, grouped(step.launches()),
                            bytes_in_words(std::int64_t(c.requested_bytes())),
                            bytes_in_words(std::int64_t(c.compulsory_bytes())),
                            floor > 0 ? bytes_in_words(floor) : "",
                            step.kernels.empty() ? "" : over_floor(step),
                            sectors_per_request(c), efficiency(c), number(conflicts(c)));
        }
    }
    return text;
}

std::string runs_table(const std::vector<LayerProfile>& profiles) {
    std::string text =
        "| tier | launches | host waits | allocations | device memory at most | races "
        "and unwritten reads |\n"
        "|---|---:|---:|---:|---:|---:|\n";
    for (const LayerProfile& profile : profiles)
        text +=
            fmt::format("| {} | {} | {} | {} | {} | {} |\n",
                        to_string(profile.spec.experts), profile.report.launches.size(),
                        profile.report.host_waits, profile.report.allocations,
                        bytes_in_words(std::int64_t(profile.report.peak_bytes)),
                        profile.report.findings.size());
    return text;
}

std::string findings_list(const LayerProfile& profile) {
    std::string text;
    for (const auto& finding : profile.report.findings)
        text += fmt::format("* {}\n", finding.text);
    return text.empty() ? "No races and no reads of unwritten memory.\n" : text;
}

}  // namespace

std::string compiler_in_words() {
    return fmt::format("g++ {}.{}.{}", __GNUC__, __GNUC_MINOR__, __GNUC_PATCHLEVEL__);
}

Regions page_regions(const LayerProfile& profile, const std::string& model,
                     const MoEConfig& config) {
    return {{"run", run_in_words(profile, model, config)},
            {"kernels", kernels_table(profile)},
            {"lines", lines_table(profile)},
            {"races", findings_list(profile)}};
}

Regions beside_regions(const std::vector<LayerProfile>& profiles,
                       const std::string& model, const MoEConfig& config) {
    const StepSizes sizes = profiles.empty() ? StepSizes() : profiles.front().sizes;
    return {
        {"run", fmt::format("{}: {}. {} tokens, {} expert rows, forward and "
                            "backward. Compiled by {}.\n\n{}",
                            model, layer_in_words(config), sizes.num_tokens,
                            sizes.num_rows, compiler_in_words(), runs_table(profiles))},
        {"beside", beside_table(profiles)}};
}

}  // namespace moe::profile
