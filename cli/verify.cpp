// verify.cpp: `moe verify`, golden cases through every chosen tier and precision.

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "cli/golden.h"
#include "cli/options.h"
#include "core/error.h"

namespace moe {
namespace {

struct VerifyOptions {
    std::vector<std::string> files, tiers, dtypes;
    std::string spec;
    bool json = false;
};

void print_result(const CaseResult& result) {
    fmt::print("{} {}  {}{}\n", result.ok ? "✓" : "✗", result.case_name,
               to_string(result.spec), result.spec.is_emulated() ? ", emulated" : "");
    for (const TensorCheck& check : result.checks) {
        if (check.bound == 0.0)
            fmt::print("    {} {:<42} {}\n", check.ok ? "✓" : "✗", check.name,
                       check.ok ? "exactly equal" : check.detail);
        else
            fmt::print("    {} {:<42} error {:<9.2e} bound {:<9.2e} {:5.1f} %  {}\n",
                       check.ok ? "✓" : "✗", check.name, check.error, check.bound,
                       100.0 * check.error / check.bound, check.detail);
    }
}

/// One JSON object on one line. An infinite error (expected zero, got something) is null.
void print_json(const CaseResult& result) {
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

/// Verifies one file in every supplier; true when all values match.
bool verify_file(const std::string& path, const std::vector<ModuleSpec>& specs,
                 bool json) {
    const GoldenCase golden = load_golden(path);
    for (const std::string& name : golden.unknown_tensors)
        fmt::print(stderr, "moe: {}: {} is not a tensor name known here; not checked\n",
                   one_line(path), one_line(name));
    if (golden.expected.empty())
        reject(path, "no expect.* tensor", "there must be something to check");
    bool ok = true;
    for (const ModuleSpec& spec : specs) {
        CaseResult result;
        try {
            result = verify_golden(golden, spec);
        } catch (const InputError& error) {
            throw InputError(path + ": " + error.what());
        }
        json ? print_json(result) : print_result(result);
        ok = ok && result.ok;
    }
    return ok;
}

/// Every supplier of --tier and --dtype; with --spec that mix, and no more unless asked.
std::vector<ModuleSpec> choose_specs(const VerifyOptions& options) {
    std::vector<ModuleSpec> specs;
    if (options.spec.empty() || !options.tiers.empty() || !options.dtypes.empty())
        for (const ComponentSpec& supplier :
             choose_suppliers(options.tiers, options.dtypes))
            specs.push_back(ModuleSpec::uniform(supplier));
    if (!options.spec.empty())
        specs.push_back(ModuleSpec::parse(options.spec, {"reference_cpu", DType::f32}));
    return specs;
}

int run_verify(const VerifyOptions& options) {
    const std::vector<ModuleSpec> specs = choose_specs(options);
    int differing = 0, unreadable = 0;
    for (const std::string& path : options.files) {
        try {
            differing += !verify_file(path, specs, options.json);
        } catch (const InputError& error) {
            fmt::print(stderr, "moe: {}\n", one_line(error.what()));
            ++unreadable;
        }
    }
    if (!options.json)
        fmt::print(
            "{} of {} files match{}\n",
            int(options.files.size()) - differing - unreadable, options.files.size(),
            unreadable > 0 ? fmt::format(", {} could not be run", unreadable) : "");
    return unreadable > 0 ? kExitBadInput : differing > 0 ? kExitDiffers : kExitOk;
}

}  // namespace

void add_verify(CLI::App& app, Action& action) {
    auto options = std::make_shared<VerifyOptions>();
    CLI::App* command =
        app.add_subcommand("verify",
                           "Run golden cases and compare with their expected values.\n"
                           "Exit code: 0 all match, 1 a value differs, 2 bad input.\n\n"
                           "Example: moe verify tests/golden/*.safetensors --dtype fp64");
    command->add_option("files", options->files, "Golden cases (.safetensors)")
        ->required();
    command->add_option("--tier", options->tiers, "Tiers to run (default: all)")
        ->delimiter(',');
    command
        ->add_option("--dtype", options->dtypes,
                     "fp64, fp32, bf16 (default: all that the tier has)")
        ->delimiter(',');
    command->add_option("--spec", options->spec,
                        "A mix instead: component=tier:dtype,…, as in compare; what is "
                        "not named is reference_cpu:fp32");
    command->add_flag("--json", options->json,
                      "One JSON object per file, tier and dtype");
    add_threads_flag(*command);
    command->callback(
        [&action, options] { action = [options] { return run_verify(*options); }; });
}

}  // namespace moe
