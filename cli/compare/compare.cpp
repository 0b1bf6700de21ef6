// compare.cpp: `moe compare`, the main job: real text through every tier, step by step.

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "cli/checkpoint_options.h"
#include "cli/commands.h"
#include "cli/compare/comparison.h"
#include "cli/compare/given.h"
#include "cli/compare/view.h"
#include "cli/memory.h"
#include "cli/notes.h"
#include "cli/options.h"
#include "cli/places.h"
#include "cli/progress.h"
#include "cli/ranks/comparison.h"
#include "cli/ranks/options.h"
#include "cli/ranks/processes.h"
#include "cli/step_options.h"
#include "cli/words.h"
#include "core/known_names.h"
#include "core/tier.h"
#include "core/transfer.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

/// What the others are held against.
const std::string kReference = "reference_cpu:fp64";

struct CompareOptions {
    std::optional<std::string> text;  // the README when left out
    std::string report = "moe-report", spec;
    std::vector<std::string> tiers, dtypes;
    std::optional<std::int64_t> repeats;
    std::optional<std::string> golden;
    std::optional<std::string> record_routing, record_column, replay_routing;
    std::unique_ptr<LayerOptions> layer;
    std::unique_ptr<CheckpointOptions> checkpoint;
    std::unique_ptr<RankOptions> ranks;
    std::unique_ptr<StepOptions> step;
};

/// A piece of the text for each micro-batch.
std::vector<TextTokens> read_tokens(const CompareOptions& options, std::int64_t seq_len,
                                    std::int64_t micro_batch, std::int64_t multiple = 1) {
    std::vector<TextTokens> texts = read_micro_batches(
        options.text.value_or(default_text()), options.step->micro_batches(), seq_len,
        micro_batch, !options.layer->seq_length_given(), multiple);
    if (!options.text)
        for (TextTokens& text : texts) text.name = "README.md";
    return texts;
}

