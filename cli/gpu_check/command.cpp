// command.cpp: `moe gpu-check`, its flags.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/commands.h"
#include "cli/gpu_check/runner.h"
#include "cli/gpu_check/tools.h"
#include "cli/words.h"
#include "core/error.h"
#include "core/known_names.h"
#include "gpu/tensor.h"

namespace moe {
namespace {

using namespace gpu_check;

constexpr double kLeastBudget = 5.0, kMostBudget = 86400.0;  // seconds

struct GpuCheckOptions {
    std::vector<std::string> stages;
    std::string out;
    double budget = 0.0;
    bool resume = false, dry = false;
};

std::vector<std::string> names_of(const std::vector<Stage>& table) {
    std::vector<std::string> names;
    for (const Stage& stage : table) names.push_back(stage.name);
    return names;
}

double sum_of_budgets(const std::vector<Stage>& table) {
    return std::accumulate(
        table.begin(), table.end(), 0.0,
        [](double sum, const Stage& stage) { return sum + stage.budget; });
}

std::set<std::string> choose_names(const std::vector<Stage>& table,
                                   const std::vector<std::string>& asked) {
    const std::vector<std::string> known = names_of(table);
    for (const std::string& name : asked)
        if (std::find(known.begin(), known.end(), name) == known.end())
            reject_unknown("--stages", name, known, "known are");
    const auto& chosen = asked.empty() ? known : asked;
    return {chosen.begin(), chosen.end()};
}

void require_device() {
    if (gpu::is_emulated())
        reject("gpu", "emulated on this CPU",
               "gpu-check needs a build for NVIDIA GPUs (preset cuda); --dry exercises "
               "its stages here");
    if (const std::string missing = gpu::missing_device(); !missing.empty())
        reject("gpu", "none", missing + "; --dry exercises the stages without one");
}

/// A dry run shows that the stages run, not that a GPU computes what it should.
void require_same_kind(const Evidence& evidence, const std::string& out, bool dry) {
    for (const auto& [number, record] : evidence.records())
        if (record.dry != dry)
            reject("--out", out,
                   record.dry ? "was a dry run: --resume needs --dry, too"
                              : "was no dry run: --resume goes on without --dry");
}

int run_gpu_check(const GpuCheckOptions& options) {
    const std::vector<Stage> table = all_stages();
    Request request;
    request.dry = options.dry;
    request.names = choose_names(table, options.stages);
    request.budget = options.budget;
    if (!(options.budget >= kLeastBudget && options.budget <= kMostBudget))
        reject("--budget", options.budget,
               fmt::format("must be from {} to {} seconds", kLeastBudget, kMostBudget));
    if (options.resume && options.out.empty())
        reject("--resume", "without --out", "needs the folder to go on in");
    if (!options.dry) {
        require_device();
        request.unfit = unfit_device();
    }
    const std::string out =
        options.out.empty() ? "gpu-check-" + utc_now("%Y%m%d-%H%M%S") : options.out;
    Evidence evidence = options.resume ? Evidence::resume(out) : Evidence::create(out);
    require_same_kind(evidence, out, options.dry);
    return run_stages(table, request, evidence);
}

}  // namespace

void add_gpu_check(CommandLine& line) {
    auto options = std::make_shared<GpuCheckOptions>();
    const std::vector<Stage> table = all_stages();
    options->budget = sum_of_budgets(table);
    Command& command = line.add(
        "gpu-check",
        "Check and measure everything on this machine's GPU, and leave the evidence.\n"
        "Exit code: 0 all passed (or lacks an optional tool), 1 a stage failed or went "
        "over its budget, 2 bad input, or no GPU.\n\n"
        "Example: moe gpu-check --stages facts,conformance");
    command
        .option("--stages", options->stages,
                fmt::format("Some of {} (default: all, in this order)",
                            fmt::join(names_of(table), ", ")))
        .values(names_of(table));
    command.option("--out", options->out,
                   "Folder for what it leaves, new or empty (default: gpu-check-, "
                   "then the date and time in UTC)");
    command.option(
        "--budget", options->budget,
        fmt::format("Seconds for all stages together (default {})", options->budget));
    command.flag("--resume", options->resume,
                 "Go on in the folder of --out: what has passed does not run again");
    command.flag("--dry", options->dry,
                 "Without a GPU: exercise every stage on this CPU, and name what "
                 "is left out");
    command.runs([options] { return run_gpu_check(*options); });
}

}  // namespace moe
