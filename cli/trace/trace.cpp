// trace.cpp: `moe trace`, eight tokens and four experts, every value printed.

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "cli/commands.h"
#include "cli/compare/given.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/ranks/options.h"
#include "cli/ranks/processes.h"
#include "cli/step_options.h"
#include "cli/terminal.h"
#include "cli/trace/step.h"
#include "cli/trace/trace_ranks.h"
#include "cli/trace/values.h"
#include "core/error.h"
#include "core/parameters.h"
#include "core/recompute.h"
#include "core/rng.h"
#include "distributed/quantile_balancing.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

/// Bytes of a text that trace takes unless told otherwise.
constexpr std::int64_t kTextLength = 4096;

/// Small enough to read: every feature that fits on a screen is on.
MoEConfig tiny_config() {
    MoEConfig config;
    config.hidden_size = 6;
    config.num_moe_experts = 4;
    config.moe_router_topk = 2;
    config.moe_ffn_hidden_size = 5;
    config.moe_shared_expert_intermediate_size = 3;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_z_loss_coeff = 0.001;
    config.moe_expert_capacity_factor = 1.0;
    config.moe_token_dispatcher_type = "alltoall";
    return config;
}

/// Standard normal numbers, rounded to quarters: easy to follow by hand.
Tensor round_numbers(const Shape& shape, std::uint64_t seed, std::uint64_t stream) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(seed, stream);
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] =
            static_cast<float>(std::round(4.0 * rng.normal(i)) / 4.0);
    return tensor;
}

struct TraceOptions {
    std::string tier = "reference_cpu", spec;
    std::optional<std::string> dtype;   // the tier's most precise one when left out
    std::optional<std::string> text;    // numbers to follow by hand when left out
    std::optional<std::int64_t> token;  // all of them when left out
    std::unique_ptr<LayerOptions> layer;
    std::unique_ptr<RankOptions> ranks;
    std::unique_ptr<StepOptions> step;
};

ModuleSpec choose_spec(const TraceOptions& options) {
    std::vector<std::string> dtypes;
    if (options.dtype) dtypes.push_back(*options.dtype);
    return parse_spec(options.spec, choose_suppliers({options.tier}, dtypes).front());
}

/// Over ranks the dispatch alone is enough to read: the rest is off unless asked for.
void show_dispatch(LayerOptions::Chosen& chosen) {
    MoEConfig& config = chosen.config;
    if (config.moe_token_dispatcher_type == "all")
        reject("--moe-token-dispatcher-type", "all",
               "trace shows one: allgather, alltoall or flex");
    const auto turn_off = [&](const char* field, auto& value) {
        if (!chosen.given.contains(field)) value = {};
    };
    turn_off("moe_expert_capacity_factor", config.moe_expert_capacity_factor);
    turn_off("moe_shared_expert_intermediate_size",
             config.moe_shared_expert_intermediate_size);
    turn_off("moe_z_loss_coeff", config.moe_z_loss_coeff);
    if (!chosen.given.contains("moe_aux_loss_coeff")) config.moe_aux_loss_coeff = {0.0};
    // A width that shards divide
    const bool is_tiny = config.moe_ffn_hidden_size == tiny_config().moe_ffn_hidden_size;
    if (is_tiny && !chosen.given.contains("moe_ffn_hidden_size"))
        config.moe_ffn_hidden_size = 8;
}

/// How the layer differs from that of `moe trace` without ranks; the tokens are the same.
std::string describe_difference(const MoEConfig& alone, const MoEConfig& here) {
    std::string text;
    const auto add = [&](bool differs, const std::string& what) {
        if (differs) text += (text.empty() ? "" : ", ") + what;
    };
    add(alone.moe_expert_capacity_factor != here.moe_expert_capacity_factor,
        "no capacity");
    add(alone.moe_shared_expert_intermediate_size.value_or(0) != here.shared_ffn(),
        "no shared experts");
    add(alone.moe_aux_loss_coeff != here.moe_aux_loss_coeff ||
            alone.moe_z_loss_coeff != here.moe_z_loss_coeff,
        "no losses");
    add(alone.moe_ffn_hidden_size != here.moe_ffn_hidden_size,
        fmt::format("F={}", here.ffn()));
    return text.empty() ? "" : "Unlike moe trace without --ranks: " + text;
}

