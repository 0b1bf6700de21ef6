// What a failing test program prints: failing_tests.cpp, run as a child.

#include "tests/failures.h"

#include <signal.h>

#include "cli/gpu_check/child.h"
#include "cli/places.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using gpu_check::Ending;

class FailuresTest : public CliTest {
  protected:
    void SetUp() override {
        if (!std::filesystem::exists(program_))
            GTEST_SKIP() << "failing_tests is not here";  // in a bundle
    }

    struct Outcome {
        Ending ending;
        std::string out, err;
    };
    /// The program's tests that the filter names, as `./moe test` runs them.
    Outcome run(const std::string& filter,
                const std::vector<std::string>& more = {"--gtest_brief=1"},
                const std::vector<std::string>& environment = {}) const {
        static int number = 0;
        const std::string stem = path(std::to_string(++number));
        gpu_check::Program program{.arguments = {"env", "MOE_TEST_COMMAND=./moe test"},
                                   .output = stem + ".out",
                                   .log = stem + ".err"};
        const auto append = [&](const std::vector<std::string>& arguments) {
            program.arguments.insert(program.arguments.end(), arguments.begin(),
                                     arguments.end());
        };
        append(environment);
        append({program_, "--gtest_print_time=0", "--gtest_filter=" + filter});
        append(more);
        const Ending ending = gpu_check::run_child(program, 20.0, [](double) {});
        return {ending, read(program.output), read(program.log)};
    }

    const std::string program_ =
        std::filesystem::path(own_program()).parent_path() / "failing_tests";

    static int count(const std::string& text, const std::string& part) {
        int found = 0;
        for (std::size_t at = text.find(part); at != std::string::npos;
             at = text.find(part, at + 1))
            ++found;
        return found;
    }
};

TEST_F(FailuresTest, APassingRunEndsAsEver) {
    const Outcome outcome = run("Good.*");
    EXPECT_TRUE(outcome.ending.ok());
    EXPECT_EQ(outcome.out,
              "[==========] 1 test from 1 test suite ran.\n[  PASSED  ] 1 test.\n");
    EXPECT_EQ(outcome.err, "");
}

TEST_F(FailuresTest, AFailingRunEndsWithNamesAndHowToRunOneAgain) {
    const Outcome outcome = run("Good.*:Bad.Fails*");
    EXPECT_EQ(outcome.ending.code, 1);
    EXPECT_TRUE(outcome.out.ends_with(
        "[==========] 3 tests from 2 test suites ran.\n"
        "[  PASSED  ] 1 test.\n"
        "[  FAILED  ] Bad.FailsOnce\n"
        "[  FAILED  ] Bad.FailsOften\n"
        "2 tests failed. To run one again: ./moe test --gtest_filter=Bad.FailsOnce\n"))
        << outcome.out;
}

TEST_F(FailuresTest, TheLongOutputNamesThemOnce) {
    const Outcome outcome = run("Bad.FailsOnce", {});
    EXPECT_EQ(count(outcome.out, "[  FAILED  ] Bad.FailsOnce"), 2) << outcome.out;
    EXPECT_TRUE(outcome.out.ends_with(
        "1 test failed. To run one again: ./moe test --gtest_filter=Bad.FailsOnce\n"))
        << outcome.out;
}

TEST_F(FailuresTest, OfOneTestTheFirstThreeFailuresAreShown) {
    const Outcome outcome = run("Bad.FailsOften");
    EXPECT_EQ(count(outcome.out, ": Failure\n"), 3);
    EXPECT_NE(outcome.out.find("… and 12342 more failures of this test\n"
                               "[  FAILED  ] Bad.FailsOften\n"),
              std::string::npos)
        << outcome.out;
    EXPECT_EQ(run("Bad.FailsOnce").out.find("more failures"), std::string::npos);
}

