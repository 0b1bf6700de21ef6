// trace.cpp: `moe trace`, eight tokens and four experts, every value printed.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "cli/commands.h"
#include "cli/memory.h"
#include "cli/options.h"
#include "cli/ranks/options.h"
#include "cli/trace/trace_ranks.h"
#include "core/error.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

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

/// Four digits; zero never carries a sign, so that tiers can be compared line by line.
std::string format_value(double value, bool floating) {
    if (!floating) return fmt::format("{:>5}", static_cast<std::int64_t>(value));
    const std::string text = fmt::format("{:>10.4f}", value);
    return text == "   -0.0000" ? "    0.0000" : text;
}

using Names = std::vector<std::string>;

/// Rows of the last axis, at most 16 by 16 of them, each with its name if there are any.
void print_tensor(const std::string& name, const TensorView& tensor,
                  const Names& names = {}) {
    constexpr std::int64_t kMost = 16;
    fmt::print("  {} {} {}\n", name, to_string(tensor.shape), to_string(tensor.dtype));
    const std::vector<double> values = to_doubles(tensor);
    const std::int64_t columns = tensor.shape.empty() ? 1 : tensor.shape.back();
    const std::int64_t rows =
        columns == 0 ? 0 : static_cast<std::int64_t>(values.size()) / columns;
    const bool across = tensor.shape.size() == 1;  // then a name stands over each value
    if (across && !names.empty()) {
        std::string line = "   ";
        for (std::int64_t column = 0; column < std::min(columns, kMost); ++column)
            line += fmt::format(" {:>10}", names[column]);
        fmt::print("{}\n", line);
    }
    for (std::int64_t row = 0; row < std::min(rows, kMost); ++row) {
        std::string line =
            across || names.empty() ? "   " : fmt::format("    {:<7}", names[row]);
        for (std::int64_t column = 0; column < std::min(columns, kMost); ++column)
            line += " " + format_value(values[row * columns + column],
                                       is_floating(tensor.dtype));
        fmt::print("{}{}\n", line, columns > kMost ? " …" : "");
    }
    if (rows > kMost) fmt::print("    … and {} more rows\n", rows - kMost);
}

/// "t0", "t1", …
Names name_tokens(std::int64_t tokens) {
    Names names;
    for (std::int64_t t = 0; t < tokens; ++t) names.push_back(fmt::format("t{}", t));
    return names;
}

/// "t3→e1" for every row after dispatch, which stand expert by expert; a row that pads an
/// expert's share is in the map too.
/// @param map  (T, E), after dropping
/// @param row_token  (N)
Names name_rows(const std::vector<double>& map, const std::vector<double>& row_token,
                std::int64_t num_experts) {
    const auto E = std::size_t(num_experts);
    Names names;
    for (std::size_t e = 0; e < E; ++e)
        for (std::size_t at = e; at < map.size(); at += E)
            if (map[at] != 0.0 && names.size() < row_token.size())
                names.push_back(fmt::format("t{}→e{}", row_token[names.size()], e));
    return names;
}

/// Prints each value as it comes, under its step; rows have the names of their tokens,
/// and between dispatch and combine of their experts too.
class Printer : public Observer {
  public:
    explicit Printer(std::int64_t tokens) : tokens_(name_tokens(tokens)) {}

    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (step != last_) fmt::print("\n{} {}\n", circled(step), title(step));
        last_ = step;
        if (name == "routing_map") {
            map_ = to_doubles(view);
            num_experts_ = view.shape.back();
        }
        if (name == "row_token") rows_ = name_rows(map_, to_doubles(view), num_experts_);
        const bool has_rows =
            (step >= Step::dispatch && step <= Step::fc2) ||
            (step >= Step::combine_backward && step <= Step::fc1_backward);
        const Names& names = has_rows ? rows_ : tokens_;
        const bool fits =
            is_floating(view.dtype) || view.shape.size() > 1;  // not row_token, counts
        print_tensor(name, view,
                     fits && !view.shape.empty() &&
                             view.shape.front() == std::int64_t(names.size())
                         ? names
                         : Names());
    }

  private:
    Step last_{};
    Names tokens_, rows_;
    std::vector<double> map_;  // (T, E)
    std::int64_t num_experts_ = 0;
};

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
    std::optional<std::string> dtype;  // the tier's most precise one when left out
    std::unique_ptr<LayerOptions> layer;
    std::unique_ptr<RankOptions> ranks;
};

ModuleSpec choose_spec(const TraceOptions& options) {
    std::vector<std::string> dtypes;
    if (options.dtype) dtypes.push_back(*options.dtype);
    return ModuleSpec::parse(options.spec,
                             choose_suppliers({options.tier}, dtypes).front());
}