int run_rank_trace(const TraceOptions& options) {
    options.ranks->let_one_note();
    if (options.text) reject("--text", *options.text, "must be left out with --ranks");
    if (options.token) reject("--token", *options.token, "must be left out with --ranks");
    if (const std::int64_t count = options.step->micro_batches(); count > 1)
        reject("--micro-batches", count,
               "must be left out with --ranks: a dispatch is of one micro-batch");
    options.layer->share_among_ranks();
    const LayerOptions& layer = *options.layer;
    const RankConfigs chosen =
        choose_rank_config(layer, options.ranks->ranks(), show_dispatch);
    const RankSizes sizes = choose_rank_sizes(layer, chosen.sizes);
    const std::int64_t T = sizes.seq_len * sizes.micro_batch;
    RankTraceRequest request;
    const MoEConfig alone = layer.choose().config;
    request.note = describe_difference(alone, chosen.configs[0]);
    if (!options.step->training())
        request.note += (request.note.empty() ? "An " : "; an ") + mode_in_words(false);
    request.sizes = chosen.sizes;
    request.seq_len = sizes.seq_len;
    request.micro_batch = sizes.micro_batch;
    RankJob& job = request.job;
    job.config = chosen.configs[0];
    job.spec = choose_spec(options);
    job.training = options.step->training();
    find_tier("--tier", job.spec.dispatcher.tier).check(job.config);
    const MoEConfig whole = distributed::single_rank_config(job.config);
    require_memory(whole, T);
    job.parameters = random_parameters(whole, layer.seed());
    job.hidden = round_numbers({T, whole.hidden_size}, layer.seed(), 100);
    job.doutput = round_numbers({T, whole.hidden_size}, layer.seed(), 200);
    job.token_ids = random_ids(whole, T, layer.seed());
    if (options.ranks->spawns()) return spawn_ranks(chosen.sizes.world);
    if (!options.ranks->is_process()) return trace_ranks(request);
    return run_as_process(options.ranks->flags(),
                          in_words(chosen.configs) + options.step->in_words(),
                          [&](distributed::Communicator& world) {
                              job.world = &world;
                              return trace_ranks(request);
                          });
}

/// @return by micro-batch
std::vector<TraceInput> make_inputs(const TraceOptions& options,
                                    const MoEConfig& config) {
    const LayerOptions& layer = *options.layer;
    const std::int64_t count = options.step->micro_batches();
    std::int64_t S = layer.seq_length();
    const std::int64_t B = layer.micro_batch_size();
    std::vector<TextTokens> texts;
    if (options.text) {
        texts = read_micro_batches(*options.text, count, S, B, !layer.seq_length_given());
        S = texts[0].seq_len;
    }
    require_memory(config, S * B * count);
    const Shape shape = {S, B, config.hidden_size};
    std::vector<TraceInput> inputs(count);
    for (std::int64_t i = 0; i < count; ++i) {
        TraceInput& input = inputs[i];
        if (options.text) input.text = texts[i];
        input.hidden = input.text
                           ? embed_text(*input.text, config.hidden_size, layer.seed())
                           : round_numbers(shape, layer.seed(), 100 + 1000 * i);
        input.token_ids = input.text ? text_ids(config, *input.text)
                                     : random_ids(config, S * B, layer.seed() + i);
        input.doutput = round_numbers(shape, layer.seed(), 200 + 1000 * i);
    }
    return inputs;
}

void require_token(std::int64_t token, std::int64_t tokens) {
    if (tokens == 0) reject("--token", token, "must be left out: there are no tokens");
    if (token < 0 || token >= tokens)
        reject("--token", token,
               tokens == 1 ? "must be 0: there is one token"
                           : fmt::format("must be from 0 to {}", tokens - 1));
}

