#include <gtest/gtest.h>

#include "tests/failures.h"

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    moe::test::report_failures(argv[0]);
    return RUN_ALL_TESTS();
}
