#include "cli/gpu_check/sanitizer.h"

#include <fmt/format.h>

#include <cstdlib>
#include <fstream>

#include "cli/gpu_check/gtest_output.h"
#include "cli/gpu_check/tools.h"
#include "cli/places.h"

namespace moe::gpu_check {
namespace {

constexpr const char* kTools[] = {"memcheck", "racecheck", "initcheck", "synccheck"};
constexpr const char* kErrorCode = "86";  // no exit code of moe_tests'

/// The mark that the tests leave. Some builds of the tool say "0 errors" of a program
/// that never started, so its word alone counts for nothing.
std::string mark_of(const Setting& setting, const std::string& tool) {
    return fmt::format("{}.{}.gtest.json", setting.stem, tool);
}

}  // namespace

const char* const kSanitizerTests =
    "*/LayerTest.*/naive_gpu_bf16:*/PermutationTest.*/naive_gpu_bf16:"
    "*/RouterTest.*/naive_gpu_fp32:*/SharedExpertsTest.*/naive_gpu_bf16:"
    "*/DroppingTest.*/naive_gpu_fp32:*/SinkhornTest.*/naive_gpu_fp32";

Plan plan_sanitizer(const Setting& setting) {
    const std::string program = find_tool("compute-sanitizer");
    if (program.empty()) return {.skipped = "compute-sanitizer: not found"};
    if (setting.dry) return {.skipped = program + ": not tried, needs a GPU"};
    Plan plan;
    for (const char* tool : kTools)
        plan.programs.push_back(
            {.label = tool,
             .arguments = {program, "--tool", tool, "--error-exitcode", kErrorCode,
                           tests_program(),
                           std::string("--gtest_filter=") + kSanitizerTests,
                           "--gtest_output=json:" + mark_of(setting, tool)}});
    return plan;
}

Finding judge_sanitizer(const Setting& setting, const std::vector<Trace>& traces) {
    Finding finding;
    finding.details = nlohmann::ordered_json::object();
    for (const Trace& trace : traces) {
        const std::string& tool = trace.program.label;
        const GtestOutput tests = read_gtest_output(mark_of(setting, tool));
        const int errors = count_sanitizer_errors(trace.program.log);
        finding.details[tool] = {{"tests", tests.run},
                                 {"failed", tests.failed.size()},
                                 {"errors", errors},
                                 {"ending", in_words(trace.ending)}};
        std::string found = fmt::format("{} in {} tests", errors, tests.run);
        if (!tests.there || tests.run == 0)
            found = "ran no test, " + in_words(trace.ending);
        else if (errors < 0)
            found = "no summary, " + in_words(trace.ending);
        else if (!tests.failed.empty())
            found += fmt::format(", {} failed", tests.failed.size());
        finding.detail += (finding.detail.empty() ? "" : "; ") + tool + " " + found;
        if (!tests.there || tests.run == 0 || !tests.failed.empty() || errors != 0 ||
            !trace.ending.ok())
            finding.verdict = Finding::Verdict::failed;
    }
    return finding;
}

int count_sanitizer_errors(const std::string& log) {
    std::ifstream file(log);
    int errors = -1;
    for (std::string line; std::getline(file, line);) {
        constexpr std::string_view kSummary = " SUMMARY: ";
        if (!line.starts_with("=========")) continue;
        if (const auto at = line.find(kSummary); at != std::string::npos)
            errors = std::max(errors, 0) + std::atoi(line.c_str() + at + kSummary.size());
    }
    return errors;
}

}  // namespace moe::gpu_check
