// gpu_check_traces_test.cpp: what `moe gpu-check` makes of the files that programs leave,
// and of those that they do not.

#include <fnmatch.h>
#include <signal.h>

#include "bench/result.h"
#include "cli/gpu_check/conformance.h"
#include "cli/gpu_check/gtest_output.h"
#include "cli/gpu_check/judges.h"
#include "cli/gpu_check/sanitizer.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using namespace gpu_check;

class GpuCheckTraces : public CliTest {
  protected:
    static Trace ended(Program program, int code) {
        return {std::move(program), {.kind = Ending::Kind::exited, .code = code}};
    }
};

TEST_F(GpuCheckTraces, FailedTestsAreNamedWithTheirFirstLine) {
    const std::string file = write("gtest.json", R"({"tests": 3, "testsuites": [
        {"name": "ConformanceWarp", "testsuite": [
          {"name": "Good", "status": "RUN", "result": "COMPLETED"},
          {"name": "Bad", "status": "RUN", "result": "COMPLETED", "failures": [
            {"failure": "/long/way/warp_test.cu:7\nExpected equality\n  1", "type": ""}]},
          {"name": "Left", "status": "RUN", "result": "SKIPPED"}]}]})");
    const Trace trace{{}, {.kind = Ending::Kind::exited, .code = 1}};
    const Finding finding = judge_tests(trace, file);
    EXPECT_EQ(finding.verdict, Finding::Verdict::failed);
    EXPECT_EQ(finding.detail, "2 tests, 1 failed: ConformanceWarp.Bad, 1 skipped");
    EXPECT_EQ(finding.details["failed"][0]["message"],
              "warp_test.cu:7: Expected equality");
}

TEST_F(GpuCheckTraces, ATestThatTakesTheProgramDownIsNamedAndSoAreThoseThatFailedBefore) {
    const std::string log = write(
        "log",
        "[ RUN      ] A.B\n/long/way/a_test.cu:7: Failure\nValue of: x\n  Actual: 1\n"
        "/long/way/a_test.cu:8: Failure\nanother\n[  FAILED  ] A.B (0 ms)\n"
        "[ RUN      ] A.C\n[       OK ] A.C (0 ms)\n[ RUN      ] A.D\n");
    const Trace trace{{.log = log}, {.kind = Ending::Kind::signalled, .code = SIGABRT}};
    const Finding finding = judge_tests(trace, path("none.json"));
    EXPECT_EQ(finding.verdict, Finding::Verdict::failed);
    EXPECT_EQ(finding.detail, "ended by a signal: Aborted in A.D");
    ASSERT_EQ(finding.details["failed"].size(), 2u);
    EXPECT_EQ(finding.details["failed"][0]["test"], "A.B");
    EXPECT_EQ(finding.details["failed"][0]["message"], "a_test.cu:7: Value of: x");
    EXPECT_EQ(finding.details["failed"][1]["test"], "A.D");
}

TEST_F(GpuCheckTraces, BehindATestThatEndsItsProcessTheRestRunsAndThenItAlone) {
    const Setting setting{.stem = path("02-conformance")};
    const auto filter = [](const std::optional<Program>& program) {
        return program ? program->arguments.at(1) : std::string("nothing");
    };
    const auto ran = [&](const std::string& label, const std::string& log, int code) {
        return Trace{{.label = label, .log = write("log." + label, log)},
                     {.kind = Ending::Kind::exited, .code = code}};
    };
    const std::string json = R"({"testsuites": [{"name": "PtxA", "testsuite": [
        {"name": "NAME", "status": "RUN", "result": "COMPLETED"}]}]})";
    const auto leave = [&](const std::string& label, const std::string& name) {
        std::string text = json;
        write("02-conformance." + label + ".gtest.json",
              text.replace(text.find("NAME"), 4, name));
    };

    std::vector<Trace> traces = {
        ran("", "[ RUN      ] PtxA.One\n[ RUN      ] PtxA.Two\n", 1)};
    EXPECT_EQ(filter(next_conformance(setting, traces)),
              "--gtest_filter=Conformance*:Ptx*-PtxA.One:PtxA.Two");
    traces.push_back(ran("rest-1", "[ RUN      ] PtxA.Three\n", 0));
    leave("rest-1", "Three");
    EXPECT_EQ(filter(next_conformance(setting, traces)), "--gtest_filter=PtxA.Two");

    Finding finding = judge_conformance(setting, traces);
    EXPECT_EQ(finding.verdict, Finding::Verdict::failed);
    EXPECT_EQ(finding.detail, "3 tests, 1 disagree: PtxA.Two");
    EXPECT_EQ(finding.result["disagreements"][0]["message"], "exit code 1");

    traces.push_back(ran("alone-1", "[ RUN      ] PtxA.Two\n", 0));
    leave("alone-1", "Two");
    EXPECT_EQ(filter(next_conformance(setting, traces)), "nothing");
    finding = judge_conformance(setting, traces);
    EXPECT_EQ(finding.verdict, Finding::Verdict::failed);
    EXPECT_EQ(finding.detail, "3 tests, 1 failed, but not alone");
    EXPECT_TRUE(finding.result["disagreements"].empty());
}

