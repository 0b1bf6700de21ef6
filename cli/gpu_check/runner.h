/// @file
/// Runs a table of stages, one after another, and leaves their files in a folder.
#pragma once

#include <set>
#include <string>

#include "cli/gpu_check/evidence.h"
#include "cli/gpu_check/stage.h"

namespace moe::gpu_check {

struct Request {
    double budget = 0.0;               ///< seconds for all stages together
    std::set<std::string> names = {};  ///< stages to run
    bool dry = false;
    /// Why kernels cannot run here: then the stages that need a GPU fail, and say so.
    std::string unfit = {};
};

/// Runs the stages of the table that `request` names and that have not passed already, as
/// far as time allows, and prints their summary.
/// @returns the exit code: kExitOk when all that was asked for has passed, or was skipped
///          for want of a tool; else kExitDiffers
int run_stages(const std::vector<Stage>& table, const Request& request,
               Evidence& evidence);

}  // namespace moe::gpu_check
