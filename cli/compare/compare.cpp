// compare.cpp: `moe compare`, the main job: real text through every tier, step by step.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "cli/commands.h"
#include "cli/compare/comparison.h"
#include "cli/compare/given.h"
#include "cli/compare/table.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/places.h"
#include "cli/progress.h"
#include "cli/ranks/comparison.h"
#include "cli/ranks/options.h"
#include "cli/ranks/processes.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/tier.h"
#include "core/transfer.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe {
namespace {

struct CompareOptions {
    std::optional<std::string> text;  // the README when left out
    std::string report = "moe-report", spec;
    std::vector<std::string> tiers, dtypes;
    std::optional<std::int64_t> repeats;
    std::optional<std::string> golden;
    std::optional<std::string> record_routing, replay_routing;
    std::unique_ptr<LayerOptions> layer;
    std::unique_ptr<RankOptions> ranks;
};

void print_header(const Comparison& c) {
    const MoEConfig& config = c.config;
    fmt::print(
        "{}\n",
        wrapped(fmt::format("Layer   {}: {}", c.model, layer_in_words(config)), 8));
    fmt::print(
        "{}\n",
        wrapped(fmt::format("Text    {}: S={} x B={} = {} tokens (bytes), {} expert rows",
                            c.text.name, c.text.seq_len, c.text.micro_batch,
                            c.sizes.num_tokens, c.sizes.num_rows),
                8));
    if (config.moe_expert_capacity_factor)
        fmt::print("Rows    {}\n",
                   kept_rows_in_words(config, to_doubles(c.probs), c.sizes.num_tokens));
    for (std::size_t i = 0; i < c.columns.size(); ++i)
        fmt::print("{}{}{}\n", i == 0 ? "Tiers   " : "        ", c.columns[i].label,
                   i == 0 ? "  (what the others are held against)"
                   : c.columns[i].emulated
                       ? "  (emulated: ran on this CPU, not on a GPU; "
                         "no times)"
                       : "");
    const auto is_optimized = [](const ColumnOutcome& column) {
        return column.spec.experts.tier == "optimized_gpu";
    };
    if (std::any_of(c.columns.begin(), c.columns.end(), is_optimized))
        fmt::print(
            "        optimized_gpu's products on rung {}\n",
            to_string(optimized::chosen_rung({config.latent_size(), config.ffn()})));
    fmt::print(
        "        times on this machine, median; bytes: the least that must move,\n"
        "        with m: maps, ids, row numbers and counts\n");
}

void print_losses(const Comparison& c) {
    if (c.columns.front().losses.empty()) return;
    fmt::print("\nLosses, before their coefficients\n");
    for (const auto& [name, value] : c.columns.front().losses) {
        std::string line = fmt::format("  {:<26}", name);
        for (const ColumnOutcome& column : c.columns)
            line += fmt::format("  {:.9f}", column.losses.at(name));
        fmt::print("{}\n", wrapped(line, 30));
    }
}

/// What the router's precision does.
void print_changed_experts(const Comparison& c) {
    if (c.columns.size() < 2 || c.sizes.num_tokens == 0) return;
    fmt::print("\nTokens whose experts changed against fp64, of {}\n",
               grouped(c.sizes.num_tokens));
    bool rounds = false;
    for (const ColumnOutcome& column : c.columns) {
        if (&column == &c.columns.front()) continue;
        rounds = rounds || column.spec.router.dtype == DType::bf16;
        fmt::print("{}\n", wrapped(fmt::format("  {:<20}{}", column.label,
                                               in_words(column.changed)),
                                   34));
    }
    if (rounds)
        fmt::print("{}\n", wrapped("  moe_router_dtype is not set: a router of bf16 is "
                                   "held against one of bf16 in fp64's place",
                                   2));
}

/// What training needs for every layer at once.
void print_kept(const Comparison& c) {
    const std::int64_t T = c.sizes.num_tokens;
    if (T == 0) return;
    fmt::print(
        "\n{}\n",
        wrapped("Kept from the forward for the backward, bytes per token; m, which is "
                "counted: logits, scores, maps, ids and weights of rows",
                2));
    for (const ColumnOutcome& column : c.columns) {
        const std::int64_t metadata = column.kept_bytes - column.kept.bytes;
        const std::string parts =
            column.kept.is_off()
                ? ""
                : fmt::format("  {} + m = {} + {}", column.kept.formula,
                              grouped(column.kept.bytes / T), grouped(metadata / T));
        fmt::print("{}\n", wrapped(fmt::format("  {:<20}{:>10}{}", column.label,
                                               grouped(column.kept_bytes / T), parts),
                                   34));
    }
}

void print_expert_load(const Comparison& c) {
    constexpr std::int64_t kMostBars = 64;
    constexpr double kWidth = 48.0;
    const std::int64_t E = c.config.num_experts();
    const std::int32_t* load = c.tokens_per_expert.data<std::int32_t>();
    const std::int64_t largest =
        std::max<std::int64_t>(1, *std::max_element(load, load + E));
    fmt::print("\nExpert load, rows per expert; an even share is {:.1f}\n",
               double(c.sizes.num_rows) / double(E));
    for (std::int64_t e = 0; e < std::min(E, kMostBars); ++e) {
        // Eighths of a character cell make short bars comparable.
        const auto eighths =
            std::int64_t(8.0 * kWidth * double(load[e]) / double(largest));
        std::string bar;
        for (std::int64_t full = 0; full < eighths / 8; ++full) bar += "█";
        const char* parts[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
        fmt::print("  expert {:<4}{:>7}  {}{}\n", e, load[e], bar, parts[eighths % 8]);
    }
    if (E > kMostBars)
        fmt::print("  … and {} more; the report shows all\n", E - kMostBars);
}

void print_verdict(const Comparison& c) {
    fmt::print("\n");
    for (const ColumnOutcome& column : c.columns)
        for (int number = 1; number <= kNumSteps; ++number) {
            const auto step = static_cast<Step>(number);
            if (!column.at(step).detail.empty())
                fmt::print("{}\n", wrapped(fmt::format("✗ {} {} {}: {}", column.label,
                                                       circled(step), title(step),
                                                       column.at(step).detail),
                                           4));
        }
    for (const GoldenOutcome& golden : c.golden) {
        const std::string line = fmt::format(
            "{} {}: {} of {} golden cases, Megatron-Core's and Hugging Face's own "
            "numbers, forward and backward; worst {:.0f} % of its bound",
            golden.failed.empty() ? "✓" : "✗", golden.label, golden.passed, golden.total,
            100.0 * golden.worst_share);
        fmt::print("{}\n", wrapped(line, 2));
        for (const std::string& name : golden.failed) fmt::print("    ✗ {}\n", name);
    }
    if (c.golden.empty()) fmt::print("- golden cases: not run\n");
    for (const ColumnOutcome& column : c.columns)
        if (const auto step = column.first_deviation())
            fmt::print("✗ {} deviates: {}\n", column.label, begins_at(*step));
    fmt::print("{}\n", !c.ok                     ? "✗ some values differ"
                       : c.sizes.num_tokens == 0 ? "- no tokens: no step was compared"
                                                 : "✓ all tiers agree, step by step");
}

TextTokens read_tokens(const CompareOptions& options, std::int64_t seq_len,
                       std::int64_t micro_batch, std::int64_t multiple = 1) {
    TextTokens text =
        read_text(options.text.value_or(default_text()), seq_len, micro_batch,
                  !options.layer->seq_length_given(), multiple);
    if (!options.text) text.name = "README.md";
    return text;
}

/// The chosen suppliers, and the mix of --spec.
std::vector<ModuleSpec> choose_columns(const CompareOptions& options,
                                       const MoEConfig& config) {
    // First what may be refused, then what may only be noted.
    const ModuleSpec mix = parse_spec(options.spec, {"reference_cpu", DType::f32});
    std::vector<ModuleSpec> columns;
    for (const ComponentSpec& supplier :
         choose_suppliers(options.tiers, options.dtypes, &config))
        columns.push_back(ModuleSpec::uniform(supplier));
    if (!options.spec.empty()) columns.push_back(mix);
    return columns;
}

/// Experts are to be those of a file.
void turn_on_replay(MoEConfig& config) {
    config.moe_enable_routing_replay = true;
    config.finalize();  // refused where the router chooses in another way
}

ComparisonRequest make_request(const CompareOptions& options) {
    const LayerOptions& layer = *options.layer;
    require_no_rank_flags(layer);
    ComparisonRequest request;
    request.model = layer.model();
    request.config = layer.config();
    request.seed = layer.seed();
    request.repeats = options.repeats.value_or(3);
    if (request.repeats < 1 || request.repeats > 1000)
        reject("--repeats", request.repeats, "must be from 1 to 1000");
    request.text = read_tokens(options, layer.seq_length(), layer.micro_batch_size());
    const std::string golden = options.golden.value_or("all");
    if (golden != "all" && golden != "none")
        reject("--golden", golden, "must be all or none");
    if (golden == "all") request.golden_folder = golden_folder();

    const std::int64_t T = request.text.seq_len * request.text.micro_batch;
    require_memory(request.config, T);
    text_ids(request.config, request.text);  // refused before anything runs
    if (options.replay_routing) {
        turn_on_replay(request.config);
        request.target_topk_idx =
            load_routing(*options.replay_routing, request.config, 1, T)[0];
    }

    request.columns = choose_columns(options, request.config);
    std::erase(request.columns, ModuleSpec::uniform({"reference_cpu", DType::f64}));
    return request;
}

/// Dispatchers that a tier asked for does not have go; all of them: its own word on it.
void leave_out_refused(RankConfigs& chosen, const CompareOptions& options) {
    std::vector<std::string> asked = options.tiers;
    if (!options.spec.empty())
        asked.push_back(
            parse_spec(options.spec, {"reference_cpu", DType::f32}).dispatcher.tier);
    const std::vector<MoEConfig> all = chosen.configs;
    for (const std::string& name : asked) {
        const Tier& tier = find_tier("--tier", name);
        std::erase_if(chosen.configs, [&](const MoEConfig& config) {
            const std::string why = refusal(tier, config);
            if (!why.empty())
                chosen.left_out.push_back(config.moe_token_dispatcher_type + ": " + why);
            return !why.empty();
        });
        if (chosen.configs.empty()) tier.check(all[0]);
    }
}

/// A tier that nobody asked for goes where it does not have all dispatchers.
void leave_out_tiers(std::vector<ModuleSpec>& columns,
                     const std::vector<MoEConfig>& configs) {
    std::set<std::string> left_out;
    std::erase_if(columns, [&](const ModuleSpec& spec) {
        const Tier& tier = find_tier("spec", spec.dispatcher.tier);
        for (const MoEConfig& config : configs)
            if (const std::string why = refusal(tier, config); !why.empty())
                return left_out.insert("left out: tier = " + tier.name() + ": " + why),
                       true;
        return false;
    });
    for (const std::string& line : left_out) fmt::print(stderr, "moe: note: {}\n", line);
}

RankComparisonRequest make_rank_request(const CompareOptions& options) {
    if (options.repeats)
        reject("--repeats", *options.repeats,
               "must be left out with --ranks: ranks that share cores have no times");
    if (options.golden && *options.golden != "none")
        reject(
            "--golden", *options.golden,
            "must be left out with --ranks: moe verify runs the golden cases of ranks");
    options.layer->share_among_ranks();
    const LayerOptions& layer = *options.layer;
    RankConfigs chosen = choose_rank_configs(layer, options.ranks->ranks());
    leave_out_refused(chosen, options);
    RankComparisonRequest request;
    request.model = layer.model();
    request.configs = chosen.configs;
    request.left_out = chosen.left_out;
    request.sizes = chosen.sizes;
    request.seed = layer.seed();
    const RankSizes sizes = choose_rank_sizes(layer, chosen.sizes);
    request.text = read_tokens(options, sizes.seq_len, sizes.micro_batch, sizes.shards);
    require_memory(chosen.configs[0], request.text.seq_len * request.text.micro_batch);
    request.columns = choose_columns(options, chosen.configs[0]);
    leave_out_tiers(request.columns, chosen.configs);
    text_ids(chosen.configs[0], request.text);  // refused before anything runs
    if (options.replay_routing) {
        for (MoEConfig& config : request.configs) turn_on_replay(config);
        const std::int64_t T = request.text.seq_len * request.text.micro_batch;
        request.target_topk_idx =
            load_routing(*options.replay_routing, request.configs[0], chosen.sizes.world,
                         T / chosen.sizes.world);
    }
    return request;
}

/// Whether it takes seconds, in a pipe too, until the first result is printed.
bool takes_long(const MoEConfig& config, const TextTokens& text) {
    return estimate_memory(config, text.seq_len * text.micro_batch) > kMuchMemory;
}
bool is_long(const ComparisonRequest& request) {
    return takes_long(request.config, request.text);
}
bool is_long(const RankComparisonRequest& request) {
    return takes_long(request.configs[0], request.text);
}

/// What could end a run badly is said before it starts.
void prepare(const CompareOptions& options, const std::vector<MoEConfig>& configs) {
    if (options.report != "none") require_writable_folder("--report", options.report);
    if (options.record_routing) {
        auto folder = std::filesystem::path(*options.record_routing).parent_path();
        if (folder.empty()) folder = ".";
        if (!std::filesystem::is_directory(folder))
            reject("--record-routing", *options.record_routing,
                   "must be in a folder that is there");
        require_writable_folder("--record-routing", folder);
    }
    std::set<std::string> said;
    for (const MoEConfig& config : configs)
        for (const std::string& warning : config.warnings())
            if (said.insert(warning).second)
                fmt::print(stderr, "moe: note: {}\n", warning);
}

/// The experts of each rank's tokens, as the fp64 reference chose them, into a file.
void record_routing(const CompareOptions& options, const MoEConfig& config,
                    const std::vector<Tensor>& topk_idx) {
    if (!options.record_routing) return;
    save_routing(*options.record_routing, config, topk_idx);
    fmt::print("Routing {}\n", *options.record_routing);
}

int show_rank_comparison(const RankComparison& comparison,
                         const CompareOptions& options) {
    print_rank_comparison(comparison, options.report);
    std::vector<Tensor> topk_idx;
    for (const auto& mine : comparison.tokens.of_rank)
        topk_idx.push_back(take_rows(comparison.topk_idx, mine));
    record_routing(options, comparison.config(), topk_idx);
    if (options.report != "none")
        fmt::print("Report  {}\n", write_rank_report(comparison, options.report));
    return comparison.ok ? kExitOk : kExitDiffers;
}

int run_rank_compare(const CompareOptions& options) {
    RankComparisonRequest request = make_rank_request(options);
    if (options.ranks->spawns()) return spawn_ranks(request.sizes.world);
    if (!options.ranks->is_process()) {
        prepare(options, request.configs);
        const RankComparison comparison =
            run_with_progress(request, run_rank_comparison, is_long(request));
        return show_rank_comparison(comparison, options);
    }
    const std::string asked_for = in_words(request.configs);
    return run_as_process(options.ranks->flags(), asked_for, [&](auto& world) {
        request.world = &world;
        const bool speaks = world.rank() == 0;
        if (speaks) prepare(options, request.configs);
        const RankComparison comparison =
            speaks ? run_with_progress(request, run_rank_comparison, is_long(request))
                   : run_rank_comparison(request);
        return speaks          ? show_rank_comparison(comparison, options)
               : comparison.ok ? kExitOk
                               : kExitDiffers;
    });
}

int run_compare(const CompareOptions& options) {
    if (options.ranks->given()) return run_rank_compare(options);
    const ComparisonRequest request = make_request(options);
    prepare(options, {request.config});
    const Comparison comparison =
        run_with_progress(request, run_comparison, is_long(request));
    print_header(comparison);
    print_steps(comparison, options.report);
    print_losses(comparison);
    print_changed_experts(comparison);
    print_kept(comparison);
    print_expert_load(comparison);
    print_verdict(comparison);
    record_routing(options, comparison.config, {comparison.topk_idx});
    if (options.report != "none")
        fmt::print("Report  {}\n", write_report(comparison, options.report));
    return comparison.ok ? kExitOk : kExitDiffers;
}

}  // namespace

void add_compare(CommandLine& line) {
    auto options = std::make_shared<CompareOptions>();
    Command& command = line.add(
        "compare",
        "Run real text through every tier, forward and backward, and compare step by "
        "step.\n"
        "Exit code: 0 all agree, 1 a value differs, 2 bad input.\n\n"
        "Examples:\n"
        "  moe compare --text mybook.txt --preset olmoe --scale 16\n"
        "  moe compare --num-experts 16 --moe-router-topk 4\n"
        "  moe compare --tier reference_cpu --spec experts=naive_gpu\n"
        "  moe compare --ranks 4 --tensor-model-parallel-size 2\n"
        "  moe compare --spawn 4        (the same over processes)");
    command.option("--text", options->text, "Text file (default: the README)");
    command.option("--report", options->report,
                   "Folder for the HTML report, or none (default moe-report)");
    command.option("--tier", options->tiers, "Tiers to run (default: all)")
        .values(tier_names());
    command.option("--dtype", options->dtypes, "fp64, fp32, bf16 (default: all)")
        .values(dtype_names());
    command.option("--spec", options->spec,
                   "One more column: component=tier:dtype,…  (components: router, "
                   "dispatcher, experts, shared_experts)");
    command.option("--repeats", options->repeats, "Timed runs (default 3)");
    command
        .option("--golden", options->golden,
                "The golden cases, in every tier: all (default), or none")
        .values({"all", "none"});
    command.option("--record-routing", options->record_routing,
                   "Write the experts that fp64 chose, of every rank, to this file");
    command.option("--replay-routing", options->replay_routing,
                   "Run everything with the experts of such a file");
    add_threads_flag(command);
    add_rung_flag(command);
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"mixtral_8x7b", 16, 256, 4});
    options->ranks =
        std::make_unique<RankOptions>(command, RankOptions::Kind::threads_or_processes);
    command.runs([options] { return run_compare(*options); });
}

}  // namespace moe