TEST_F(GpuCheckTraces, ASanitizerCountsOnlyWithTheTestsOwnMark) {
    const std::string clean = "========= ERROR SUMMARY: 0 errors\n";
    const auto judge = [&](const std::string& log, const char* tests) {
        const Setting setting{.stem = path("06-sanitizer")};
        if (tests) write("06-sanitizer.memcheck.gtest.json", tests);
        return judge_sanitizer(setting, {{{.label = "memcheck", .log = write("log", log)},
                                          {.kind = Ending::Kind::exited, .code = 0}}});
    };
    EXPECT_EQ(judge(clean, nullptr).verdict, Finding::Verdict::failed);
    EXPECT_EQ(judge(clean, R"({"tests": 0, "testsuites": []})").verdict,
              Finding::Verdict::failed);
    const char* one = R"({"testsuites": [{"name": "A", "testsuite": [
        {"name": "B", "status": "RUN", "result": "COMPLETED"}]}]})";
    EXPECT_EQ(judge(clean, one).verdict, Finding::Verdict::passed);
    EXPECT_EQ(judge(clean, one).detail, "memcheck 0 in 1 tests");
    EXPECT_EQ(judge("========= ERROR SUMMARY: 2 errors\n", one).verdict,
              Finding::Verdict::failed);
    EXPECT_EQ(judge("no summary\n", one).verdict, Finding::Verdict::failed);
    EXPECT_EQ(count_sanitizer_errors(
                  write("log",
                        "========= RACECHECK SUMMARY: 3 hazards displayed (3 errors, 0 "
                        "warnings)\n")),
              3);
}

TEST(GpuCheck, EveryPatternOfTheSanitizersTestsFindsATest) {
    NEEDS_DEVICE();
    std::istringstream patterns(kSanitizerTests);
    const auto& unit = *testing::UnitTest::GetInstance();
    for (std::string pattern; std::getline(patterns, pattern, ':');) {
        int found = 0;
        for (int s = 0; s < unit.total_test_suite_count(); ++s) {
            const auto& suite = *unit.GetTestSuite(s);
            for (int t = 0; t < suite.total_test_count(); ++t) {
                const std::string name =
                    std::string(suite.name()) + "." + suite.GetTestInfo(t)->name();
                found += fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
            }
        }
        EXPECT_GT(found, 0) << pattern;
    }
}

TEST_F(GpuCheckTraces, FactsBecomePartOfTheResultOrSayWhatIsWrong) {
    const auto judge = [&](const std::string& text) {
        return judge_facts({ended({.output = write("info.json", text)}, 0)});
    };
    const Finding finding = judge(
        R"({"kind": "gpu", "device": "NVIDIA H100", "facts": {"a": "b"},
            "commit": "0a1b"})");
    EXPECT_EQ(finding.detail, "NVIDIA H100, 1 facts");
    EXPECT_EQ(finding.result["commit"], "0a1b");
    for (const char* wrong : {"", "[]", "{", R"({"kind": "gpu", "device": "X"})",
                              R"({"kind": "toaster", "device": "X", "facts": {}})",
                              R"({"kind": "gpu", "device": "X", "facts": {"sms": 132}})"})
        EXPECT_TRUE(Rejects([&] { judge(wrong); }, {"info.json"})) << wrong;
    EXPECT_EQ(judge_facts({ended({.log = write("log", "no such flag\n")}, 2)}).detail,
              "exit code 2: no such flag");
}

