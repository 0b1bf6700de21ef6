/// @file
/// The rules of CUDA, on a GPU: where hardware and executor disagree. A test that takes
/// its process down, or hangs, or spoils the device for those after it, must not hide
/// what the others say: the rest runs in a new process, and what failed runs alone.
#pragma once

#include <optional>

#include "cli/gpu_check/stage.h"

namespace moe::gpu_check {

/// All tests in one process; in a dry run, their list.
Plan plan_conformance(const Setting& setting);

/// The tests behind one that ended its process; then, each in a process of its own, those
/// that failed.
std::optional<Program> next_conformance(const Setting& setting,
                                        const std::vector<Trace>& traces);

/// Adds to the result, as disagreements, the tests that failed and that did not pass
/// alone.
Finding judge_conformance(const Setting& setting, const std::vector<Trace>& traces);

}  // namespace moe::gpu_check
