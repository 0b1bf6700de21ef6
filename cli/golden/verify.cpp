// verify.cpp: `moe verify`, golden cases through every chosen tier and precision.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/compare/comparison.h"
#include "cli/golden/golden.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/terminal.h"
#include "core/error.h"
#include "core/known_names.h"

namespace moe {
namespace {

struct VerifyOptions {
    std::vector<std::string> files, tiers, dtypes;
    std::string spec;
    std::string dispatcher_type;  // "all", or one; empty: each file's own
    bool json = false;
};

/// "case", or "case through allgather" where the user asked for dispatchers.
std::string title(const GoldenCase& golden, const VerifyOptions& options) {
    return options.dispatcher_type.empty()
               ? golden.name
               : golden.name + " through " + golden.config.moe_token_dispatcher_type;
}

/// Where the line has no room for the bound, its share alone.
void print_check(const TensorCheck& check) {
    const bool narrow = terminal_width() < 92;
    std::string line =
        fmt::format("    {} {:<{}} ", check.ok ? "✓" : "✗", check.name, narrow ? 44 : 42);
    if (check.bound == 0.0) {
        line += check.ok ? "exactly equal" : check.detail;
    } else {
        const double share = 100.0 * check.error / check.bound;
        line += narrow ? fmt::format("{:.1e} {:5.1f} % of bound  ", check.error, share)
                       : fmt::format("error {:<9.2e} bound {:<9.2e} {:5.1f} %  ",
                                     check.error, check.bound, share);
        line += check.detail;
    }
    line.erase(line.find_last_not_of(' ') + 1);
    fmt::print("{}\n", wrapped(line, 8));
}

void print_result(const std::string& title, const CaseResult& result) {
    fmt::print("{}\n", wrapped(fmt::format("{} {}  {}{}", result.ok ? "✓" : "✗", title,
                                           to_string(result.spec),
                                           result.spec.is_emulated() ? ", emulated" : ""),
                               4));
    if (const auto step = result.first_deviation())
        fmt::print("    {}\n", begins_at(*step));
    for (const TensorCheck& check : result.checks) print_check(check);
}

/// One JSON object on one line. An infinite error (expected zero, got something) is null.
void print_json(const CaseResult& result, const DispatcherCase& subject,
                const VerifyOptions& options) {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
    for (const TensorCheck& check : result.checks) {
        nlohmann::ordered_json entry = {{"name", check.name},
                                        {"ok", check.ok},
                                        {"error", check.error},
                                        {"bound", check.bound}};
        if (!check.ok) entry["detail"] = check.detail;
        tensors.push_back(entry);
    }
    nlohmann::ordered_json object = {{"case", result.case_name}};
    if (!options.dispatcher_type.empty()) {
        object["dispatcher"] = subject.golden.config.moe_token_dispatcher_type;
        object["not_compared"] = subject.left_out;
    }
    if (const ComponentSpec& all = result.spec.experts;
        result.spec == ModuleSpec::uniform(all)) {
        object["tier"] = all.tier;
        object["dtype"] = to_string(all.dtype);
    } else {
        object["spec"] = to_string(result.spec);
    }
    object["emulated"] = result.spec.is_emulated();
    object["ok"] = result.ok;
    object["tensors"] = tensors;
    fmt::print("{}\n", object.dump());
}

/// The dispatchers that a file is to go through.
std::vector<std::string> choose_dispatchers(const GoldenCase& golden,
                                            const VerifyOptions& options) {
    if (options.dispatcher_type.empty()) return {golden.config.moe_token_dispatcher_type};
    if (options.dispatcher_type != "all") return {options.dispatcher_type};
    return {kDispatcherTypes.begin(), kDispatcherTypes.end()};
}

/// The case through a dispatcher; nothing, and a line that says why, where the config
/// does not allow it.
std::optional<DispatcherCase> choose_case(const GoldenCase& golden,
                                          const std::string& type,
                                          const VerifyOptions& options) {
    try {
        return through_dispatcher(golden, type);
    } catch (const InputError& error) {
        if (options.json)
            fmt::print("{}\n", nlohmann::ordered_json({{"case", golden.name},
                                                       {"dispatcher", type},
                                                       {"skipped", error.what()}})
                                   .dump());
        else
            fmt::print("- {} through {}: skipped: {}\n", golden.name, type, error.what());
        return std::nullopt;
    }
}

bool is_long(const GoldenCase& golden) {
    const Tensor& hidden = golden.ranks[0].hidden_states;
    return estimate_memory(golden.config, hidden.dim(0) * hidden.dim(1) *
                                              std::int64_t(golden.ranks.size())) >
           kMuchMemory;
}

/// Verifies a case in every supplier; true when all values match.
bool verify_case(const DispatcherCase& subject, const std::vector<ModuleSpec>& specs,
                 const VerifyOptions& options) {
    const std::string shown = title(subject.golden, options);
    if (!options.json && !subject.left_out.empty())
        fmt::print(
            "- {}: not compared, because rows travel in another order than the file's: "
            "{}\n",
            shown, fmt::join(subject.left_out, ", "));
    bool ok = true;
    for (const ModuleSpec& spec : specs) {
        const std::string why =
            refusal(find_tier("spec", spec.experts.tier), subject.golden.config);
        if (options.tiers.empty() && !why.empty()) {
            if (!options.json)
                fmt::print("- {}  {}: skipped: {}\n", shown, to_string(spec), why);
            continue;
        }
        CaseResult result;
        try {
            Progress progress(is_long(subject.golden));
            progress(shown + "  " + to_string(spec));
            result = verify_golden(subject.golden, spec);
        } catch (const InputError& error) {
            throw InputError(subject.golden.path + ": " + error.what());
        }
        options.json ? print_json(result, subject, options) : print_result(shown, result);
        ok = ok && result.ok;
    }
    return ok;
}

enum class Outcome { matches, differs, skipped };

/// Verifies one file through every chosen dispatcher.
Outcome verify_file(const std::string& path, const std::vector<ModuleSpec>& specs,
                    const VerifyOptions& options) {
    const GoldenCase golden = load_golden(path);
    for (const std::string& name : golden.unknown_tensors)
        fmt::print(stderr, "moe: {}: {} is not a tensor name known here; not checked\n",
                   one_line(path), one_line(name));
    Outcome outcome = Outcome::skipped;
    for (const std::string& type : choose_dispatchers(golden, options))
        if (const auto subject = choose_case(golden, type, options)) {
            const bool ok = verify_case(*subject, specs, options);
            if (!ok || outcome == Outcome::skipped)
                outcome = ok ? Outcome::matches : Outcome::differs;
        }
    return outcome;
}

/// Every supplier of --tier and --dtype; with --spec that mix, and no more unless asked.
std::vector<ModuleSpec> choose_specs(const VerifyOptions& options) {
    std::vector<ModuleSpec> specs;
    if (options.spec.empty() || !options.tiers.empty() || !options.dtypes.empty())
        for (const ComponentSpec& supplier :
             choose_suppliers(options.tiers, options.dtypes))
            specs.push_back(ModuleSpec::uniform(supplier));
    if (!options.spec.empty())
        specs.push_back(parse_spec(options.spec, {"reference_cpu", DType::f32}));
    return specs;
}

std::vector<std::string> dispatcher_choices() {
    std::vector<std::string> choices(kDispatcherTypes.begin(), kDispatcherTypes.end());
    choices.push_back("all");
    return choices;
}

void check_dispatcher_type(const std::string& type) {
    const std::vector<std::string> known = dispatcher_choices();
    if (!type.empty() && std::find(known.begin(), known.end(), type) == known.end())
        reject_unknown("--moe-token-dispatcher-type", type, known);
}

int run_verify(const VerifyOptions& options) {
    const std::vector<ModuleSpec> specs = choose_specs(options);
    check_dispatcher_type(options.dispatcher_type);
    std::map<Outcome, int> count;
    int unreadable = 0;
    for (const std::string& path : options.files) {
        try {
            ++count[verify_file(path, specs, options)];
        } catch (const InputError& error) {
            fmt::print(stderr, "moe: {}\n", one_line(error.what()));
            ++unreadable;
        }
    }
    const int matching = count[Outcome::matches], skipped = count[Outcome::skipped];
    if (!options.json)
        fmt::print(
            "{} of {} files match{}{}\n", matching, options.files.size(),
            skipped > 0 ? fmt::format(", {} skipped", skipped) : "",
            unreadable > 0 ? fmt::format(", {} could not be run", unreadable) : "");
    const bool nothing_ran = skipped == int(options.files.size());
    return unreadable > 0 || nothing_ran ? kExitBadInput
           : count[Outcome::differs] > 0 ? kExitDiffers
                                         : kExitOk;
}

}  // namespace

void add_verify(CommandLine& line) {
    auto options = std::make_shared<VerifyOptions>();
    Command& command =
        line.add("verify",
                 "Run golden cases and compare with their expected values.\n"
                 "Exit code: 0 all match, 1 a value differs, 2 bad input.\n\n"
                 "Example: moe verify tests/golden/*.safetensors --dtype fp64");
    command.option("files", options->files, "Golden cases (.safetensors)").required();
    command.option("--tier", options->tiers, "Tiers to run (default: all)")
        .values(tier_names());
    command
        .option("--dtype", options->dtypes,
                "fp64, fp32, bf16 (default: all that the tier has)")
        .values(dtype_names());
    command.option("--spec", options->spec,
                   "A mix instead: component=tier:dtype,…, as in compare; what is "
                   "not named is reference_cpu:fp32");
    command
        .option("--moe-token-dispatcher-type", options->dispatcher_type,
                fmt::format(
                    "{}, or all: through other dispatchers than the file's too, as far "
                    "as the config allows",
                    fmt::join(kDispatcherTypes, ", ")))
        .values(dispatcher_choices());
    command.flag("--json", options->json, "One JSON object per file, tier and dtype");
    add_threads_flag(command);
    add_rung_flag(command);
    command.runs([options] { return run_verify(*options); });
}

}  // namespace moe
