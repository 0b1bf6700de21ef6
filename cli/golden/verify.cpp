// verify.cpp: `moe verify`, golden cases through every chosen tier and precision.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "cli/commands.h"
#include "cli/golden/golden.h"
#include "cli/golden/layout.h"
#include "cli/golden/verify_view.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/ranks/options.h"
#include "cli/ranks/processes.h"
#include "core/error.h"
#include "core/given_experts.h"
#include "core/known_names.h"

namespace moe {
namespace {

struct VerifyOptions {
    std::vector<std::string> files, tiers, dtypes;
    std::string spec;
    std::string dispatcher_type;  // "all", or one; empty: each file's own
    bool json = false;
    std::unique_ptr<RankOptions> ranks;
};

/// The options on their way.
struct Verification {
    const VerifyOptions& options;
    std::vector<ModuleSpec> specs;
    distributed::Communicator* world = nullptr;  ///< null: ranks are threads
    bool speaks() const { return world == nullptr || world->rank() == 0; }
};

/// "case", or "case through allgather" where the user asked for dispatchers; and whether
/// it is an evaluation, and of how many micro-batches.
std::string title(const GoldenCase& golden, const VerifyOptions& options) {
    std::string title = golden.name;
    if (!options.dispatcher_type.empty())
        title += " through " + golden.config.moe_token_dispatcher_type;
    if (!golden.training) title += ", evaluation";
    if (const std::size_t more = golden.ranks[0].more_micro_batches.size(); more > 0)
        title += fmt::format(", {} micro-batches", more + 1);
    return title;
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
    std::int64_t tokens = 0;
    for (const GoldenInput& input : golden.ranks[0].micro_batches())
        tokens += input.hidden_states.dim(0) * input.hidden_states.dim(1);
    return estimate_memory(golden.config, tokens * std::int64_t(golden.ranks.size())) >
           kMuchMemory;
}

/// One case in one supplier. InputError that names the file, but for what ranks that are
/// processes have in common: they end together.
CaseResult verify_in(const Verification& run, const GoldenCase& golden,
                     const ModuleSpec& spec, const std::string& shown) {
    try {
        std::optional<Progress> progress;
        if (run.speaks()) progress.emplace(is_long(golden));
        if (progress) (*progress)(shown + "  " + to_string(spec));
        return verify_golden(golden, spec, run.world);
    } catch (const distributed::CommunicatorError& error) {
        if (run.world != nullptr) throw;
        throw InputError(golden.path + ": " + error.what());
    } catch (const InputError& error) {
        throw InputError(golden.path + ": " + error.what());
    }
}

/// What a file says by saying nothing.
std::string router_hint(const GoldenCase& golden, const CaseResult& result) {
    const bool open = !golden.config.moe_router_dtype && !golden.source_dtype;
    if (result.ok || !open || result.spec.router.dtype != DType::bf16) return "";
    return "moe_router_dtype is not set: this router is of bf16, and may choose other "
           "experts; where the source's was fp32 or fp64, moe_config has to say so";
}

/// Verifies a case in every supplier; true when all values match.
bool verify_case(const DispatcherCase& subject, const Verification& run) {
    const VerifyOptions& options = run.options;
    const std::string shown = title(subject.golden, options);
    if (!options.json && !subject.left_out.empty())
        fmt::print(
            "- {}: not compared, because rows travel in another order than the file's: "
            "{}\n",
            shown, fmt::join(subject.left_out, ", "));
    bool ok = true;
    for (const ModuleSpec& spec : run.specs) {
        const std::string why =
            refusal(find_tier("spec", spec.experts.tier), subject.golden.config);
        if (options.tiers.empty() && !why.empty()) {
            if (!options.json)
                fmt::print("- {}  {}: skipped: {}\n", shown, to_string(spec), why);
            continue;
        }
        CaseResult result = verify_in(run, subject.golden, spec, shown);
        // Ranks that are processes may have files of their own: one alone would wait
        if (!result.ok && run.world == nullptr)
            result.hint = layout_hint(subject.golden, result, [&](const GoldenCase& g) {
                return verify_in(run, g, spec, shown);
            });
        if (result.hint.empty()) result.hint = router_hint(subject.golden, result);
        options.json ? print_json(result, subject, !options.dispatcher_type.empty())
                     : print_result(shown, result);
        ok = ok && result.ok;
    }
    return ok;
}

enum class Outcome { matches, differs, skipped };

/// The setting without which the layer has no such tensor; "" for a name that it never
/// has. @param name  of a parameter, of what is expected of one, or of an input
std::string missing_setting(std::string name, const GoldenCase& golden) {
    const MoEConfig& config = golden.config;
    if (name.starts_with("rank."))
        name.erase(0, std::min(name.size(), name.find('.', 5)) + 1);
    name = without_micro_batch(name);
    if (!golden.training && (name.starts_with("expect.loss.") ||
                             (name.starts_with("expect.") && name.ends_with("_updated"))))
        return "training is false";
    const std::string gradient = "expect.grad.";
    if (name.starts_with(gradient)) name.erase(0, gradient.size());
    if (name == kTid2Eid || name == "input.token_ids")
        return "moe_router_hash_vocab_size is not set";
    if (name == "input.target_topk_idx") return "moe_enable_routing_replay is false";
    if (name == "router.expert_bias") return "moe_router_enable_expert_bias is false";
    if (name == "router.qb_beta")
        return "moe_router_load_balancing_type is not quantile_balancing";
    if (name == "router.bias" || name == "experts.linear_fc1.bias" ||
        name == "experts.linear_fc2.bias")
        return "add_bias_linear is false";
    if (name.starts_with("fc1_latent_proj.") || name.starts_with("fc2_latent_proj."))
        return config.moe_latent_size ? "add_bias_linear is false"
                                      : "moe_latent_size is not set";
    if (name != "shared_experts.gate_weight" &&
        name != "shared_experts.linear_fc1.weight" &&
        name != "shared_experts.linear_fc2.weight")
        return "";
    return config.moe_shared_expert_intermediate_size.value_or(0) > 0
               ? "moe_shared_expert_gate is false"
               : "moe_shared_expert_intermediate_size is not set";
}

/// Verifies one file through every chosen dispatcher.
Outcome verify_file(const GoldenCase& golden, const Verification& run) {
    for (const std::string& name : golden.unknown_tensors)
        if (run.speaks()) {
            const std::string setting = missing_setting(name, golden);
            fmt::print(stderr, "moe: {}: {} is {}\n", one_line(golden.path),
                       one_line(name),
                       setting.empty() ? "not a tensor name known here; not checked"
                                       : "not used: " + setting);
        }
    Outcome outcome = Outcome::skipped;
    for (const std::string& type : choose_dispatchers(golden, run.options))
        if (const auto subject = choose_case(golden, type, run.options)) {
            const bool ok = verify_case(*subject, run);
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

/// How the files fared.
struct Tally {
    std::map<Outcome, int> count;
    int unreadable = 0;

    /// Says it in a line. @return the exit code
    int conclude(const VerifyOptions& options) {
        const int skipped = count[Outcome::skipped];
        if (!options.json)
            fmt::print(
                "{} of {} files match{}{}\n", count[Outcome::matches],
                options.files.size(),
                skipped > 0 ? fmt::format(", {} skipped", skipped) : "",
                unreadable > 0 ? fmt::format(", {} could not be run", unreadable) : "");
        const bool nothing_ran = skipped == int(options.files.size());
        return unreadable > 0 || nothing_ran ? kExitBadInput
               : count[Outcome::differs] > 0 ? kExitDiffers
                                             : kExitOk;
    }
};

/// A case of that many ranks.
GoldenCase load_for_processes(const std::string& path, int ranks) {
    GoldenCase golden = load_golden(path);
    if (int(golden.ranks.size()) != ranks)
        reject(path + ": world_size", golden.ranks.size(),
               fmt::format("must be {}, the number of processes", ranks));
    return golden;
}

/// What the ranks must have been asked for alike.
std::string in_words(const std::vector<GoldenCase>& cases, const Verification& run) {
    nlohmann::ordered_json words = {{"dispatcher", run.options.dispatcher_type}};
    for (const ModuleSpec& spec : run.specs) words["specs"].push_back(to_string(spec));
    for (const GoldenCase& golden : cases)
        words["cases"].push_back({golden.name, config_to_json(golden.config)});
    return words.dump();
}

/// A rank that cannot go on ends all; what can be wrong with a file is seen before.
int verify_over_processes(Verification run) {
    const RankOptions& ranks = *run.options.ranks;
    const int count = ranks.ranks();
    std::vector<GoldenCase> cases;
    for (const std::string& path : run.options.files)
        cases.push_back(load_for_processes(path, count));
    if (ranks.spawns()) return spawn_ranks(count);
    return run_as_process(ranks.flags(), in_words(cases, run), [&](auto& world) {
        run.world = &world;
        Tally tally;
        for (const GoldenCase& golden : cases) ++tally.count[verify_file(golden, run)];
        return tally.conclude(run.options);
    });
}

int run_verify(const VerifyOptions& options) {
    options.ranks->let_one_note();
    const Verification run{options, choose_specs(options)};
    check_dispatcher_type(options.dispatcher_type);
    if (options.ranks->given()) return verify_over_processes(run);
    Tally tally;
    for (const std::string& path : options.files) {
        try {
            ++tally.count[verify_file(load_golden(path), run)];
        } catch (const InputError& error) {
            fmt::print(stderr, "moe: {}\n", one_line(error.what()));
            ++tally.unreadable;
        }
    }
    return tally.conclude(options);
}

}  // namespace

void add_verify(CommandLine& line) {
    auto options = std::make_shared<VerifyOptions>();
    Command& command =
        line.add("verify",
                 "Run golden cases and compare with their expected values.\n"
                 "Exit code: 0 all match, 1 a value differs, 2 bad input.\n\n"
                 "Example: moe verify tests/golden/*.safetensors --dtype fp64\n"
                 "A case of two ranks, as processes instead of threads:\n"
                 "  moe verify tests/golden/ranks/ep2_alltoall.safetensors --spawn 2");
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
    options->ranks = std::make_unique<RankOptions>(command, RankOptions::Kind::processes);
    command.runs([options] { return run_verify(*options); });
}

}  // namespace moe