/// Over ranks the dispatch alone is enough to read: the rest is off unless asked for.
void show_dispatch(LayerOptions::Chosen& chosen) {
    MoEConfig& config = chosen.config;
    if (config.moe_token_dispatcher_type == "all")
        reject("--moe-token-dispatcher-type", "all",
               "trace shows one: allgather, alltoall or flex");
    chosen.given.insert("moe_token_dispatcher_type");
    const auto turn_off = [&](const char* field, auto& value) {
        if (!chosen.given.contains(field)) value = {};
    };
    turn_off("moe_expert_capacity_factor", config.moe_expert_capacity_factor);
    turn_off("moe_shared_expert_intermediate_size",
             config.moe_shared_expert_intermediate_size);
    turn_off("moe_z_loss_coeff", config.moe_z_loss_coeff);
    if (!chosen.given.contains("moe_aux_loss_coeff")) config.moe_aux_loss_coeff = {0.0};
    // A width that shards divide
    if (!chosen.given.contains("moe_ffn_hidden_size")) config.moe_ffn_hidden_size = 8;
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
    const LayerOptions& layer = *options.layer;
    const RankConfigs chosen =
        choose_rank_configs(layer, options.ranks->ranks(), show_dispatch);
    const RankSizes sizes = choose_rank_sizes(layer, chosen.sizes);
    const std::int64_t T = sizes.seq_len * sizes.micro_batch;
    RankTraceRequest request;
    const MoEConfig alone = layer.choose().config;
    request.note = describe_difference(alone, chosen.configs[0]);
    request.sizes = chosen.sizes;
    request.seq_len = sizes.seq_len;
    request.micro_batch = sizes.micro_batch;
    RankJob& job = request.job;
    job.config = chosen.configs[0];
    job.spec = choose_spec(options);
    const MoEConfig whole = distributed::single_rank_config(job.config);
    require_memory(whole, T);
    job.parameters = random_parameters(whole, layer.seed());
    job.hidden = round_numbers({T, whole.hidden_size}, layer.seed(), 100);
    job.doutput = round_numbers({T, whole.hidden_size}, layer.seed(), 200);
    return trace_ranks(request);
}

int run_trace(const TraceOptions& options) {
    if (options.ranks->given()) return run_rank_trace(options);
    require_no_rank_flags(*options.layer);
    const MoEConfig config = options.layer->config();
    const ModuleSpec spec = choose_spec(options);
    const std::int64_t S = options.layer->seq_length(),
                       B = options.layer->micro_batch_size();
    require_memory(config, S * B);
    const std::uint64_t seed = options.layer->seed();
    const Shape shape = {S, B, config.hidden_size};
    const Tensor hidden = round_numbers(shape, seed, 100);
    const Tensor doutput = round_numbers(shape, seed, 200);
    const TensorMap parameters = random_parameters(config, seed);

    MoELayer layer(config, spec, parameters);
    fmt::print("{} tokens (S={} x B={}, token t = s B + b), {} experts, top-{}; {}{}\n",
               S * B, S, B, config.num_experts(), config.moe_router_topk,
               to_string(layer.spec()), layer.spec().is_emulated() ? ", emulated" : "");
    fmt::print("t3→e1 is the row of token 3 for expert 1\n");
    fmt::print("\nInput\n");
    print_tensor("hidden_states", hidden, name_tokens(S * B));

    Printer printer(S * B);
    const RunContext context{.observer = &printer};
    auto forward = layer.forward(hidden, {}, context);
    if (!forward.losses.empty()) fmt::print("\nLosses, before their coefficients\n");
    for (const auto& [name, loss] : forward.losses)
        fmt::print("  {:<28} {:10.4f}\n", name, loss);

    fmt::print("\nGradient of the output\n");
    print_tensor("grad_output", doutput, name_tokens(S * B));
    const auto gradients = layer.backward(doutput, forward.saved, context);
    fmt::print("\nGradients\n");
    print_tensor("grad.hidden_states", gradients.hidden_states, name_tokens(S * B));
    for (const auto& [name, gradient] : gradients.parameters)
        print_tensor("grad." + name, gradient);
    if (const Tensor bias = layer.update_expert_bias(); bias.defined()) {
        fmt::print("\nAfter the step\n");
        print_tensor("expert_bias_updated", bias);
    }
    if (S * B == 0) fmt::print("\n- no tokens: nothing went through the layer\n");
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
        "A whole dispatch, rank by rank:\n"
        "  moe trace --ranks 2 --moe-token-dispatcher-type alltoall");
    command.option("--tier", options->tier, "Tier (default reference_cpu)")
        .values(tier_names());
    command
        .option("--dtype", options->dtype, "Precision (default: the tier's most precise)")
        .values(dtype_names());
    command.option("--spec", options->spec, "Tier per component, as in compare");
    add_threads_flag(command);
    options->layer = std::make_unique<LayerOptions>(
        command, LayerOptions::Defaults{"tiny", 1, 4, 2, tiny_config()});
    options->ranks = std::make_unique<RankOptions>(command, RankOptions::Kind::threads);
    command.runs([options] { return run_trace(*options); });
}

}  // namespace moe
