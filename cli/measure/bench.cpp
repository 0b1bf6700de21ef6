// bench.cpp: `moe bench`, how fast each part of the layer is in each tier, against the
// machine's own ceilings.

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bench/pictures.h"
#include "bench/result_words.h"
#include "bench/run.h"
#include "cli/commands.h"
#include "cli/compare/comparison.h"
#include "cli/files.h"
#include "cli/info/machine.h"
#include "cli/measure/bench_view.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/progress.h"
#include "cli/ranks/options.h"
#include "core/known_names.h"
#include "core/tier.h"
#include "gpu/device_facts.h"
#include "gpu/tensor.h"

namespace moe {
namespace {

struct BenchOptions {
    std::vector<std::string> tiers, dtypes, subjects, passes, routings = {"uniform"};
    std::string spec, reference_dtype = "fp64", json, report = "moe-report";
    std::vector<std::int64_t> tokens;
    double seconds = 20.0;
    bool quick = false, no_waterfall = false;
    std::unique_ptr<LayerOptions> layer;
};

/// True where kernels run on a real GPU, and are timed.
bool has_gpu() {
    return !gpu::is_emulated() && gpu::missing_device().empty();
}

std::vector<std::int64_t> choose_tokens(const BenchOptions& options) {
    const LayerOptions& layer = *options.layer;
    if (options.tokens.empty()) return {layer.seq_length() * layer.micro_batch_size()};
    for (const std::int64_t tokens : options.tokens) {
        if (layer.seq_length_given() || layer.micro_batch_size_given())
            reject("--tokens", tokens,
                   "must be left out with --seq-length and --micro-batch-size");
        if (tokens < 1 || tokens > 1'000'000)
            reject("--tokens", tokens, "must be from 1 to 1000000");
    }
    return options.tokens;
}

/// Those of `allowed` that were asked for, in the order of `allowed`; all when none was.
std::vector<std::string> choose(const std::string& flag,
                                const std::vector<std::string>& wanted,
                                const std::vector<std::string>& allowed) {
    for (const std::string& name : wanted)
        if (std::count(allowed.begin(), allowed.end(), name) == 0)
            reject_unknown(flag, name, allowed, "known are");
    std::vector<std::string> chosen;
    for (const std::string& name : allowed)
        if (wanted.empty() || std::count(wanted.begin(), wanted.end(), name) > 0)
            chosen.push_back(name);
    return chosen;
}

/// Suppliers to bench: what was asked for. By default, with a GPU, what runs on it (the
/// reference would take most of the time; the waterfall has it); without, all, fp64 left
/// out as the reference itself.
std::vector<ComponentSpec> choose_bench_suppliers(const BenchOptions& options,
                                                  const MoEConfig& config) {
    std::vector<ComponentSpec> suppliers =
        choose_suppliers(options.tiers, options.dtypes, &config);
    if (options.tiers.empty())
        std::erase_if(suppliers, [&](const ComponentSpec& s) {
            return has_gpu() &&
                   find_tier("--tier", s.tier).memory_space() != MemorySpace::device;
        });
    if (options.dtypes.empty())
        std::erase_if(suppliers, [&](const ComponentSpec& s) {
            return s.dtype == DType::f64 ||
                   (options.quick && has_gpu() && s.dtype != DType::bf16);
        });
    return suppliers;
}

/// reference_cpu:fp32, then every tier that can be timed here in its least precise dtype.
std::vector<ModuleSpec> choose_waterfall(const BenchOptions& options,
                                         const MoEConfig& config) {
    if (options.no_waterfall || !options.subjects.empty() || !options.passes.empty())
        return {};
    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : tiers())
        if (tier->missing().empty() && !tier->is_emulated() &&
            refusal(*tier, config).empty())
            suppliers.push_back({tier->name(), tier->dtypes().back()});
    if (suppliers.size() < 2) return {};
    return bench::waterfall_specs(suppliers);
}

/// One request for each number of tokens and each routing.
std::vector<bench::BenchRequest> make_requests(const BenchOptions& options) {
    const LayerOptions& layer = *options.layer;
    require_no_rank_flags(layer);
    bench::BenchRequest request;
    request.model = layer.model();
    request.config = layer.config();
    // A result names a layer by H, E, K and F
    if (request.config.moe_latent_size)
        request.model += fmt::format(", ℓ={}", *request.config.moe_latent_size);
    if (request.config.moe_router_hash_vocab_size)
        reject("moe_router_hash_vocab_size", *request.config.moe_router_hash_vocab_size,
               "must be left out here: bench chooses the experts itself (--routing)");
    request.seed = layer.seed();
    request.reference_dtype = parse_dtype("--reference-dtype", options.reference_dtype);
    if (request.reference_dtype == DType::bf16)
        reject("--reference-dtype", options.reference_dtype, "must be fp64 or fp32");
    request.subjects =
        choose("--component", options.subjects, bench::part_names(request.config));
    request.passes = choose("--pass", options.passes, bench::kPasses);
    if (!(options.seconds > 0.0 && options.seconds <= 3600.0))
        reject("--seconds", options.seconds, "must be over 0 and at most 3600");
    request.seconds = options.seconds;

    const ModuleSpec mix = parse_spec(options.spec, {"reference_cpu", DType::f32});
    for (const ComponentSpec& supplier : choose_bench_suppliers(options, request.config))
        request.specs.push_back(ModuleSpec::uniform(supplier));
    if (!options.spec.empty()) request.specs.push_back(mix);
    request.waterfall = choose_waterfall(options, request.config);

    std::vector<bench::BenchRequest> requests;
    for (const std::int64_t tokens : choose_tokens(options)) {
        require_memory(request.config, tokens);
        for (const std::string& routing : options.routings) {
            request.tokens = tokens;
            request.routing = bench::parse_routing("--routing", routing, request.config);
            request.routing_name = routing;
            requests.push_back(request);
        }
    }
    return requests;
}

/// A file that is not there yet, in a folder that is.
void require_new_file(const std::string& field, const std::string& path) {
    namespace fs = std::filesystem;
    std::error_code ignored;
    if (fs::exists(path, ignored)) reject(field, path, "is there already; name another");
    const fs::path folder = fs::absolute(path, ignored).parent_path();
    if (!fs::is_directory(folder, ignored))
        reject(field, path, "must lie in a folder that exists");
}

void print_verdict(const bench::BenchOutcome& outcome) {
    fmt::print("\n");
    for (const std::string& note : outcome.notes) fmt::print("- {}\n", note);
    for (const std::string& failure : outcome.failures)
        fmt::print("✗ {}; it has no time\n", failure);
    if (outcome.failures.empty() && outcome.run.workload.tokens == 0)
        fmt::print("- no tokens: nothing was compared, and times say nothing\n");
    else if (outcome.failures.empty())
        fmt::print("✓ every part gives what {} gives\n", outcome.run.reference);
}

/// Those pictures of the run that there is something for, into `folder`.
void write_pictures(const bench::Run& run, const bench::Result& result,
                    const std::string& folder) {
    using Draw = std::string (*)(const bench::Run&, const std::string& device);
    const std::string stem =
        fmt::format("{}/bench-{}", folder, bench::workload_slug(run.workload));
    // Without a GPU, what has a time ran on the CPU, and what was counted did not
    const std::string& timed = has_gpu() ? result.device : result.facts.at("CPU");
    std::vector<FileText> files;
    for (const auto& [name, draw] : std::initializer_list<std::pair<const char*, Draw>>{
             {"ladder", bench::ladder_picture},
             {"waterfall", bench::waterfall_picture},
             {"roofline", bench::roofline_picture},
             {"counts", bench::counts_picture}})
        if (std::string svg =
                draw(run, draw == bench::counts_picture ? result.device : timed);
            !svg.empty())
            files.push_back({fmt::format("{}-{}.svg", stem, name), svg});
    if (const auto failure = write_all(files))
        reject("--report", failure->path, "must be a file to write: " + failure->reason);
    for (const FileText& file : files) fmt::print("Picture  {}\n", file.path);
}

int run_bench_command(const BenchOptions& options) {
    // Asked here, not among the flags: no other command shall start CUDA for it
    if (has_gpu()) options.layer->set_defaults({"qwen3_30b_a3b", 1, 1024, 1});
    const std::vector<bench::BenchRequest> requests = make_requests(options);
    if (!options.json.empty()) require_new_file("--json", options.json);
    if (options.report != "none") require_writable_folder("--report", options.report);
    const auto& specs = requests.front().specs;
    const auto on_device = [](const ModuleSpec& spec) { return spec.uses_device(); };
    bench::Result result =
        make_result(std::any_of(specs.begin(), specs.end(), on_device));
    if (has_gpu()) result.facts["before"] = gpu::device_state();
    bool ok = true;
    for (const bench::BenchRequest& request : requests) {
        const bench::BenchOutcome outcome = run_with_progress(
            request, bench::run_bench,
            estimate_memory(request.config, request.tokens) > kMuchMemory);
        result.runs.push_back(outcome.run);
        print_bench_header(result, outcome.run);
        print_bench_table(result, outcome.run);
        print_bars(outcome.run);
        print_waterfall(outcome.run);
        print_verdict(outcome);
        if (options.report != "none") write_pictures(outcome.run, result, options.report);
        if (has_gpu()) result.facts["after"] = gpu::device_state();
        // After every run: what comes next may be ended from outside
        if (!options.json.empty())
            write_file("--json", {options.json, to_json(result).dump(1) + "\n"});
        ok = ok && outcome.failures.empty();
        if (&request != &requests.back()) fmt::print("\n");
    }
    if (!has_gpu())
        fmt::print(
            "- no GPU: kernels ran on the CPU executor; they were counted, and "
            "not timed\n");
    return ok ? kExitOk : kExitDiffers;
}

}  // namespace

