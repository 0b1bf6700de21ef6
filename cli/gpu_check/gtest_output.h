/// @file
/// What moe_tests tells in JSON (--gtest_output) when it ends, and what its log tells
/// when it does not.
#pragma once

#include <string>
#include <vector>

#include "cli/gpu_check/stage.h"

namespace moe::gpu_check {

/// The rules of CUDA, on which hardware and executor must agree, as GoogleTest's filter.
inline constexpr const char* kConformanceTests = "Conformance*:Ptx*";

struct FailedTest {
    std::string name;     ///< "ConformanceWarp.ReductionsCoverTheMask"
    std::string message;  ///< "warp_test.cu:120: Expected equality of these values:"
};

struct GtestOutput {
    bool there = false;  ///< the program left the file: it ran to its end
    int run = 0;         ///< tests that ran, skipped ones not among them
    std::vector<FailedTest> failed;
    std::vector<std::string> skipped;
};

/// Reads GoogleTest's JSON; `there` is false when there is no such file or it is broken.
GtestOutput read_gtest_output(const std::string& path);

/// The tests that --gtest_list_tests wrote to GoogleTest's JSON: how many.
int count_listed_tests(const std::string& path);

/// What a log of GoogleTest's tells, for a program that did not come to its end.
struct GtestLog {
    std::vector<std::string> begun;  ///< in their order
    std::vector<FailedTest> failed;
};
GtestLog read_gtest_log(const std::string& log);

/// The judgement over a run of moe_tests whose JSON is at `path`: passed when it ran to
/// its end, ran a test, and none failed. `details` has all names.
Finding judge_tests(const Trace& trace, const std::string& path);

}  // namespace moe::gpu_check
