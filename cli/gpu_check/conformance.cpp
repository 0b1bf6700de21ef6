#include "cli/gpu_check/conformance.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/gpu_check/gtest_output.h"
#include "cli/places.h"

namespace moe::gpu_check {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kMostRuns = 6;    // each but the last was ended by a test
constexpr std::size_t kMostAlone = 12;  // of the failed tests

std::string gtest_file(const Setting& setting, const std::string& label) {
    return setting.stem + (label.empty() ? "" : "." + label) + ".gtest.json";
}

Program tests(const Setting& setting, const std::string& label,
              const std::string& filter) {
    return {.label = label,
            .arguments = {tests_program(), "--gtest_filter=" + filter,
                          "--gtest_output=json:" + gtest_file(setting, label)}};
}

bool is_alone(const Trace& trace) {
    return trace.program.label.starts_with("alone");
}

/// What all runs that were not of one test have shown.
struct Shown {
    Shown(const Setting& setting, const std::vector<Trace>& traces) {
        for (const Trace& trace : traces) {
            if (is_alone(trace)) continue;
            ++runs;
            const std::string& label = trace.program.label;
            const ordered_json details =
                judge_tests(trace, gtest_file(setting, label)).details;
            whole = read_gtest_output(gtest_file(setting, label)).there;
            const auto begun_now = read_gtest_log(trace.program.log).begun;
            begun.insert(begun.end(), begun_now.begin(), begun_now.end());
            last_began = !begun_now.empty();
            for (const auto& test : details["failed"]) failed.push_back(test);
            for (const auto& test : details["skipped"]) skipped.push_back(test);
        }
    }
    std::size_t runs = 0;
    bool whole = false;       // the last run came to its end
    bool last_began = false;  // … or to a test, at least
    std::vector<std::string> begun;
    ordered_json failed = ordered_json::array(), skipped = ordered_json::array();
};

}  // namespace

Plan plan_conformance(const Setting& setting) {
    Program program = tests(setting, "", kConformanceTests);
    if (setting.dry) program.arguments.push_back("--gtest_list_tests");
    return {.programs = {program}};
}

std::optional<Program> next_conformance(const Setting& setting,
                                        const std::vector<Trace>& traces) {
    if (setting.dry) return std::nullopt;
    const Shown shown(setting, traces);
    const std::size_t alone = traces.size() - shown.runs;
    if (!shown.whole && shown.last_began && shown.runs < kMostRuns && alone == 0)
        return tests(
            setting, fmt::format("rest-{}", shown.runs),
            fmt::format("{}-{}", kConformanceTests, fmt::join(shown.begun, ":")));
    if (alone >= std::min(shown.failed.size(), kMostAlone)) return std::nullopt;
    return tests(setting, fmt::format("alone-{}", alone + 1),
                 shown.failed[alone]["test"].get<std::string>());
}

Finding judge_conformance(const Setting& setting, const std::vector<Trace>& traces) {
    Finding finding;
    if (setting.dry) {
        finding = judge_exit_codes(traces);
        const int count = count_listed_tests(gtest_file(setting, ""));
        finding.details = {{"listed", count}};
        finding.detail += fmt::format("{} tests listed; they run on a GPU", count);
        if (count == 0) finding.verdict = Finding::Verdict::failed;
        return finding;
    }
    Shown shown(setting, traces);
    std::size_t alone = 0;
    for (const Trace& trace : traces)
        if (is_alone(trace) && alone < shown.failed.size())
            shown.failed[alone++]["passes_alone"] =
                judge_tests(trace, gtest_file(setting, trace.program.label)).verdict ==
                Finding::Verdict::passed;
    ordered_json disagreements = ordered_json::array();
    for (const auto& test : shown.failed)
        if (!test.value("passes_alone", false))
            disagreements.push_back(
                {{"test", test["test"]}, {"message", test["message"]}});
    finding.details = {{"run", shown.begun.size() - shown.skipped.size()},
                       {"failed", shown.failed},
                       {"skipped", shown.skipped}};
    finding.result = {{"disagreements", disagreements}};
    finding.detail = fmt::format("{} tests", finding.details["run"].get<int>());
    if (!disagreements.empty())
        finding.detail += fmt::format(", {} disagree: {}{}", disagreements.size(),
                                      disagreements[0]["test"].get<std::string>(),
                                      disagreements.size() > 1 ? ", …" : "");
    if (const auto spoilt = shown.failed.size() - disagreements.size(); spoilt > 0)
        finding.detail += fmt::format(", {} failed, but not alone", spoilt);
    if (!shown.whole) finding.detail += ", not all: " + in_words(traces.back().ending);
    if (!shown.failed.empty() || !shown.whole || shown.begun.empty())
        finding.verdict = Finding::Verdict::failed;
    return finding;
}

}  // namespace moe::gpu_check
