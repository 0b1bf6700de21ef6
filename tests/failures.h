/// @file
/// What a test program says when something fails: little of each failure, at the end all
/// names, and of a crash the test that ran.
#pragma once

namespace moe::test {

/// To be called once, after testing::InitGoogleTest(). Of a test the first few failures
/// are printed and the rest is counted; after many failed tests only names follow. A
/// failing run ends with the failed tests' names and how to run one again:
/// MOE_TEST_COMMAND of the environment, or `program`, with --gtest_filter. A signal that
/// ends the program (SIGSEGV, SIGABRT, …) first names the test on stderr. A death test's
/// own process is left as it is. With MOE_TEST_SHARD in the environment, lines that
/// begin with "moe-shard" say what was run, instead of a summary, for `./moe test` to sum
/// up. Programs that tests start see neither this variable nor GoogleTest's of shards.
/// @param program  argv[0]; must outlive the tests
void report_failures(const char* program);

}  // namespace moe::test
