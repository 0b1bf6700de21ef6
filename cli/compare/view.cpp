// view.cpp: a comparison on the terminal.

#include "cli/compare/view.h"

#include <fmt/format.h>

#include <algorithm>

#include "cli/compare/table.h"
#include "cli/terminal.h"
#include "cli/words.h"
#include "core/recompute.h"
#include "core/transfer.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe {
namespace {

void print_header(const Comparison& c) {
    const MoEConfig& config = c.config;
    fmt::print(
        "{}\n",
        wrapped(fmt::format("Layer   {}: {}", c.model, layer_in_words(config)), 8));
    if (!c.weights.empty()) fmt::print("{}\n", wrapped("Weights " + c.weights, 8));
    fmt::print(
        "{}\n",
        wrapped(fmt::format("Text    {}: S={} x B={} = {} tokens (bytes), {} expert rows",
                            c.text.name, c.text.seq_len, c.text.micro_batch,
                            c.sizes.num_tokens, c.sizes.num_rows),
                8));
    if (c.micro_batches > 1)
        fmt::print("{}\n",
                   wrapped(fmt::format("Step    {} micro-batches, each that many tokens: "
                                       "successive pieces of the text. Rows, load and "
                                       "what is kept are the first's, times and losses "
                                       "means, errors the worst",
                                       c.micro_batches),
                           8));
    if (!c.training) fmt::print("{}\n", wrapped("Mode    " + mode_in_words(false), 8));
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
               grouped(c.sizes.num_tokens * c.micro_batches));
    bool rounds = false;
    for (const ColumnOutcome& column : c.columns) {
        if (&column == &c.columns.front()) continue;
        rounds = rounds || column.spec.router.dtype == DType::bf16;
        std::string line =
            fmt::format("  {:<20}{}", column.label, in_words(column.changed));
        if (column.own_choices > 0)
            line += fmt::format(
                "; of {} its own rounding of the logits decides, and the "
                "reference followed it there",
                column.own_choices);
        fmt::print("{}\n", wrapped(line, 30));
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
        std::string parts =
            column.kept.is_off()
                ? ""
                : fmt::format("  {} + m = {} + {}", column.kept.formula,
                              grouped(column.kept.bytes / T), grouped(metadata / T));
        if (!column.kept.is_off() && !recomputed_in_words(c.config).empty())
            parts += fmt::format("; without recompute {} + m = {} + m",
                                 column.kept_otherwise.formula,
                                 grouped(column.kept_otherwise.bytes / T));
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
    const std::string agree = "✓ all tiers agree, step by step";
    fmt::print("{}\n", !c.ok                     ? "✗ some values differ"
                       : c.sizes.num_tokens == 0 ? "- no tokens: no step was compared"
                       : c.micro_batches == 1    ? agree
                                                 : agree +
                                                    ", in every micro-batch and in the "
                                                    "sums of their gradients");
}

}  // namespace

void print_comparison(const Comparison& comparison, const std::string& report) {
    print_header(comparison);
    print_steps(comparison, report);
    print_losses(comparison);
    print_changed_experts(comparison);
    print_kept(comparison);
    print_expert_load(comparison);
    print_verdict(comparison);
}

}  // namespace moe