void add_bench(CommandLine& line) {
    auto options = std::make_shared<BenchOptions>();
    Command& command = line.add(
        "bench",
        "Time each part of the layer in each tier, against the machine's own ceilings.\n"
        "With a GPU the default is --scale 1 and 1024 tokens.\n"
        "Exit code: 0 measured, 1 a value differs from the reference, 2 bad input.\n\n"
        "Examples:\n"
        "  moe bench                                  what this machine can time\n"
        "  moe bench --preset olmoe --scale 1 --tokens 8192 --routing skewed\n"
        "  moe bench --component experts --pass forward --dtype bf16\n"
        "  moe bench --json result.json");
    command
        .option("--tier", options->tiers,
                "Tiers to run (default: with a GPU those that use it, else all)")
        .values(tier_names());
    command.option("--dtype", options->dtypes, "fp64, fp32, bf16 (default: not fp64)")
        .values(dtype_names());
    command.option("--spec", options->spec,
                   "One more supplier, a mix: component=tier:dtype,…");
    command
        .option("--component", options->subjects,
                "router, dispatcher, experts, shared_experts, layer (default: all)")
        .values({"router", "dispatcher", "experts", "shared_experts", "layer"});
    command.option("--pass", options->passes, "forward, backward, both (default: all)")
        .values(bench::kPasses);
    command.option("--tokens", options->tokens,
                   "T, one sequence of that length; several: one run for each");
    command
        .option("--routing", options->routings,
                "balanced, uniform, skewed, or hot:N, all rows on N experts; "
                "several: one run for each (default uniform)")
        .values({"balanced", "uniform", "skewed", "hot:"});
    command
        .option("--reference-dtype", options->reference_dtype,
                "Of what all is held against: fp64, or fp32 for half the memory")
        .values({"fp64", "fp32"});
    command.option("--seconds", options->seconds, "For timing, about (default 20)");
    command.flag("--short", options->quick,
                 "The least that says something: with a GPU bf16 alone");
    command.flag("--no-waterfall", options->no_waterfall,
                 "Leave out the layer from tier to tier");
    command.option("--json", options->json, "Write the result to a new file");
    command.option("--report", options->report,
                   "Folder for pictures, or none (default moe-report)");
    add_threads_flag(command);
    add_rung_flag(command);
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"qwen3_30b_a3b", 8, 256, 1});
    command.runs([options] { return run_bench_command(*options); });
}

}  // namespace moe