TEST_F(GpuCheckTraces, BenchsRunsAreKeptAlsoWhenAValueDiffers) {
    bench::Result measured;
    measured.created = "2026-11-27T22:04:05Z";
    measured.commit = "0a1b";
    measured.kind = "gpu";
    measured.device = "NVIDIA H100";
    measured.runs.resize(1);
    measured.runs[0].measurements.resize(2);
    for (bench::Measurement& measurement : measured.runs[0].measurements) {
        measurement.subject = "experts";
        measurement.pass = "forward";
    }
    const std::string file = write("bench.json", bench::to_json(measured).dump());
    const Finding finding = judge_bench({ended({}, 0)}, file);
    EXPECT_EQ(finding.verdict, Finding::Verdict::passed);
    EXPECT_EQ(finding.detail, "2 measurements");
    EXPECT_EQ(finding.result["runs"].size(), 1u);
    const Finding differing = judge_bench({ended({}, 1)}, file);
    EXPECT_EQ(differing.verdict, Finding::Verdict::failed);
    EXPECT_EQ(differing.detail, "2 measurements; exit code 1");
    EXPECT_EQ(differing.result["runs"].size(), 1u);
    EXPECT_EQ(judge_bench({ended({}, 2)}, path("none.json")).verdict,
              Finding::Verdict::failed);
    measured.runs.clear();
    EXPECT_EQ(
        judge_bench({ended({}, 0)}, write("bench.json", bench::to_json(measured).dump()))
            .verdict,
        Finding::Verdict::failed);
}

TEST_F(GpuCheckTraces, VerifyNamesWhatDiffersAndTheWorstShare) {
    const std::string good =
        R"({"case": "a", "tier": "t", "ok": true, "tensors": [)"
        R"({"name": "output", "ok": true, "error": 1e-7, "bound": 4e-7}]})";
    const std::string bad =
        R"({"case": "b", "tier": "t", "ok": false, "tensors": [)"
        R"({"name": "map", "ok": false, "error": null, "bound": 0.0}]})";
    const auto judge = [&](const std::string& lines, int code) {
        return judge_verify({ended({.output = write("lines", lines)}, code)});
    };
    EXPECT_EQ(judge(good + "\n", 0).verdict, Finding::Verdict::passed);
    EXPECT_EQ(judge(good + "\n", 0).detail, "1 of 1 match, worst 25 % of its bound");
    const Finding finding = judge(good + "\n" + bad + "\n{\"case\": \"to", 1);
    EXPECT_EQ(finding.verdict, Finding::Verdict::failed);
    EXPECT_EQ(finding.details["differing"][0]["case"], "b");
    EXPECT_EQ(finding.details["differing"][0]["tensors"][0], "map");
    EXPECT_EQ(judge("", 0).verdict, Finding::Verdict::failed);
}

TEST_F(GpuCheckTraces, CountersCountKernelsAndMayBeForbidden) {
    const auto judge = [&](const std::string& csv, int code) {
        return judge_counters({ended({}, code)}, write("csv", csv));
    };
    EXPECT_EQ(judge("==PROF== 1\n\"ID\",\"a\"\n\"\",\"ns\"\n\"0\",\"7\"\n", 0).detail,
              "1 kernels counted");
    EXPECT_EQ(judge("==PROF== 1\n", 0).verdict, Finding::Verdict::failed);
    EXPECT_EQ(judge("==ERROR== ERR_NVGPUCTRPERM - The user\n", 1).verdict,
              Finding::Verdict::skipped);
}

TEST_F(GpuCheckTraces, PeersTimesBecomePartOfTheResult) {
    const std::string file = write("peers.json", R"({"peers": [{"peer": "torch",
        "pass": "forward", "model": "mixtral_8x7b", "routing": "balanced",
        "tokens": 4096, "tflops": 300.5,
        "ms": {"median": 1.5, "p10": 1.4, "p90": 1.7, "count": 9}}]})");
    const Finding finding = judge_peers({ended({}, 0)}, file);
    EXPECT_EQ(finding.detail, "1 times of 1 peers");
    EXPECT_EQ(finding.result["peers"][0]["tokens"], 4096);
    EXPECT_TRUE(Rejects([&] { judge_peers({ended({}, 0)}, write("peers.json", "{}")); },
                        {"peers"}));
}

}  // namespace
}  // namespace moe::test
