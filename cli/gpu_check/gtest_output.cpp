#include "cli/gpu_check/gtest_output.h"

#include <fmt/format.h>

#include <fstream>

#include "cli/files.h"
#include "core/error.h"

namespace moe::gpu_check {
namespace {

using nlohmann::json;

/// The file's JSON; null when there is none.
json read(const std::string& path) {
    try {
        return parse_json(path, read_file("file", path));
    } catch (const InputError&) {
        return json();
    }
}

/// "/long/way/warp_test.cu:120\nExpected …\n…" as "warp_test.cu:120: Expected …".
std::string first_lines(const std::string& failure) {
    const std::size_t end = failure.find('\n');
    const std::string where = failure.substr(0, end);
    std::string line = where.substr(where.find_last_of('/') + 1);
    if (end != std::string::npos) {
        const std::string rest = failure.substr(end + 1);
        line += ": " + rest.substr(0, rest.find('\n'));
    }
    return one_line(line);
}

void add(const json& suite, const json& test, GtestOutput& output) {
    const std::string name =
        suite.at("name").get<std::string>() + "." + test.at("name").get<std::string>();
    const std::string result = test.value("result", "");
    if (test.value("status", "") != "RUN" || result == "SUPPRESSED") return;
    if (result == "SKIPPED") {
        output.skipped.push_back(name);
        return;
    }
    ++output.run;
    if (test.contains("failures"))
        output.failed.push_back(
            {name, first_lines(test["failures"].at(0).at("failure").get<std::string>())});
}

std::string in_words(int count, const char* thing) {
    return fmt::format("{} {}{}", count, thing, count == 1 ? "" : "s");
}

}  // namespace

GtestOutput read_gtest_output(const std::string& path) {
    GtestOutput output;
    const json whole = read(path);
    try {
        for (const json& suite : whole.at("testsuites"))
            for (const json& test : suite.at("testsuite")) add(suite, test, output);
        output.there = true;
    } catch (const json::exception&) {
        return {};
    }
    return output;
}

int count_listed_tests(const std::string& path) {
    const json whole = read(path);
    int count = 0;
    if (whole.is_object() && whole.contains("testsuites"))
        for (const json& suite : whole["testsuites"])
            count += int(suite.value("testsuite", json::array()).size());
    return count;
}

GtestLog read_gtest_log(const std::string& log) {
    constexpr std::string_view kRun = "[ RUN      ] ", kFailed = "[  FAILED  ] ",
                               kFailure = ": Failure";
    GtestLog output;
    std::string message;  // the first of the test that runs
    std::ifstream file(log);
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with(kRun)) {
            output.begun.push_back(one_line(line.substr(kRun.size())));
            message.clear();
        } else if (line.ends_with(kFailure) && message.empty()) {
            const std::string where = line.substr(0, line.size() - kFailure.size());
            std::getline(file, line);
            message = first_lines(where + "\n" + line);
        } else if (line.starts_with(kFailed) && !output.begun.empty() &&
                   line.find(output.begun.back()) == kFailed.size()) {
            output.failed.push_back({output.begun.back(), message});
        }
    }
    return output;
}

Finding judge_tests(const Trace& trace, const std::string& path) {
    const GtestOutput output = read_gtest_output(path);
    Finding finding;
    const auto add_failed = [&finding](const FailedTest& test) {
        finding.details["failed"].push_back(
            {{"test", test.name}, {"message", test.message}});
    };
    finding.details = {
        {"run", output.run}, {"failed", json::array()}, {"skipped", output.skipped}};
    for (const FailedTest& test : output.failed) add_failed(test);
    if (!output.there) {
        finding.verdict = Finding::Verdict::failed;
        const GtestLog log = read_gtest_log(trace.program.log);
        const std::string ending = gpu_check::in_words(trace.ending);
        for (const FailedTest& test : log.failed) add_failed(test);
        if (log.begun.empty()) {
            finding.detail = ending + " before its first test";
        } else {
            finding.detail = ending + " in " + log.begun.back();
            // It took the program down, or hung.
            if (log.failed.empty() || log.failed.back().name != log.begun.back())
                add_failed({log.begun.back(), ending});
        }
        return finding;
    }
    finding.detail = in_words(output.run, "test");
    if (!output.failed.empty())
        finding.detail += fmt::format(", {} failed: {}{}", output.failed.size(),
                                      output.failed.front().name,
                                      output.failed.size() > 1 ? ", …" : "");
    else if (!trace.ending.ok())
        finding.detail += ", " + gpu_check::in_words(trace.ending);
    if (!output.skipped.empty())
        finding.detail += fmt::format(", {} skipped", output.skipped.size());
    if (!output.failed.empty() || !trace.ending.ok() || output.run == 0)
        finding.verdict = Finding::Verdict::failed;
    return finding;
}

}  // namespace moe::gpu_check
