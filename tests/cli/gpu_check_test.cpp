// gpu_check_test.cpp: `moe gpu-check` as its user sees it, over tables of small stages
// that pass, fail, hang, die and talk too much.

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <thread>

#include "bench/result.h"
#include "cli/files.h"
#include "cli/gpu_check/runner.h"
#include "cli/places.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using namespace gpu_check;
using nlohmann::json;
namespace fs = std::filesystem;

/// A stage that is a shell's script.
Stage script(const std::string& name, const std::string& text, double budget = 5.0) {
    return {name, budget, false,
            [text](const Setting&) {
                return Plan{.programs = {{.arguments = {"/bin/sh", "-c", text}}}};
            },
            [](const Setting&, const std::vector<Trace>& traces) {
                return judge_exit_codes(traces);
            }};
}

/// A stage whose program leaves JSON that is to become part of the result.
Stage contributing(const std::string& name, const std::string& fields) {
    Stage stage = script(name, "exit 0");
    stage.judge = [fields](const Setting&, const std::vector<Trace>&) {
        return Finding{.result = nlohmann::ordered_json::parse(fields)};
    };
    return stage;
}

class GpuCheckTest : public CliTest {
  protected:
    GpuCheckTest() : out_(path("out")) {}

    /// Runs all stages of the table, with stdout captured.
    Output run(const std::vector<Stage>& table, double budget = 60.0,
               bool resume = false) {
        testing::internal::CaptureStdout();
        try {
            const int code = run_table(table, budget, resume);
            return {code, testing::internal::GetCapturedStdout(), ""};
        } catch (...) {
            testing::internal::GetCapturedStdout();
            throw;
        }
    }

    int run_table(const std::vector<Stage>& table, double budget, bool resume) {
        Request request{.budget = budget};
        for (const Stage& stage : table) request.names.insert(stage.name);
        Evidence evidence = resume ? Evidence::resume(out_) : Evidence::create(out_);
        return run_stages(table, request, evidence);
    }

