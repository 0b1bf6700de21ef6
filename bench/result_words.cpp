#include "bench/result_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <sstream>

#include "cli/words.h"

namespace moe::bench {
namespace {

constexpr std::array<const char*, 5> kSubjects = {"router", "dispatcher", "experts",
                                                  "shared_experts", "layer"};
constexpr std::array<const char*, 3> kPasses = {"forward", "backward", "both"};
constexpr std::array<const char*, 4> kComponents = {"router", "dispatcher", "experts",
                                                    "shared_experts"};

using Mix = std::array<std::string, 4>;  ///< a supplier for each component

/// "router=… dispatcher=…", or one supplier for all.
Mix read_mix(const std::string& spec) {
    Mix mix;
    if (spec.find('=') == std::string::npos) {
        mix.fill(spec);
        return mix;
    }
    std::istringstream parts(spec);
    for (std::string part; parts >> part;) {
        const std::size_t equals = part.find('=');
        for (std::size_t i = 0; i < mix.size(); ++i)
            if (part.substr(0, equals) == kComponents[i])
                mix[i] = part.substr(equals + 1);
    }
    return mix;
}

std::string tier_of(const std::string& supplier) {
    return supplier.substr(0, supplier.find(':'));
}

}  // namespace

std::string three_digits(double number) {
    const double size = std::abs(number);
    if (size == 0.0 || size >= 99.95) return fmt::format("{:.0f}", number);
    const int decimals = 2 - int(std::floor(std::log10(size * (1.0 + 1e-9))));
    return fmt::format("{:.{}f}", number, std::clamp(decimals, 0, 9));
}

std::string milliseconds(double ms) {
    return three_digits(ms) + " ms";
}

std::string share(double part) {
    const int decimals = part >= 0.0995 || part == 0.0 ? 0 : part >= 0.001 ? 1 : 2;
    return fmt::format("{:.{}f} %", 100.0 * part, decimals);
}

std::string times_faster(double factor) {
    if (std::abs(factor - 1.0) < 0.005) return "as fast as before";
    return factor > 1.0 ? three_digits(factor) + " times faster"
                        : three_digits(1.0 / factor) + " times slower";
}

std::string spec_in_words(const std::string& spec) {
    const Mix mix = read_mix(spec);
    const auto frequency = [&](const std::string& supplier) {
        return std::count(mix.begin(), mix.end(), supplier);
    };
    // Of two that are as frequent the experts' supplier leads: they are most of the work
    std::string main = mix[2];
    for (const std::string& supplier : mix)
        if (frequency(supplier) > frequency(main)) main = supplier;
    std::string words = main;
    for (std::size_t i = 0; i < mix.size(); ++i) {
        if (mix[i] == main || mix[i].empty()) continue;
        const bool same_tier = tier_of(mix[i]) == tier_of(main);
        words += fmt::format(", {} {}", kComponents[i],
                             same_tier ? mix[i].substr(mix[i].find(':') + 1) : mix[i]);
    }
    return words;
}

std::string what_changed(const std::string& from, const std::string& to) {
    const Mix before = read_mix(from), after = read_mix(to);
    std::vector<std::pair<std::string, std::string>> changes;  // supplier, components
    for (std::size_t i = 0; i < after.size(); ++i) {
        if (after[i] == before[i]) continue;
        const auto known =
            std::find_if(changes.begin(), changes.end(),
                         [&](const auto& change) { return change.first == after[i]; });
        if (known == changes.end())
            changes.emplace_back(after[i], kComponents[i]);
        else
            known->second += fmt::format(", {}", kComponents[i]);
    }
    std::string words;
    for (const auto& [supplier, components] : changes)
        words +=
            fmt::format("{}{} → {}", words.empty() ? "" : "; ", components, supplier);
    return words.empty() ? "nothing" : words;
}

std::string workload_in_words(const Workload& workload) {
    return fmt::format("{}, {} tokens, {}", workload.model, grouped(workload.tokens),
                       workload.routing);
}

std::string slug(const std::string& text) {
    std::string result;
    for (const char c : text) {
        const bool capital = c >= 'A' && c <= 'Z';
        const bool stays = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
        if (capital || stays)
            result += capital ? char(c - 'A' + 'a') : c;
        else if (!result.empty() && result.back() != '-')
            result += '-';
    }
    while (!result.empty() && result.back() == '-') result.pop_back();
    return result;
}

std::string workload_slug(const Workload& workload) {
    return slug(
        fmt::format("{}-{}-{}", workload.model, workload.tokens, workload.routing));
}

std::optional<Calibration> ceilings(const Run& run) {
    if (!run.before || !run.after) return run.before ? run.before : run.after;
    Calibration best = *run.before;
    best.copy_gb_per_s = std::max(best.copy_gb_per_s, run.after->copy_gb_per_s);
    // An optional that is empty is less than any other
    best.product_tflops = std::max(best.product_tflops, run.after->product_tflops);
    return best;
}

std::vector<Group> by_subject_and_pass(const std::vector<Measurement>& measurements) {
    std::vector<Group> groups;
    for (const char* subject : kSubjects)
        for (const char* pass : kPasses) {
            Group group;
            for (const Measurement& measurement : measurements)
                if (measurement.subject == subject && measurement.pass == pass)
                    group.push_back(&measurement);
            if (!group.empty()) groups.push_back(group);
        }
    return groups;
}

std::vector<std::string> suppliers(const Run& run) {
    std::vector<std::string> names;
    for (const Measurement& measurement : run.measurements)
        if (std::find(names.begin(), names.end(), measurement.spec) == names.end())
            names.push_back(measurement.spec);
    return names;
}

std::string bar_chart(const Run& run) {
    constexpr double kCells = 40.0;
    std::size_t width = 0;
    for (const std::string& name : suppliers(run))
        width = std::max(width, spec_in_words(name).size());
    std::string text;
    for (const Group& group : by_subject_and_pass(run.measurements)) {
        double longest = 0.0;
        for (const Measurement* measurement : group)
            if (measurement->ms) longest = std::max(longest, measurement->ms->median);
        text += fmt::format("{}, {}\n", group[0]->subject, group[0]->pass);
        for (const Measurement* measurement : group) {
            text += fmt::format("  {:<{}}", spec_in_words(measurement->spec), width);
            if (!measurement->ms) {
                text += fmt::format("  counted only: launches {}, host waits {}\n",
                                    measurement->launches, measurement->host_waits);
                continue;
            }
            // Eighths of a character cell make short bars comparable.
            const auto eighths = int(8.0 * kCells * measurement->ms->median / longest);
            std::string bar;
            for (int full = 0; full < eighths / 8; ++full) bar += "█";
            const char* parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
            text += fmt::format("  {:>11}  {}{}\n", milliseconds(measurement->ms->median),
                                bar, parts[eighths % 8]);
        }
    }
    return text;
}

}  // namespace moe::bench
