#include <string_view>

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
    // The executor's threads do not survive a fork, so each death test starts afresh.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    testing::InitGoogleTest(&argc, argv);
    moe::test::report_failures(argv[0]);
    testing::UnitTest::GetInstance()->listeners().Append(new SkipWithoutDevice);
    return RUN_ALL_TESTS();
}