    /// The same in a process that has `action` for SIGINT, and gets one when a script has
    /// written into the file "processes". @return its status, as of waitpid()
    int interrupt(void (*action)(int), const std::vector<Stage>& table) {
        const pid_t child = fork();
        if (child == 0) {
            signal(SIGINT, action);
            std::freopen("/dev/null", "w", stdout);
            _exit(run_table(table, 90.0, false));
        }
        if (child < 0) {
            ADD_FAILURE() << "no fork";
            return -1;
        }
        for (int i = 0; i < 3000 && read(path("processes")).empty(); ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        kill(child, SIGINT);
        int status = 0;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        return status;
    }

    /// The merged result, which must be one.
    bench::Result result() const {
        const std::string file = out_ + "/result.json";
        return bench::result_from_json(parse_json(file, read(file)), file);
    }
    json record(const std::string& name) const {
        return json::parse(read(out_ + "/" + name));
    }
    std::set<std::string> files() const {
        std::set<std::string> names;
        for (const auto& entry : fs::directory_iterator(out_))
            names.insert(entry.path().filename());
        return names;
    }
    /// The processes that a script wrote into a file, one number a line.
    std::vector<pid_t> processes(const std::string& file) const {
        std::istringstream words(read(path(file)));
        return {std::istream_iterator<pid_t>(words), {}};
    }

    std::string out_;
};

TEST_F(GpuCheckTest, EveryStageLeavesItsFilesAndTheExitCodeSaysWhetherAllPassed) {
    EXPECT_EQ(run({script("one", "echo out; echo err >&2")}).code, kExitOk);
    EXPECT_EQ(read(out_ + "/01-one.log"), "out\nerr\n");
    EXPECT_EQ(record("01-one.json")["status"], "passed");
    EXPECT_EQ(files(),
              (std::set<std::string>{"01-one.json", "01-one.log", "result.json"}));
    fs::remove_all(out_);

    const Output output = run({script("one", "true"), script("two", "echo why; exit 3"),
                               script("three", "kill -SEGV $$"), script("four", "true")});
    EXPECT_EQ(output.code, kExitDiffers);
    const auto stages = result().stages;
    ASSERT_EQ(stages.size(), 4u);
    EXPECT_EQ(stages.at(0).status, "passed");
    EXPECT_EQ(stages.at(1).status, "failed");
    EXPECT_EQ(stages.at(1).detail, "exit code 3: why");
    EXPECT_EQ(stages.at(2).status, "failed");
    EXPECT_EQ(stages.at(2).detail, "ended by a signal: Segmentation fault");
    EXPECT_EQ(stages.at(3).status, "passed");
    EXPECT_NE(output.out.find("✗ two"), std::string::npos) << output.out;
    EXPECT_TRUE(output.out.ends_with("moe results --add " + out_ + "/result.json\n"))
        << output.out;
}

TEST_F(GpuCheckTest, AMissingProgramIsNamed) {
    Stage stage = script("one", "");
    stage.plan = [](const Setting&) {
        return Plan{.programs = {{.arguments = {"/nowhere/at/all"}}}};
    };
    EXPECT_EQ(run({stage, script("two", "true")}).code, kExitDiffers);
    EXPECT_EQ(result().stages.at(0).detail,
              "could not be started: No such file or directory");
    EXPECT_EQ(result().stages.at(1).status, "passed");
}

TEST_F(GpuCheckTest, OverBudgetAllDescendantsEndEvenThoseThatRefuse) {
    // A stubborn child, a stubborn grandchild, and one in a session of its own
    const std::string file = path("processes");
    const auto start = std::chrono::steady_clock::now();
    const Output output =
        run({script("one",
                    fmt::format("trap '' TERM; echo $$ >> {0}\n"
                                "sh -c 'trap \"\" TERM; echo $$ >> {0}; while :; do "
                                "sleep 1; done' &\n"
                                "setsid sh -c 'echo $$ >> {0}; exec sleep 60' &\n"
                                "while :; do sleep 1; done",
                                file),
                    0.5),
             script("two", "true")});
    const std::chrono::duration<double> seconds =
        std::chrono::steady_clock::now() - start;
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_LT(seconds.count(), 5.0);
    EXPECT_EQ(result().stages.at(0).status, "over budget");
    EXPECT_EQ(result().stages.at(1).status, "passed");
    ASSERT_EQ(processes("processes").size(), 3u);
    for (const pid_t process : processes("processes"))
        EXPECT_NE(kill(process, 0), 0) << process << " is alive";
}

TEST_F(GpuCheckTest, WhomAProgramLeavesBehindEndsWithIt) {
    const std::string file = path("processes");
    EXPECT_EQ(run({script("one", fmt::format("setsid sleep 60 & echo $! >> {0}\n"
                                             "sleep 60 & echo $! >> {0}",
                                             file))})
                  .code,
              kExitOk);
    ASSERT_EQ(processes("processes").size(), 2u);
    for (const pid_t process : processes("processes"))
        EXPECT_NE(kill(process, 0), 0) << process << " is alive";
}

TEST_F(GpuCheckTest, MegabytesGoToTheLogAndOneLineToTheTable) {
    EXPECT_EQ(run({script("one", "head -c 5000000 /dev/zero | tr '\\0' x; exit 1")}).code,
              kExitDiffers);
    EXPECT_EQ(fs::file_size(out_ + "/01-one.log"), 5000000u);
    EXPECT_LT(result().stages.at(0).detail.size(), 400u);
}

TEST_F(GpuCheckTest, WhatAStageCallsForNextRunsWithinItsBudget) {
    Stage stage = script("one", "exit 1", 3.0);
    stage.next = [](const Setting&, const std::vector<Trace>& traces) {
        return std::optional(Program{.label = fmt::format("more-{}", traces.size()),
                                     .arguments = {"/bin/sleep", "0.6"}});
    };
    run({stage});
    EXPECT_TRUE(files().contains("01-one.more-1.log"));
    EXPECT_TRUE(files().contains("01-one.more-2.log"));
    EXPECT_LT(result().stages.at(0).seconds, 3.5);
}

TEST_F(GpuCheckTest, WhenTimeIsOutTheRestDoesNotStart) {
    const Output output = run({script("one", "sleep 1"), script("two", "true")}, 3.5);
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_EQ(result().stages.at(0).status, "passed");
    EXPECT_EQ(result().stages.at(1).status, "over budget");
    EXPECT_FALSE(files().contains("02-two.log"));
}

TEST_F(GpuCheckTest, ResumeRunsWhatHasNotPassedAndOverwritesNothing) {
    const std::string once =
        fmt::format("test -e {0} || {{ touch {0}; exit 1; }}", path("mark"));
    EXPECT_EQ(run({script("one", "echo first"), script("two", once)}).code, kExitDiffers);
    const std::string created = result().created, log = read(out_ + "/02-two.json");
    EXPECT_EQ(run({script("one", "echo second"), script("two", once)}, 60.0, true).code,
              kExitOk);
    EXPECT_EQ(read(out_ + "/01-one.log"), "first\n");
    EXPECT_EQ(read(out_ + "/02-two.json"), log);
    EXPECT_EQ(record("02-two.2.json")["status"], "passed");
    EXPECT_TRUE(files().contains("02-two.2.log"));
    EXPECT_EQ(result().created, created);
    EXPECT_EQ(result().stages.at(1).status, "passed");
}

TEST_F(GpuCheckTest, TheResultIsWholeWhenALaterStageTakesTheProgramDown) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        Stage deadly = script("two", "true");
        deadly.judge = [](const Setting&, const std::vector<Trace>&) -> Finding {
            raise(SIGKILL);
            return {};
        };
        std::freopen("/dev/null", "w", stdout);
        run_table({script("one", "true"), deadly}, 60.0, false);
        _exit(0);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    ASSERT_EQ(result().stages.size(), 1u);
    EXPECT_EQ(result().stages.at(0).status, "passed");
    // The second stage's traces stay, and it runs again beside them.
    EXPECT_EQ(run({script("one", "false"), script("two", "true")}, 60.0, true).code,
              kExitOk);
    EXPECT_TRUE(files().contains("02-two.log"));
    EXPECT_TRUE(files().contains("02-two.2.log"));
}

