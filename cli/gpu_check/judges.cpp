#include "cli/gpu_check/judges.h"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "bench/result.h"
#include "cli/files.h"
#include "cli/gpu_check/evidence.h"
#include "core/error.h"

namespace moe::gpu_check {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;
using Verdict = Finding::Verdict;

json read_json(const std::string& path) {
    return parse_json(path, read_file("file", path));
}

/// What a file adds to the result, once it is known to belong there.
void contribute(Finding& finding, const ordered_json& fields, const std::string& file) {
    check_contribution(fields, file);
    finding.result = fields;
}

/// Cases of golden files, counted over all lines of `moe verify --json`.
struct VerifyCount {
    int cases = 0, skipped = 0;
    double worst = 0.0;  // error as a share of its bound
    ordered_json worst_at, differing = ordered_json::array();

    void add(const json& line) {
        if (line.contains("skipped")) {
            ++skipped;
            return;
        }
        ++cases;
        ordered_json names = ordered_json::array();
        for (const json& tensor : line.at("tensors")) {
            if (!tensor.at("ok")) names.push_back(tensor.at("name").get<std::string>());
            const double bound = tensor.at("bound");
            if (bound <= 0.0 || !tensor.at("error").is_number()) continue;
            const double share = tensor.at("error").get<double>() / bound;
            if (share <= worst) continue;
            worst = share;
            worst_at = name(line);
            worst_at["tensor"] = tensor.at("name");
        }
        if (line.at("ok")) return;
        differing.push_back(name(line));
        differing.back()["tensors"] = names;
    }

  private:
    static ordered_json name(const json& line) {
        ordered_json result = {{"case", line.at("case")}};
        for (const char* field : {"dispatcher", "tier", "dtype", "spec"})
            if (line.contains(field)) result[field] = line[field];
        return result;
    }
};

}  // namespace

std::string last_line(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    constexpr std::streamoff kEnough = 300;  // bytes, for one line of a table
    if (file.seekg(0, std::ios::end))
        file.seekg(std::max<std::streamoff>(0, std::streamoff(file.tellg()) - kEnough));
    std::string last;
    for (std::string line; std::getline(file, line);)
        if (line.find_first_not_of(" \r\t") != std::string::npos) last = line;
    return one_line(last);
}

Finding judge_exit_codes(const std::vector<Trace>& traces) {
    for (const Trace& trace : traces) {
        if (trace.ending.ok()) continue;
        Finding finding{.verdict = Verdict::failed};
        if (!trace.program.label.empty()) finding.detail = trace.program.label + ": ";
        finding.detail += in_words(trace.ending);
        if (const std::string last = last_line(trace.program.log); !last.empty())
            finding.detail += ": " + last;
        return finding;
    }
    return {};
}

Finding judge_facts(const std::vector<Trace>& traces) {
    Finding finding = judge_exit_codes(traces);
    if (finding.verdict != Verdict::passed) return finding;
    const std::string& file = traces.front().program.output;
    const json facts = read_json(file);
    ordered_json fields;
    for (const char* name : {"kind", "device", "facts"}) {
        if (!facts.is_object() || !facts.contains(name))
            reject(file + " " + name, "nothing", "must be there");
        fields[name] = facts[name];
    }
    if (facts.contains("commit")) fields["commit"] = facts["commit"];
    contribute(finding, fields, file);
    finding.detail = fmt::format("{}, {} facts", facts["device"].get<std::string>(),
                                 facts["facts"].size());
    return finding;
}

Finding judge_verify(const std::vector<Trace>& traces) {
    VerifyCount count;
    for (const Trace& trace : traces) {
        std::ifstream lines(trace.program.output);
        for (std::string line; std::getline(lines, line);) {
            // The last line of what was stopped may be torn.
            const json object = json::parse(line, nullptr, /*allow_exceptions=*/false);
            if (object.is_object()) count.add(object);
        }
    }
    Finding finding = judge_exit_codes(traces);
    finding.details = {{"cases", count.cases},
                       {"differing", count.differing},
                       {"skipped", count.skipped},
                       {"worst_share", count.worst},
                       {"worst_at", count.worst_at}};
    const std::string counted = fmt::format("{} of {} match, worst {:.0f} % of its bound",
                                            count.cases - int(count.differing.size()),
                                            count.cases, 100.0 * count.worst);
    finding.detail = finding.detail.empty() ? counted : counted + "; " + finding.detail;
    if (count.cases == 0 || !count.differing.empty()) finding.verdict = Verdict::failed;
    return finding;
}

Finding judge_bench(const std::vector<Trace>& traces, const std::string& file) {
    Finding finding = judge_exit_codes(traces);
    // Values that differ from the reference's are its failure, and on file all the same.
    if (finding.verdict != Verdict::passed && !std::filesystem::exists(file))
        return finding;
    const json whole = read_json(file);
    const bench::Result result = bench::result_from_json(whole, file);
    // Its facts are those of the device, and clocks and power before and after
    ordered_json fields;
    for (const char* name : {"commit", "kind", "device", "facts", "runs"})
        fields[name] = whole[name];
    contribute(finding, fields, file);
    std::size_t measurements = 0;
    for (const bench::Run& run : result.runs)
        measurements += run.measurements.size() + run.waterfall.size();
    const std::string counted = fmt::format("{} measurements", measurements);
    finding.detail = finding.detail.empty() ? counted : counted + "; " + finding.detail;
    if (measurements == 0) finding.verdict = Verdict::failed;
    return finding;
}

Finding judge_counters(const std::vector<Trace>& traces, const std::string& file) {
    // The table: a line of names, one of units, one for each kernel; around it
    // "==PROF==".
    std::ifstream lines(file);
    int rows = 0;
    for (std::string line; std::getline(lines, line);) {
        if (line.find("ERR_NVGPUCTRPERM") != std::string::npos)
            return {.verdict = Verdict::skipped,
                    .detail = "ncu: this user may not read counters (ERR_NVGPUCTRPERM)"};
        rows += line.starts_with('"');
    }
    Finding finding = judge_exit_codes(traces);
    const int kernels = std::max(0, rows - 2);
    finding.details = {{"kernels", kernels}};
    if (finding.verdict == Verdict::passed)
        finding.detail = fmt::format("{} kernels counted", kernels);
    if (kernels == 0) finding.verdict = Verdict::failed;
    return finding;
}

Finding judge_peers(const std::vector<Trace>& traces, const std::string& file) {
    Finding finding = judge_exit_codes(traces);
    if (finding.verdict != Verdict::passed) return finding;
    const json whole = read_json(file);
    const json peers = whole.is_array() ? whole : whole.value("peers", json());
    contribute(finding, {{"peers", peers}}, file);
    std::set<std::string> names;
    for (const json& peer : peers) names.insert(peer.at("peer"));
    finding.detail = fmt::format("{} times of {} peers", peers.size(), names.size());
    return finding;
}

}  // namespace moe::gpu_check
