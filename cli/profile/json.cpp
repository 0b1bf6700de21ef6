// json.cpp: a profile as data.

#include "cli/profile/bound.h"
#include "cli/profile/view.h"

namespace moe::profile {

using nlohmann::json;

namespace {

json requests(const cuda_on_cpu::observe::Requests& r) {
    return {{"requests", r.requests},
            {"sectors", r.sectors},
            {"ideal_sectors", r.ideal_sectors}};
}

json bound(const Counters& c, std::int64_t launches) {
    const Bound b = bound_of(c, launches, kH100);
    return {{"gpu", kH100.name},    {"is", "model"},        {"hbm_s", b.hbm},
            {"l2_s", b.l2},         {"l1_s", b.l1},         {"shared_s", b.shared},
            {"tensor_s", b.tensor}, {"launch_s", b.launch}, {"limit", b.limit()}};
}

const char* kind_of(const cuda_on_cpu::observe::Finding& finding) {
    using Kind = cuda_on_cpu::observe::Finding::Kind;
    return finding.kind == Kind::race            ? "race"
           : finding.kind == Kind::uninitialised ? "uninitialised"
                                                 : "out_of_bounds";
}

}  // namespace

json to_json(const Counters& c) {
    return {{"loads", requests(c.loads)},
            {"stores", requests(c.stores)},
            {"atomics", requests(c.atomics)},
            {"atomic_degree", c.atomic_degree},
            {"shared",
             {{"requests", c.shared.requests},
              {"wavefronts", c.shared.wavefronts},
              {"ideal_wavefronts", c.shared.ideal_wavefronts},
              {"most_ways", c.shared.most_ways}}},
            {"instructions", c.instructions},
            {"divergent", c.divergent},
            {"barriers", c.barriers},
            {"compulsory_bytes", c.compulsory_bytes()},
            {"requested_bytes", c.requested_bytes()},
            {"async_bytes", c.async_bytes},
            {"mma_flops", c.mma_flops}};
}

json to_json(const LayerProfile& profile) {
    json steps = json::array(), kernels = json::array(), findings = json::array();
    for (const StepProfile& step : profile.steps) {
        json uses = json::array();
        for (const KernelUse& use : step.kernels)
            uses.push_back({{"kernel", use.kernel},
                            {"launches", use.launches},
                            {"counters", to_json(use.counters)},
                            {"bound", bound(use.counters, use.launches)}});
        const auto number = [&](Step Steps::*which) {
            return step.steps ? json(int((*step.steps).*which)) : json();
        };
        steps.push_back(
            {{"step", number(&Steps::first)},
             {"last_step", number(&Steps::last)},
             {"title", step.steps ? title(step.steps->first) : "between the steps"},
             {"floor_formula", step.floor.formula},
             {"floor_bytes", step.floor.total_bytes()},
             {"bound", bound(step.sum(), step.launches())},
             {"kernels", uses}});
    }
    for (const auto& kernel : profile.report.kernels) {
        json lines = json::array();
        for (const auto& line : kernel.lines)
            lines.push_back({{"file", line.file},
                             {"line", line.line},
                             {"counters", to_json(line.counters)}});
        kernels.push_back({{"name", kernel.name},
                           {"launches", kernel.launches},
                           {"counters", to_json(kernel.total)},
                           {"lines", lines}});
    }
    for (const auto& finding : profile.report.findings)
        findings.push_back({{"kind", kind_of(finding)},
                            {"file", finding.file},
                            {"line", finding.line},
                            {"other_file", finding.other_file},
                            {"other_line", finding.other_line},
                            {"text", finding.text},
                            {"times", finding.times}});
    return {{"supplier", to_string(profile.spec)},
            {"emulated", true},
            {"tokens", profile.sizes.num_tokens},
            {"rows", profile.sizes.num_rows},
            {"host_waits", profile.report.host_waits},
            {"allocations", profile.report.allocations},
            {"peak_bytes", profile.report.peak_bytes},
            {"steps", steps},
            {"kernels", kernels},
            {"findings", findings}};
}

}  // namespace moe::profile