// What a shell starts in the background inherits an ignored SIGINT, these tests too: each
// says what it is about.
TEST_F(GpuCheckTest, CtrlCEndsTheChildAndKeepsWhatWasDone) {
    const auto slow = fmt::format("echo $$ > {}; exec sleep 60", path("processes"));
    const int status = interrupt(
        SIG_DFL,
        {script("one", "true"), script("two", slow, 60.0), script("three", "true")});
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), kExitDiffers);
    ASSERT_EQ(processes("processes").size(), 1u);
    EXPECT_NE(kill(processes("processes")[0], 0), 0);
    ASSERT_EQ(result().stages.size(), 2u);
    EXPECT_EQ(result().stages.at(0).status, "passed");
    EXPECT_EQ(result().stages.at(1).status, "failed");
    EXPECT_LT(result().stages.at(1).seconds, 30.0);
    EXPECT_TRUE(result().stages.at(1).detail.starts_with("interrupted"));
}

TEST_F(GpuCheckTest, InTheBackgroundCtrlCIsMeantForOthers) {
    const auto brief = fmt::format("echo $$ > {}; sleep 0.2", path("processes"));
    const int status = interrupt(SIG_IGN, {script("one", brief), script("two", "true")});
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), kExitOk);
    EXPECT_EQ(result().stages.size(), 2u);
}

TEST_F(GpuCheckTest, WhatStagesAddIsMergedAndWhatIsWrongStaysOut) {
    const Output output =
        run({contributing("facts", R"({"kind": "gpu", "device": "NVIDIA H100",
                                       "facts": {"driver": "570.1"}})"),
             contributing("conformance",
                          R"({"disagreements": [{"test": "A.B", "message": "no"}]})"),
             contributing("bench", R"({"runs": [{"workload": 1}]})")});
    EXPECT_EQ(output.code, kExitDiffers);
    const bench::Result merged = result();
    EXPECT_EQ(merged.kind, "gpu");
    EXPECT_EQ(merged.device, "NVIDIA H100");
    EXPECT_EQ(merged.facts.at("driver"), "570.1");
    ASSERT_EQ(merged.disagreements.size(), 1u);
    EXPECT_EQ(merged.disagreements[0].test, "A.B");
    EXPECT_TRUE(merged.runs.empty());
    EXPECT_EQ(merged.stages.at(2).status, "failed");
    EXPECT_NE(merged.stages.at(2).detail.find("bench runs["), std::string::npos)
        << merged.stages.at(2).detail;
}

TEST_F(GpuCheckTest, AnUnfitGpuFailsWhatNeedsItAndNothingElse) {
    Stage kernels = script("kernels", "true");
    kernels.needs_device = true;
    Request request{.budget = 60.0,
                    .names = {"facts", "kernels"},
                    .unfit = "compute capability = 7.5: needs 8.0 or newer"};
    Evidence evidence = Evidence::create(out_);
    testing::internal::CaptureStdout();
    EXPECT_EQ(run_stages({script("facts", "true"), kernels}, request, evidence),
              kExitDiffers);
    testing::internal::GetCapturedStdout();
    EXPECT_EQ(result().stages.at(0).status, "passed");
    EXPECT_EQ(result().stages.at(1).detail, request.unfit);
}

