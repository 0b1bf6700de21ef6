/// @file
/// What a stage of `moe gpu-check` is: which programs it runs, and how their traces are
/// judged. The table in stages.cpp lists them; runner.h runs any such table.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/gpu_check/child.h"

namespace moe::gpu_check {

/// What a stage knows when it starts.
struct Setting {
    bool dry = false;  ///< on this CPU; what needs a GPU is left out by name
    std::string stem =
        {};               ///< its files begin with this: "DIR/03-tests", "DIR/03-tests.2"
    double budget = 0.0;  ///< seconds that it has now, for all its programs
};

/// What a stage is to run.
struct Plan {
    std::vector<Program> programs =
        {};                    ///< one after another; the runner names their logs
    std::string skipped = {};  ///< why there are none: "compute-sanitizer: not found"
};

/// A program that has run.
struct Trace {
    Program program;
    Ending ending;
};

/// What a stage has shown.
struct Finding {
    enum class Verdict { passed, failed, skipped };
    Verdict verdict = Verdict::passed;
    std::string detail = {};  ///< one line
    nlohmann::ordered_json details =
        {};  ///< whatever is worth keeping, for the stage's file
    /// What it adds to the merged result: fields of bench/result.h, as JSON.
    nlohmann::ordered_json result = {};
};

struct Stage {
    std::string name;
    double budget;             ///< seconds
    bool needs_device = true;  ///< it says little on a GPU that kernels do not run on
    std::function<Plan(const Setting&)> plan;
    /// Judges programs that ran; also when some did not end well.
    std::function<Finding(const Setting&, const std::vector<Trace>&)> judge;
    /// Where it is set: what to run next to learn more about what went wrong, or nothing.
    std::function<std::optional<Program>(const Setting&, const std::vector<Trace>&)>
        next = {};
};

/// The whole `moe gpu-check`, in the order in which it should end when time is short.
std::vector<Stage> all_stages();

/// Failed, and why, when a program did not end with exit code 0: how it ended, and the
/// last line that it wrote. Else passed, without a detail.
Finding judge_exit_codes(const std::vector<Trace>& traces);

/// The last line with something in it, or its end, of any file; nothing where there is
/// none.
std::string last_line(const std::string& path);

}  // namespace moe::gpu_check
