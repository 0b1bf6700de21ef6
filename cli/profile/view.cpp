// view.cpp: tables of what kernels did to memory.

#include "cli/profile/view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "cli/profile/bound.h"
#include "cli/profile/figures.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/error.h"

namespace moe::profile {
namespace {

constexpr const char* kHead = "step, kernels";

/// Which columns there is room for.
class Layout {
  public:
    Layout(const LayerProfile& profile, std::size_t left_out) : left_out_(left_out) {
        for (const StepProfile& step : profile.steps) {
            name_ = std::max(name_, columns_of(name_of(step)));
            for (const KernelUse& use : step.kernels)
                name_ = std::max(name_, 2 + short_name(use.kernel).size());
        }
    }
    std::size_t width() const {
        return columns_of(row("", {"-", "-", "-", "-", "-", "-", "-", "-", "-"}));
    }
    /// Launches, requests, sectors, efficiency, wavefronts, requested bytes, compulsory
    /// bytes, floor, ratio
    std::string row(const std::string& name,
                    const std::array<std::string, 9>& cells) const {
        constexpr std::array<std::size_t, 9> kWidths = {9, 12, 9, 6, 12, 10, 12, 10, 7};
        std::string line = name + std::string(name_ - columns_of(name), ' ');
        for (std::size_t i = 0; i < cells.size(); ++i)
            if (shows(i)) line += fmt::format("{:>{}}", cells[i], kWidths[i]);
        return line.substr(0, line.find_last_not_of(' ') + 1);
    }

  private:
    bool shows(std::size_t column) const {
        constexpr std::size_t kWavefronts = 4, kRequests = 1, kLaunches = 0,
                              kRequested = 5;
        constexpr std::array<std::size_t, 4> kGo = {kWavefronts, kRequests, kLaunches,
                                                    kRequested};
        return std::find(kGo.begin(), kGo.begin() + std::ptrdiff_t(left_out_), column) ==
               kGo.begin() + std::ptrdiff_t(left_out_);
    }

