#include "cli/profile/figures.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <string_view>

#include "cli/words.h"

namespace moe::profile {

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

std::string over_floor(const StepProfile& step) {
    const std::int64_t floor = step.floor.total_bytes();
    if (floor == 0) return "";
    return fmt::format("{:.1f}x", double(step.sum().compulsory_bytes()) / double(floor));
}

std::string short_name(const std::string& kernel) {
    constexpr std::string_view kEnding = "_kernel";
    return kernel.ends_with(kEnding) ? kernel.substr(0, kernel.size() - kEnding.size())
                                     : kernel;
}

std::string name_of(const StepProfile& step) {
    if (!step.steps) return "between the steps";
    return circled(*step.steps) + " " + title(step.steps->first) +
           (step.steps->is_fused() ? " …" : "");
}

std::string in_the_tree(const std::string& file) {
    const std::string root = MOE_SOURCE_DIR "/";
    return file.starts_with(root) ? file.substr(root.size()) : file;
}

bool is_file(const std::string& file, const std::string& path) {
    return ("/" + in_the_tree(file)).ends_with("/" + in_the_tree(path));
}

std::uint64_t waste(const Counters& c) {
    return c.loads.sectors - c.loads.ideal_sectors + c.stores.sectors -
           c.stores.ideal_sectors + c.shared.wavefronts - c.shared.ideal_wavefronts;
}

std::vector<WorstLine> worst_lines(const LayerProfile& profile,
                                   const std::string& component) {
    std::set<std::string> shown;
    for (const StepProfile& step : profile.steps)
        if (belongs_to(step.steps, component))
            for (const KernelUse& use : step.kernels) shown.insert(use.kernel);
    std::vector<WorstLine> lines;
    for (const auto& kernel : profile.report.kernels)
        for (const auto& line : kernel.lines)
            if (shown.contains(kernel.name) && waste(line.counters) > 0)
                lines.push_back({fmt::format("{}:{}", in_the_tree(line.file), line.line),
                                 line.counters});
    std::stable_sort(lines.begin(), lines.end(),
                     [](const WorstLine& a, const WorstLine& b) {
                         return waste(a.counters) > waste(b.counters);
                     });
    lines.resize(std::min<std::size_t>(lines.size(), 5));
    return lines;
}

}  // namespace moe::profile