/// @param input  the first micro-batch's
void print_header(const TraceOptions& options, const TraceInput& input,
                  const MoELayer& layer, const MoEConfig& config) {
    fmt::print(
        "{}\n",
        wrapped(fmt::format("{} token{} (S={} x B={}, token t = s B + b), {} experts, "
                            "top-{}; {}{}",
                            input.tokens(), input.tokens() == 1 ? "" : "s",
                            input.seq_len(), input.micro_batch(), config.num_experts(),
                            config.moe_router_topk, to_string(layer.spec()),
                            layer.spec().is_emulated() ? ", emulated" : ""),
                2));
    if (const std::int64_t count = options.step->micro_batches(); count > 1)
        fmt::print("{} micro-batches of one optimizer step, each that many tokens\n",
                   count);
    if (!options.step->training())
        fmt::print("{}\n", wrapped("An " + mode_in_words(false), 2));
    if (input.text) fmt::print("Each token is a byte of {}\n", input.text->name);
    if (options.token)
        fmt::print("Only the rows of t{} are shown{}\n", *options.token,
                   input.text ? ": " + text_around(*input.text, *options.token) : "");
    fmt::print("t3→e1 is the row of token 3 for expert 1\n");
    if (const std::string again = recomputed_in_words(config); !again.empty())
        fmt::print("{}; its values are shown once\n", again);
}

/// Of what is on because nobody said otherwise, quantile balancing goes without some.
MoEConfig choose_config(const LayerOptions& layer) {
    auto [config, given] = layer.choose();
    if (config.is_quantile_balancing()) {
        if (!given.contains("moe_expert_capacity_factor"))
            config.moe_expert_capacity_factor.reset();
        if (!given.contains("moe_aux_loss_coeff")) config.moe_aux_loss_coeff = {0.0};
    }
    config.finalize();
    return config;
}

int run_trace(const TraceOptions& options) {
    if (options.ranks->given()) return run_rank_trace(options);
    require_no_rank_flags(*options.layer);
    if (options.text)
        options.layer->set_defaults({"tiny", 1, kTextLength, 1, tiny_config()});
    const MoEConfig config = choose_config(*options.layer);
    const ModuleSpec spec = choose_spec(options);
    const std::vector<TraceInput> inputs = make_inputs(options, config);
    const std::int64_t T = inputs[0].tokens();
    if (options.token) require_token(*options.token, T);
    if (config.is_quantile_balancing() && options.step->training())
        // before anything is printed
        distributed::even_share(T, config.moe_router_topk, config.num_experts());

    MoELayer layer(config, spec, random_parameters(config, options.layer->seed()));
    print_header(options, inputs[0], layer, config);
    trace_step(layer, inputs, options.step->training(), options.token);
    if (T == 0) fmt::print("\n- no tokens: nothing went through the layer\n");
    return kExitOk;
}

}  // namespace

void add_trace(CommandLine& line) {
    auto options = std::make_shared<TraceOptions>();
    Command& command = line.add(
        "trace",
        "Print every intermediate value of a tiny layer, step by step.\n\n"
        "Example, two tiers side by side:\n"
        "  diff -y <(moe trace --dtype fp64) <(moe trace --tier naive_gpu --dtype bf16) "
        "| "
        "less\n"
        "One token of a text on its way through the layer and back:\n"
        "  moe trace --text mybook.txt --token 17\n"
        "A whole dispatch, rank by rank:\n"
        "  moe trace --ranks 2 --moe-token-dispatcher-type alltoall\n"
        "  moe trace --spawn 2          (the same over processes)");
    command.option("--tier", options->tier, "Tier (default reference_cpu)")
        .values(tier_names());
    command
        .option("--dtype", options->dtype, "Precision (default: the tier's most precise)")
        .values(dtype_names());
    command.option("--spec", options->spec, "Tier per component, as in compare");
    command.option("--text", options->text,
                   "Text file, a token per byte: S = its bytes, at most 4096, and B = 1 "
                   "unless given (default: eight tokens of round numbers)");
    command.option("--token", options->token, "Show this token alone, counted from 0");
    add_threads_flag(command);
    add_rung_flag(command);
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"tiny", 1, 4, 2, tiny_config()});
    options->step = std::make_unique<StepOptions>(command);
    options->ranks =
        std::make_unique<RankOptions>(command, RankOptions::Kind::threads_or_processes);
    command.runs([options] { return run_trace(*options); });
}

}  // namespace moe
