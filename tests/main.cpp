#include <gtest/gtest.h>

int main(int argc, char** argv) {
    // The executor's threads do not survive a fork, so each death test starts afresh.
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
