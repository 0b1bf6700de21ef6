/// @file
/// compute-sanitizer's tools, each over the same few tests.
#pragma once

#include <string>

#include "cli/gpu_check/stage.h"

namespace moe::gpu_check {

/// The tests that run under every tool: each kernel once, at small sizes.
extern const char* const kSanitizerTests;

/// A run for each of memcheck, racecheck, initcheck and synccheck.
Plan plan_sanitizer(const Setting& setting);

/// Passed when every tool found nothing, in tests that did run.
Finding judge_sanitizer(const Setting& setting, const std::vector<Trace>& traces);

/// What a tool's log sums up: "ERROR SUMMARY: 3 errors", "RACECHECK SUMMARY: 1 hazard …";
/// -1 when it sums up nothing.
int count_sanitizer_errors(const std::string& log);

}  // namespace moe::gpu_check