TEST(GpuCheck, TheTablesBudgetsFitIntoFiveMinutes) {
    double sum = 0.0;
    for (const Stage& stage : all_stages()) sum += stage.budget;
    EXPECT_LE(sum, 300.0);
}

TEST_F(GpuCheckTest, ADryRunExercisesTheStagesAndNamesWhatIsLeftOut) {
    const Program program{
        .arguments = {moe_program(), "gpu-check", "--dry", "--out", out_, "--stages",
                      "facts,conformance,tests,verify,sanitizer,ranks,counters,peers"},
        .log = path("log")};
    const Ending ending = run_child(program, 60.0, [](double) {});
    const std::string log = read(path("log"));
    EXPECT_TRUE(ending.ok()) << in_words(ending) << "\n" << log;
    EXPECT_NE(log.find("✓ facts"), std::string::npos) << log;
    EXPECT_NE(log.find("✓ conformance"), std::string::npos) << log;
    EXPECT_NE(log.find("✓ tests"), std::string::npos) << log;
    EXPECT_NE(log.find("✓ verify"), std::string::npos) << log;
    EXPECT_NE(log.find("✓ ranks"), std::string::npos) << log;
    EXPECT_NE(log.find("NCCL: not tried"), std::string::npos) << log;
    for (const char* stage : {"sanitizer", "counters", "peers"})
        EXPECT_NE(log.find(std::string("- ") + stage), std::string::npos) << log;
    EXPECT_GT(record("02-conformance.json")["details"]["listed"], 30);
    EXPECT_EQ(record("04-verify.json")["details"]["cases"], 4);  // 2 files, fp64 and fp32
    EXPECT_GT(record("04-verify.json")["details"]["worst_share"], 0.0);
    EXPECT_EQ(result().stages.size(), 8u);
    EXPECT_NE(result().device, "unknown");
}

TEST_F(GpuCheckTest, BadInputIsOneLineAndLeavesNothing) {
    const std::string dry = "gpu-check --dry --out " + out_;
    EXPECT_TRUE(IsBadInput(dry + " --stages facts,nothing", {"--stages", "nothing"}));
    for (const char* budget : {"0", "-3", "nan", "inf", "soon"})
        EXPECT_TRUE(IsBadInput(dry + " --budget " + budget, {"--budget"}));
    EXPECT_TRUE(IsBadInput("gpu-check --dry --resume", {"--resume", "--out"}));
    EXPECT_TRUE(
        IsBadInput(dry + " --resume", {"--out", "must be a folder of gpu-check"}));
    EXPECT_FALSE(fs::exists(out_));
    fs::create_directories(out_);
    write("out/mine.txt", "mine");
    EXPECT_TRUE(IsBadInput(dry, {"--out", "must be new, or an empty folder"}));
    EXPECT_EQ(files(), (std::set<std::string>{"mine.txt"}));
    EXPECT_TRUE(IsBadInput("gpu-check --dry --out " + path("out/mine.txt"), {"--out"}));
}

TEST_F(GpuCheckTest, ResumeRefusesRecordsThatAreBrokenOrOfAnotherKind) {
    run({script("one", "true")});
    EXPECT_TRUE(IsBadInput("gpu-check --dry --resume --out " + out_,
                           {"--out", "was no dry run"}));
    write("out/01-one.json", "{\"format\": \"moe-gpu-check-stage\"}");
    EXPECT_TRUE(IsBadInput("gpu-check --dry --resume --out " + out_,
                           {"01-one.json", "must be a stage's record"}));
    write("out/01-one.json", "{");
    EXPECT_TRUE(IsBadInput("gpu-check --dry --resume --out " + out_, {"must be JSON"}));
}

#ifdef MOE_EXECUTOR
TEST_F(GpuCheckTest, WithoutAGpuOnlyADryRunIsAllowed) {
    EXPECT_TRUE(IsBadInput("gpu-check --out " + out_, {"gpu", "emulated", "--dry"}));
    EXPECT_FALSE(fs::exists(out_));
}
#endif

}  // namespace
}  // namespace moe::test