TEST_F(FailuresTest, AMessageIsCutWhereItDrownsTheRest) {
    const Outcome outcome = run("Bad.TalksTooMuch");
    EXPECT_NE(outcome.out.find("xxx …\n"), std::string::npos);
    EXPECT_LT(outcome.out.size(), 4'000u);
}

TEST_F(FailuresTest, AfterTwentyFailedTestsOnlyNames) {
    const Outcome outcome = run("*Many.*");
    EXPECT_EQ(count(outcome.out, ": Failure\n"), 20 * 3);
    EXPECT_EQ(count(outcome.out, "… and 2 more failures of this test\n"), 20);
    EXPECT_EQ(
        count(outcome.out, "… of the tests that fail after these 20, only the names\n"),
        1);
    EXPECT_EQ(count(outcome.out, "[  FAILED  ] Numbers/Many.Fails/29"), 2);
    EXPECT_NE(outcome.out.find("\n30 tests failed. To run one again: ./moe test "
                               "--gtest_filter=Numbers/Many.Fails/0\n"),
              std::string::npos)
        << outcome.out;
    // Every iteration starts anew.
    EXPECT_EQ(
        count(run("*Many.*", {"--gtest_brief=1", "--gtest_repeat=2"}).out, ": Failure\n"),
        2 * 20 * 3);
}

TEST_F(FailuresTest, AFailureOutsideOfTestsHasTheNameOfItsSuite) {
    const Outcome outcome = run("BadSuite.*");
    EXPECT_EQ(outcome.ending.code, 1);
    EXPECT_NE(outcome.out.find("no suite"), std::string::npos);
    EXPECT_NE(outcome.out.find("[  FAILED  ] BadSuite.*: before or after its tests\n"),
              std::string::npos)
        << outcome.out;
}

TEST_F(FailuresTest, ACrashNamesItsTestAndKeepsItsSignal) {
    const auto expect = [&](const std::string& test, int number, const char* name) {
        const Outcome outcome = run(test);
        EXPECT_NE(outcome.err.find(
                      "\n[ CRASHED  ] " + test + ": " + name +
                      "\nTo run it again: ./moe test --gtest_filter=" + test + "\n"),
                  std::string::npos)
            << outcome.err;
        EXPECT_EQ(count(outcome.err, "CRASHED"), 1) << outcome.err;
#if !defined(__SANITIZE_ADDRESS__) && \
    (!defined(__SANITIZE_THREAD__) || defined(CUDA_ON_CPU_OBSERVE))
        EXPECT_EQ(outcome.ending.kind, Ending::Kind::signalled) << test;
        EXPECT_EQ(outcome.ending.code, number) << test;
#else  // which report it themselves, and exit
        EXPECT_FALSE(outcome.ending.ok()) << number;
        if (number != SIGABRT) {
            EXPECT_NE(outcome.err.find("Sanitizer"), std::string::npos) << outcome.err;
        }
#endif
    };
    expect("Crash.WritesToNowhere", SIGSEGV, "SIGSEGV");
    expect("Crash.FillsTheStack", SIGSEGV, "SIGSEGV");
    expect("Crash.Aborts", SIGABRT, "SIGABRT");
    expect("Crash.ThrowsInAThread", SIGABRT, "SIGABRT");
    expect("Crash.IsSentASignal", SIGFPE, "SIGFPE");
    expect("CrashingSuite.*", SIGABRT, "SIGABRT");
}

TEST_F(FailuresTest, AShardTellsWhatItRanAndItsChildrenNothing) {
    const std::vector<std::string> second = {"GTEST_TOTAL_SHARDS=2",
                                             "GTEST_SHARD_INDEX=1", "MOE_TEST_SHARD=yes"};
    const Outcome good = run("Shards.*", {"--gtest_brief=1"}, second);
    EXPECT_TRUE(good.ending.ok());
    EXPECT_EQ(good.out,
              "moe-shard to run 1\nmoe-shard ended a test\nmoe-shard passed 1\n"
              "moe-shard skipped 0\n");
    const Outcome bad = run("Good.*:BadSuite.*", {"--gtest_brief=1"}, second);
    EXPECT_EQ(bad.ending.code, 1);
    EXPECT_TRUE(
        bad.out.ends_with("moe-shard skipped 1\nmoe-shard failed BadSuite.*: "
                          "before or after its tests\n"))
        << bad.out;
}

TEST_F(FailuresTest, ADeathTestsOwnProcessSaysNothing) {
    EXPECT_EXIT(
        {
            std::filesystem::remove_all(folder_);
            std::fputs("only this\n", stderr);
            std::abort();
        },
        testing::KilledBySignal(SIGABRT), "^only this\n$");
}

}  // namespace
}  // namespace moe::test
