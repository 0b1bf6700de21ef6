#include <string_view>

#include "cli/commands.h"
#include "cli/start.h"
#include "tests/failures.h"
#include "tests/support.h"

namespace {

/// Tests that are written in .cu files run kernels.
class SkipWithoutDevice : public testing::EmptyTestEventListener {
    void OnTestStart(const testing::TestInfo& test) override {
        using moe::test::missing_device;
        if (std::string_view(test.file()).ends_with(".cu")) NEEDS_DEVICE();
    }
};

}  // namespace

int main(int argc, char** argv) {
    if (argc > 1 && std::string_view(argv[1]) == "--moe") {  // see as_moe.cpp
        moe::start(argv);
        return moe::run_program({argv + 2, argv + argc});
    }
    // The executor's threads do not survive a fork, so each death test starts afresh.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    testing::InitGoogleTest(&argc, argv);
    moe::test::report_failures(argv[0]);
    testing::UnitTest::GetInstance()->listeners().Append(new SkipWithoutDevice);
    return RUN_ALL_TESTS();
}