    std::size_t left_out_, name_ = columns_of(kHead);
};

std::array<std::string, 9> cells(const Counters& c, std::int64_t launches) {
    return {grouped(launches),
            number(c.loads.requests + c.stores.requests),
            sectors_per_request(c),
            efficiency(c),
            number(c.shared.wavefronts),
            bytes_in_words(std::int64_t(c.requested_bytes())),
            bytes_in_words(std::int64_t(c.compulsory_bytes())),
            "",
            ""};
}

}  // namespace

void print_kernels(const LayerProfile& profile, const std::string& component) {
    const TableParts parts({"wavefronts", "requests", "launches", "requested bytes"},
                           [&](std::size_t n) { return Layout(profile, n).width(); });
    const Layout layout(profile, parts.left_out());
    fmt::print("{}\n",
               layout.row(kHead, {"launches", "requests", "sect/req", "eff", "wavefronts",
                                  "requested", "compulsory", "floor", "ratio"}));
    for (const StepProfile& step : profile.steps) {
        if (!belongs_to(step.steps, component)) continue;
        const Counters sum = step.sum();
        auto head = cells(sum, step.launches());
        if (step.floor.total_bytes() > 0)
            head[7] = bytes_in_words(step.floor.total_bytes());
        head[8] = over_floor(step);
        fmt::print("{}\n", layout.row(name_of(step), head));
        for (const KernelUse& use : step.kernels)
            fmt::print("{}\n", layout.row("  " + short_name(use.kernel),
                                          cells(use.counters, use.launches)));
    }
    fmt::print("{}", parts.note("--json"));
}

void print_beside(const std::vector<LayerProfile>& profiles,
                  const std::string& component) {
    // By steps, a cell per tier; fused ones before their first
    std::map<std::pair<int, int>, std::vector<const StepProfile*>> rows;
    for (std::size_t tier = 0; tier < profiles.size(); ++tier)
        for (const StepProfile& step : profiles[tier].steps)
            if (belongs_to(step.steps, component)) {
                auto& row = rows[step.steps ? std::pair{int(step.steps->first),
                                                        -int(step.steps->last)}
                                            : std::pair{kNumSteps + 1, 0}];
                row.resize(profiles.size());
                row[tier] = &step;
            }
    std::string tiers = std::string(26, ' ') + fmt::format("{:>10}", ""),
                head = fmt::format("{:<26}{:>10}", "step", "floor");
    for (const LayerProfile& profile : profiles) {
        tiers += fmt::format("{:>34}", to_string(profile.spec.experts));
        head += fmt::format("{:>10}{:>12}{:>12}", "launches", "requested", "compulsory");
    }
    fmt::print("\nbeside each other\n{}\n{}\n", tiers, head);
    for (const auto& [steps, row] : rows) {
        const StepProfile& any =
            **std::find_if(row.begin(), row.end(), [](auto* each) { return each; });
        const std::string name = name_of(any);
        const std::int64_t floor = any.floor.total_bytes();
        std::string line = name + std::string(26 - columns_of(name), ' ') +
                           fmt::format("{:>10}", floor > 0 ? bytes_in_words(floor) : "");
        for (const StepProfile* step : row) {
            const Counters sum = step ? step->sum() : Counters();
            line +=
                step ? fmt::format("{:>10}{:>12}{:>12}", step->launches(),
                                   bytes_in_words(std::int64_t(sum.requested_bytes())),
                                   bytes_in_words(std::int64_t(sum.compulsory_bytes())))
                     : fmt::format("{:>10}{:>12}{:>12}", "-", "-", "-");
        }
        fmt::print("{}\n", line);
    }
}

void print_bounds(const LayerProfile& profile, const std::string& component) {
    fmt::print("\nbound on {} (model), microseconds\n", kH100.name);
    fmt::print("{:<26}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}  {}\n", "", "HBM", "L2", "L1",
               "shared", "tensor", "launch", "limit");
    for (const StepProfile& step : profile.steps) {
        if (!belongs_to(step.steps, component)) continue;
        const Bound bound = bound_of(step.sum(), step.launches(), kH100);
        const std::string name = name_of(step);
        std::string line = name + std::string(26 - columns_of(name), ' ');
        for (const double term :
             {bound.hbm, bound.l2, bound.l1, bound.shared, bound.tensor, bound.launch})
            line += term == 0.0 ? fmt::format("{:>9}", "-")
                                : fmt::format("{:>9.2f}", 1e6 * term);
        fmt::print("{}  {}\n", line,
                   bound.limit() == "launch" ? "launch, then " + bound.resource()
                                             : bound.limit());
    }
    fmt::print("{}\n",
               wrapped("A lower bound with perfect overlap, from what was counted: "
                       "never a time. Products on CUDA cores are not in it.",
                       0));
}

void print_worst_lines(const LayerProfile& profile, const std::string& component) {
    const std::vector<WorstLine> lines = worst_lines(profile, component);
    if (lines.empty()) return;
    fmt::print("\nworst lines: sectors and wavefronts beyond the ideal\n");
    for (const WorstLine& line : lines)
        fmt::print("{:>12}  {:<28}  {} sectors/request, {}{}\n",
                   grouped(std::int64_t(waste(line.counters))), line.place,
                   sectors_per_request(line.counters), efficiency(line.counters),
                   line.counters.shared.most_ways > 1
                       ? fmt::format(", {} ways", line.counters.shared.most_ways)
                       : "");
}

void print_findings(const LayerProfile& profile) {
    for (const auto& finding : profile.report.findings)
        fmt::print("✗ {}{}\n", finding.text,
                   finding.times > 1 ? fmt::format(" ({} times)", finding.times) : "");
    if (profile.report.findings.empty())
        fmt::print("✓ no races and no reads of unwritten memory\n");
}

std::string annotated(const std::vector<LayerProfile>& profiles, const std::string& path,
                      const std::string& source) {
    std::map<int, Counters> by_line;
    for (const LayerProfile& profile : profiles)
        for (const auto& kernel : profile.report.kernels)
            for (const auto& line : kernel.lines)
                if (is_file(line.file, path)) by_line[line.line] += line.counters;
    if (by_line.empty())
        reject("--annotate", path, "no line of it touched memory in a kernel");
    std::string text = fmt::format("{:>10} {:>8} {:>5} {:>10}\n", "requests", "sect/req",
                                   "eff", "wavefronts");
    int number = 0;
    for (std::size_t at = 0; at < source.size();) {
        const std::size_t end = std::min(source.find('\n', at), source.size());
        const auto found = by_line.find(++number);
        const Counters* c = found == by_line.end() ? nullptr : &found->second;
        const std::string line =
            fmt::format("{:>10} {:>8} {:>5} {:>10} {:>5}  {}",
                        c ? profile::number(c->loads.requests + c->stores.requests +
                                            c->atomics.requests)
                          : "",
                        c ? sectors_per_request(*c) : "", c ? efficiency(*c) : "",
                        c ? profile::number(c->shared.wavefronts) : "", number,
                        source.substr(at, end - at));
        text += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
        at = end + 1;
    }
    return text;
}

}  // namespace moe::profile