template <typename Request>
void set_texts(Request& request, std::vector<TextTokens> texts) {
    request.text = texts[0];
    texts.erase(texts.begin());
    request.more_text = std::move(texts);
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

/// A file of recorded experts is one micro-batch's.
void require_one_micro_batch(const CompareOptions& options) {
    const std::int64_t count = options.step->micro_batches();
    if (count > 1 && (options.record_routing || options.replay_routing))
        reject("--micro-batches", count,
               "must be 1 with --record-routing or --replay-routing, whose file is one "
               "micro-batch's");
}

ComparisonRequest make_request(const CompareOptions& options) {
    const LayerOptions& layer = *options.layer;
    require_no_rank_flags(layer);
    require_one_micro_batch(options);
    ComparisonRequest request;
    request.model = layer.model();
    request.config = layer.config();
    request.weights = options.checkpoint->weights();
    request.seed = layer.seed();
    request.repeats = options.repeats.value_or(3);
    if (request.repeats < 1 || request.repeats > 1000)
        reject("--repeats", request.repeats, "must be from 1 to 1000");
    request.training = options.step->training();
    set_texts(request,
              read_tokens(options, layer.seq_length(), layer.micro_batch_size()));
    const std::string golden = options.golden.value_or("all");
    if (golden != "all" && golden != "none")
        reject("--golden", golden, "must be all or none");
    if (golden == "all") request.golden_folder = golden_folder();

    const std::int64_t T = request.text.seq_len * request.text.micro_batch;
    require_memory(request.config, T * options.step->micro_batches());
    text_ids(request.config, request.text);  // refused before anything runs
    if (options.replay_routing) {
        turn_on_replay(request.config);
        request.target_topk_idx =
            load_routing(*options.replay_routing, request.config, 1, T)[0];
    }

    request.columns = choose_columns(options, request.config);
    request.parameters = options.checkpoint->parameters(request.config, request.columns);
    std::erase(request.columns, ModuleSpec::uniform({"reference_cpu", DType::f64}));
    if (options.record_column) {
        if (!options.record_routing)
            reject("--record-column", *options.record_column, "needs --record-routing");
        std::vector<std::string> labels = {kReference};
        for (const ModuleSpec& spec : request.columns) labels.push_back(to_string(spec));
        if (std::ranges::find(labels, *options.record_column) == labels.end())
            reject_unknown("--record-column", *options.record_column, labels,
                           "columns are");
    }
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
    for (const std::string& line : left_out) note(line);
}

RankComparisonRequest make_rank_request(const CompareOptions& options) {
    if (options.repeats)
        reject("--repeats", *options.repeats,
               "must be left out with --ranks: ranks that share cores have no times");
    if (options.golden && *options.golden != "none")
        reject(
            "--golden", *options.golden,
            "must be left out with --ranks: moe verify runs the golden cases of ranks");
    require_one_micro_batch(options);
    if (options.record_column)
        reject("--record-column", *options.record_column,
               "must be left out with --ranks: the one rank with everything is recorded");
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
    request.training = options.step->training();
    set_texts(request,
              read_tokens(options, sizes.seq_len, sizes.micro_batch, sizes.shards));
    require_memory(chosen.configs[0], request.text.seq_len * request.text.micro_batch *
                                          options.step->micro_batches());
    request.columns = choose_columns(options, chosen.configs[0]);
    leave_out_tiers(request.columns, chosen.configs);
    request.parameters = options.checkpoint->parameters(
        distributed::single_rank_config(chosen.configs[0]), request.columns);
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
template <typename Request>
bool takes_long(const MoEConfig& config, const Request& request) {
    const std::int64_t tokens = request.text.seq_len * request.text.micro_batch *
                                std::int64_t(1 + request.more_text.size());
    return estimate_memory(config, tokens) > kMuchMemory;
}
bool is_long(const ComparisonRequest& request) {
    return takes_long(request.config, request);
}
bool is_long(const RankComparisonRequest& request) {
    return takes_long(request.configs[0], request);
}

/// What could end a run badly is said before it starts.
void prepare(const CompareOptions& options, const std::vector<MoEConfig>& configs) {
    if (options.report != "none") require_writable_folder("--report", options.report);
    if (options.record_routing) {
        auto folder = std::filesystem::path(*options.record_routing).parent_path();
        if (folder.empty()) folder = ".";
        if (!std::filesystem::is_directory(folder) ||
            std::filesystem::is_directory(*options.record_routing))
            reject("--record-routing", *options.record_routing,
                   "must be a file in a folder that is there");
        require_writable_folder("--record-routing", folder);
    }
    std::set<std::string> said;
    for (const MoEConfig& config : configs)
        for (const std::string& warning : config.warnings())
            if (said.insert(warning).second) note(warning);
}

/// The experts of each rank's tokens, as one column chose them, into a file.
void record_routing(const CompareOptions& options, const MoEConfig& config,
                    const std::vector<Tensor>& topk_idx) {
    if (options.replay_routing)
        fmt::print("Experts are those of {}\n", *options.replay_routing);
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
    const std::string asked_for = in_words(request.configs) + options.step->in_words();
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
    if (options.ranks->given()) options.ranks->let_one_note();
    options.checkpoint->load(*options.layer);
    if (options.ranks->given()) return run_rank_compare(options);
    const ComparisonRequest request = make_request(options);
    prepare(options, {request.config});
    const Comparison comparison =
        run_with_progress(request, run_comparison, is_long(request));
    print_comparison(comparison, options.report);
    for (const ColumnOutcome& column : comparison.columns)
        if (column.label == options.record_column.value_or(kReference))
            record_routing(options, comparison.config, {column.topk_idx});
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
        "  moe compare --checkpoint Mixtral-8x7B-v0.1 --layer 3 --seq-length 32\n"
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
                   "Write the experts of every token, and rank, to this file");
    command.option("--record-column", options->record_column,
                   fmt::format("Whose choice that is (default {})", kReference));
    command.option("--replay-routing", options->replay_routing,
                   "Run everything with the experts of such a file");
    add_threads_flag(command);
    add_rung_flag(command);
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"mixtral_8x7b", 16, 256, 4});
    options->checkpoint = std::make_unique<CheckpointOptions>(command);
    options->step = std::make_unique<StepOptions>(command);
    options->ranks =
        std::make_unique<RankOptions>(command, RankOptions::Kind::threads_or_processes);
    command.runs([options] { return run_compare(*options); });
}

}  // namespace moe
