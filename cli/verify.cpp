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
    bool json = false;
};

void print_result(const CaseResult& result) {
    fmt::print("{} {}  {}\n", result.ok ? "✓" : "✗", result.case_name,
               to_string(result.supplier));
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
    const nlohmann::ordered_json object = {{"case", result.case_name},
                                           {"tier", result.supplier.tier},
                                           {"dtype", to_string(result.supplier.dtype)},
                                           {"ok", result.ok},
                                           {"tensors", tensors}};
    fmt::print("{}\n", object.dump());
}

/// Verifies one file in every supplier; true when all values match.
bool verify_file(const std::string& path, const std::vector<ComponentSpec>& suppliers,
                 bool json) {
    const GoldenCase golden = load_golden(path);
    for (const std::string& name : golden.unknown_tensors)
        fmt::print(stderr, "moe: {}: {} is not a tensor name known here; not checked\n",
                   one_line(path), one_line(name));
    if (golden.expected.empty())
        reject(path, "no expect.* tensor", "there must be something to check");
    bool ok = true;
    for (const ComponentSpec& supplier : suppliers) {
        CaseResult result;
        try {
            result = verify_golden(golden, supplier);
        } catch (const InputError& error) {
            throw InputError(path + ": " + error.what());
        }
        json ? print_json(result) : print_result(result);
        ok = ok && result.ok;
    }
    return ok;
}

int run_verify(const VerifyOptions& options) {
    const auto suppliers = choose_suppliers(options.tiers, options.dtypes);
    int differing = 0, unreadable = 0;
    for (const std::string& path : options.files) {
        try {
            differing += !verify_file(path, suppliers, options.json);
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
    command->add_flag("--json", options->json,
                      "One JSON object per file, tier and dtype");
    add_threads_flag(*command);
    command->callback(
        [&action, options] { action = [options] { return run_verify(*options); }; });
}

}  // namespace moe
