// view.cpp: tables of what kernels did to memory.

#include "cli/profile/view.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "cli/profile/bound.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/error.h"

namespace moe::profile {

namespace observe = cuda_on_cpu::observe;

namespace {

/// "31.2", or "-" without requests.
std::string sectors_per_request(const Counters& c) {
    const double requests = double(c.loads.requests + c.stores.requests);
    if (requests == 0.0) return "-";
    return fmt::format("{:.1f}", double(c.loads.sectors + c.stores.sectors) / requests);
}

std::string efficiency(const Counters& c) {
    const double sectors = double(c.loads.sectors + c.stores.sectors);
    if (sectors == 0.0) return "-";
    return fmt::format(
        "{:.0f} %",
        100.0 * double(c.loads.ideal_sectors + c.stores.ideal_sectors) / sectors);
}

std::string number(std::uint64_t value) {
    return value == 0 ? "-" : grouped(std::int64_t(value));
}

/// A kernel's name in a column.
std::string short_name(const std::string& kernel) {
    constexpr std::string_view kEnding = "_kernel";
    return kernel.ends_with(kEnding) ? kernel.substr(0, kernel.size() - kEnding.size())
                                     : kernel;
}

std::string name_of(const StepProfile& step) {
    return step.step ? circled(*step.step) + " " + title(*step.step)
                     : "between the steps";
}

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
    /// Launches, requests, sectors, efficiency, wavefronts, L2, bytes, floor, ratio
    std::string row(const std::string& name,
                    const std::array<std::string, 9>& cells) const {
        constexpr std::array<std::size_t, 9> kWidths = {9, 12, 9, 6, 12, 10, 10, 10, 7};
        std::string line = name + std::string(name_ - columns_of(name), ' ');
        for (std::size_t i = 0; i < cells.size(); ++i)
            if (shows(i)) line += fmt::format("{:>{}}", cells[i], kWidths[i]);
        return line.substr(0, line.find_last_not_of(' ') + 1);
    }

  private:
    bool shows(std::size_t column) const {
        constexpr std::size_t kWavefronts = 4, kRequests = 1, kLaunches = 0, kL2 = 5;
        constexpr std::array<std::size_t, 4> kGo = {kWavefronts, kRequests, kLaunches,
                                                    kL2};
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
            bytes_in_words(std::int64_t(c.l2_bytes())),
            bytes_in_words(std::int64_t(c.compulsory_bytes())),
            "",
            ""};
}

/// A file as a reader of the tree names it.
std::string in_the_tree(const std::string& file) {
    const std::string root = MOE_SOURCE_DIR "/";
    return file.starts_with(root) ? file.substr(root.size()) : file;
}

/// Sectors and wavefronts that a better order of the same accesses would not need.
std::uint64_t waste(const Counters& c) {
    return c.loads.sectors - c.loads.ideal_sectors + c.stores.sectors -
           c.stores.ideal_sectors + c.shared.wavefronts - c.shared.ideal_wavefronts;
}

}  // namespace

void print_kernels(const LayerProfile& profile, const std::string& component) {
    const TableParts parts({"wavefronts", "requests", "launches", "L2 traffic"},
                           [&](std::size_t n) { return Layout(profile, n).width(); });
    const Layout layout(profile, parts.left_out());
    fmt::print("{}\n",
               layout.row(kHead, {"launches", "requests", "sect/req", "eff", "wavefronts",
                                  "L2", "bytes", "floor", "ratio"}));
    for (const StepProfile& step : profile.steps) {
        if (!belongs_to(step.step, component)) continue;
        const Counters sum = step.sum();
        auto head = cells(sum, step.launches());
        if (step.floor.total_bytes() > 0) {
            head[7] = bytes_in_words(step.floor.total_bytes());
            head[8] = fmt::format("{:.1f}x", double(sum.compulsory_bytes()) /
                                                 double(step.floor.total_bytes()));
        }
        fmt::print("{}\n", layout.row(name_of(step), head));
        for (const KernelUse& use : step.kernels)
            fmt::print("{}\n", layout.row("  " + short_name(use.kernel),
                                          cells(use.counters, use.launches)));
    }
    fmt::print("{}", parts.note("--json"));
}

void print_bounds(const LayerProfile& profile, const std::string& component) {
    fmt::print("\nbound on {} (model), microseconds\n", kH100.name);
    fmt::print("{:<26}{:>9}{:>9}{:>9}{:>9}{:>9}  {}\n", "", "HBM", "L2", "shared",
               "tensor", "launch", "limit");
    for (const StepProfile& step : profile.steps) {
        if (!belongs_to(step.step, component)) continue;
        const Bound bound = bound_of(step.sum(), step.launches(), kH100);
        const std::string name = name_of(step);
        std::string line = name + std::string(26 - columns_of(name), ' ');
        for (const double term :
             {bound.hbm, bound.l2, bound.shared, bound.tensor, bound.launch})
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
    std::set<std::string> shown;
    for (const StepProfile& step : profile.steps)
        if (belongs_to(step.step, component))
            for (const KernelUse& use : step.kernels) shown.insert(use.kernel);
    struct Row {
        std::string place, kernel;
        const Counters* counters;
    };
    std::vector<Row> rows;
    for (const auto& kernel : profile.report.kernels)
        for (const auto& line : kernel.lines)
            if (shown.contains(kernel.name) && waste(line.counters) > 0)
                rows.push_back({fmt::format("{}:{}", in_the_tree(line.file), line.line),
                                kernel.name, &line.counters});
    std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
        return waste(*a.counters) > waste(*b.counters);
    });
    if (rows.empty()) return;
    fmt::print("\nworst lines: sectors and wavefronts beyond the ideal\n");
    rows.resize(std::min<std::size_t>(rows.size(), 5));
    for (const Row& row : rows)
        fmt::print("{:>12}  {:<28}  {} sectors/request, {}{}\n",
                   grouped(std::int64_t(waste(*row.counters))), row.place,
                   sectors_per_request(*row.counters), efficiency(*row.counters),
                   row.counters->shared.most_ways > 1
                       ? fmt::format(", {} ways", row.counters->shared.most_ways)
                       : "");
}

void print_findings(const LayerProfile& profile) {
    for (const auto& finding : profile.report.findings)
        fmt::print("✗ {}{}\n", finding.text,
                   finding.times > 1 ? fmt::format(" ({} times)", finding.times) : "");
    if (profile.report.findings.empty())
        fmt::print("✓ no races and no reads of unwritten memory\n");
}

std::string annotated(const LayerProfile& profile, const std::string& path,
                      const std::string& source) {
    std::map<int, Counters> by_line;
    const std::string wanted = in_the_tree(path);
    for (const auto& kernel : profile.report.kernels)
        for (const auto& line : kernel.lines)
            if (("/" + in_the_tree(line.file)).ends_with("/" + wanted))
                by_line[line.line] += line.counters;
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
