// Tests that fail and crash on purpose, for failures_test.cpp.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cstdlib>
#include <exception>
#include <string>
#include <thread>

#include "tests/failures.h"

namespace {

TEST(Good, Passes) {}

/// As a program that one of them starts would.
TEST(Shards, SeesNoShards) {
    for (const char* name : {"GTEST_TOTAL_SHARDS", "GTEST_SHARD_INDEX", "MOE_TEST_SHARD"})
        EXPECT_EQ(std::getenv(name), nullptr) << name;
}

TEST(Shards, SeesNoneEither) {
    EXPECT_EQ(std::getenv("GTEST_TOTAL_SHARDS"), nullptr);
}

TEST(Bad, FailsOnce) {
    EXPECT_EQ(1, 2);
}

TEST(Bad, FailsOften) {
    for (int i = 0; i < 12'345; ++i) EXPECT_EQ(i, -1);
}

TEST(Bad, TalksTooMuch) {
    ADD_FAILURE() << std::string(75'000, 'x');
}

class Many : public testing::TestWithParam<int> {};

TEST_P(Many, Fails) {
    for (int i = 0; i < 5; ++i) EXPECT_LT(GetParam(), 0) << "value " << GetParam();
}

INSTANTIATE_TEST_SUITE_P(Numbers, Many, testing::Range(0, 30));

class BadSuite : public testing::Test {
  protected:
    static void SetUpTestSuite() { FAIL() << "no suite"; }
};

TEST_F(BadSuite, Passes) {}

TEST(Crash, WritesToNowhere) {
    volatile int* nowhere = nullptr;
    *nowhere = 1;
}

/// As deep as the stack is.
int recurse(volatile int* above) {
    volatile int here[1024] = {};
    here[0] = *above + 1;
    return here[0] == 0 ? 0 : recurse(here) + here[1];
}
TEST(Crash, FillsTheStack) {
    volatile int start = 0;
    EXPECT_EQ(recurse(&start), 0);
}

TEST(Crash, Aborts) {
    std::abort();
}

TEST(Crash, ThrowsInAThread) {
    std::thread([] { throw std::string("nobody catches this"); }).join();
}

TEST(Crash, IsSentASignal) {
    raise(SIGFPE);
}

class CrashingSuite : public testing::Test {
  protected:
    static void TearDownTestSuite() { std::abort(); }
};

TEST_F(CrashingSuite, Passes) {}

}  // namespace

int main(int argc, char** argv) {
    const rlimit none = {};
    setrlimit(RLIMIT_CORE, &none);
    testing::InitGoogleTest(&argc, argv);
    moe::test::report_failures(argv[0]);
    return RUN_ALL_TESTS();
}
