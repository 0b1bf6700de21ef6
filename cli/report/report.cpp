// report.cpp: the comparison as one self-contained page.

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "cli/compare/comparison.h"
#include "cli/report/page.h"
#include "cli/report/pictures.h"
#include "cli/report/steps.h"
#include "cli/report/svg.h"
#include "cli/step_options.h"
#include "cli/words.h"

namespace moe {
namespace {

// ----------------------------------------------------------------------------- words
/// The first sequence's first lines, cut between characters.
std::string excerpt(const TextTokens& text) {
    constexpr std::int64_t kMost = 300;
    const auto byte = [&](std::int64_t s) { return text.bytes[s * text.micro_batch]; };
    std::int64_t end = std::min(text.seq_len, kMost);
    while (end > kMost - 4 && end < text.seq_len && (byte(end) & 0xC0) == 0x80) --end;
    std::string safe, line;
    for (std::int64_t s = 0; s < end; ++s) {
        if (byte(s) != '\n') line += static_cast<char>(byte(s));
        if (byte(s) != '\n' && s + 1 < end) continue;
        safe += escape(line) + (byte(s) == '\n' ? "\n" : "");
        line.clear();
    }
    return safe + (end < text.seq_len ? " …" : "");
}

// ------------------------------------------------------------------------ introduction
std::string fact(const std::string& letter, const std::string& value,
                 const std::string& words) {
    return fmt::format("<div><dt><i>{}</i> {}</dt><dd>{}</dd></div>\n", letter, value,
                       words);
}

std::string facts(const Comparison& c) {
    const MoEConfig& config = c.config;
    const std::string tokens = fmt::format(
        "tokens: S = {} in each of B = {} sequence{}", grouped(c.text.seq_len),
        grouped(c.text.micro_batch), c.text.micro_batch == 1 ? "" : "s");
    const std::string step =
        "micro-batches of one optimizer step; you see the first, and of losses and times "
        "the means";
    return "<dl class='facts'>\n" + fact("T =", grouped(c.sizes.num_tokens), tokens) +
           (c.micro_batches > 1 ? fact("", grouped(c.micro_batches), step) : "") +
           fact("H =", grouped(config.hidden_size), "hidden size, numbers per token") +
           (config.moe_latent_size ? fact("ℓ =", grouped(*config.moe_latent_size),
                                          "latent size, numbers per dispatched row")
                                   : "") +
           fact("E =", grouped(config.num_experts()), "experts") +
           fact("K =", grouped(config.moe_router_topk), "experts per token") +
           fact("F =", grouped(config.ffn()),
                fmt::format("width of an expert, {}{}",
                            config.gated_linear_unit ? "gated " : "",
                            escape(config.activation_func))) +
           (config.shared_ffn() == 0
                ? ""
                : fact("F<sub>s</sub> =", grouped(config.shared_ffn()),
                       "width of the shared expert")) +
           fact("N =", grouped(c.sizes.num_rows), "rows that the experts get") +
           "</dl>\n";
}

/// What differs, as list items; empty when all is well.
std::string differences(const Comparison& c) {
    std::string items;
    for (const ColumnOutcome& column : c.columns)
        for (int n = 1; n <= kNumSteps; ++n) {
            const auto step = static_cast<Step>(n);
            const StepOutcome& outcome = column.at(step);
            if (outcome.ok() && outcome.detail.empty()) continue;
            items += fmt::format("<li>{}, {} {}: {}</li>\n", escape(column.label),
                                 badge(step), title(step), escape(outcome.detail));
        }
    for (const GoldenOutcome& golden : c.golden)
        for (const std::string& name : golden.failed)
            items += fmt::format("<li>{}, golden case {}</li>\n", escape(golden.label),
                                 escape(name));
    return items.empty() ? "" : "<ul>\n" + items + "</ul>\n";
}

std::string verdict(const Comparison& c) {
    const std::string agreement =
        c.sizes.num_tokens == 0 ? "There are no tokens: no step was compared"
        : c.columns.size() < 2  ? "Only the fp64 reference ran"
                                : "All columns agree with fp64 in every step";
    const std::string golden = c.golden.empty() ? "" : ", and every golden case passes";
    return fmt::format(
        "<div class='verdict {}'><b>{}</b>{}</div>\n", c.ok ? "good" : "bad",
        c.ok ? (c.sizes.num_tokens == 0 ? "" : "✓ ") + agreement + golden + "."
             : "✗ Some values differ.",
        differences(c));
}

std::string introduction(const Comparison& c) {
    const MoEConfig& config = c.config;
    return fmt::format(
        R"(<h1>One Mixture-of-Experts layer, step by step</h1>
<p>You see one MoE layer at work, forward and backward. A <b>router</b> sends each token
to {} of {} <b>experts</b>, each a small MLP, and the layer adds up what they return. The
model is <b>{}</b> with {} scores; its weights are random, not trained.</p>
{}{}{}<p>A <b>token</b> here is one byte of a text, embedded with the two bytes before it by
fixed tables. Common bytes make busy experts, as language is uneven. Your text is
<b>{}</b>; its first sequence begins:</p>
<pre>{}</pre>
)",
        config.moe_router_topk, config.num_experts(), escape(c.model),
        config.is_sinkhorn() ? "sinkhorn" : escape(config.moe_router_score_function),
        verdict(c), facts(c),
        c.training ? "" : "<p>This is an " + mode_in_words(false) + ".</p>\n",
        escape(c.text.name), c.sizes.num_tokens > 0 ? excerpt(c.text) : "(empty)");
}

// ---------------------------------------------------------------------------- pictures
std::string routing_section(const Comparison& c) {
    return fmt::format(
               R"(<h2>Routing map</h2>
<p>Read the text from left to right: each column is a token, and its {} marks are the
experts it visits. The stronger the mark, the larger the probability that weighs the
expert’s answer. {}Hover over a mark for its numbers.</p>
)",
               c.config.moe_router_topk,
               c.config.moe_expert_capacity_factor
                   ? "Capacity is limited: a token with fewer marks lost the others. "
                   : "") +
           draw_routing_map(c);
}

/// The bytes that an expert gets most, with their counts.
std::string favourite_bytes(const Comparison& c, std::int64_t expert) {
    const auto routed = elements<std::uint8_t>(c.routing_map);
    std::array<std::int64_t, 256> counts{};
    for (std::int64_t t = 0; t < c.sizes.num_tokens; ++t)
        counts[c.text.bytes[t]] += routed[t * c.config.num_experts() + expert];
    std::vector<int> order(256);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return counts[a] > counts[b]; });
    std::string list;
    for (int i = 0; i < 8 && counts[order[i]] > 0; ++i)
        list += fmt::format("<code>{}</code> {}&emsp;",
                            visible(static_cast<std::uint8_t>(order[i])),
                            grouped(counts[order[i]]));
    return list;
}

std::string load_section(const Comparison& c) {
    const std::vector<std::int64_t> load = expert_load(c);
    const auto E = static_cast<std::int64_t>(load.size());
    const double mean = double(c.sizes.num_rows) / double(E);
    const double safe_mean = std::max(mean, 1e-30);
    double variance = 0.0;
    for (const std::int64_t rows : load)
        variance += std::pow(double(rows) - mean, 2) / double(E);
    std::vector<std::int64_t> busiest(E);
    std::iota(busiest.begin(), busiest.end(), 0);
    std::stable_sort(busiest.begin(), busiest.end(),
                     [&](std::int64_t a, std::int64_t b) { return load[a] > load[b]; });

    std::string rows;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(E, 5); ++i)
        rows += fmt::format(
            "<tr><td>expert {}</td><td>{}</td><td>{:.2f}</td><td class='words'>{}</td>"
            "</tr>\n",
            busiest[i], grouped(load[busiest[i]]), double(load[busiest[i]]) / safe_mean,
            favourite_bytes(c, busiest[i]));
    return fmt::format(
        R"(<h2>Expert load</h2>
<p>The bars are the rows each expert gets. The busiest gets <b>{:.2f} times</b> the even
share N/E; the coefficient of variation (standard deviation over mean) is <b>{:.2f}</b>;
{} of {} experts get nothing. Where experts are spread over GPUs, the busiest decides how
long all wait: that is why routers are trained towards the dashed line.</p>
{}<div class='wide'><table><tr><th>busiest</th><th>rows</th><th>of even share</th>
<th class='words'>bytes it gets most, with their counts</th></tr>
{}</table></div>
)",
        double(load[busiest[0]]) / safe_mean, std::sqrt(variance) / safe_mean,
        std::count(load.begin(), load.end(), 0), E, draw_expert_load(c), rows);
}

std::string permutation_section(const Comparison& c) {
    return fmt::format(
               R"(<h2>Permutation</h2>
<p>An expert multiplies all its tokens at once, so their rows must lie side by side.
<b>Dispatch</b> copies each token once for every expert it visits, in expert order.
<b>Combine</b> follows the same curves back and adds up. You see the first tokens of the
batch{}. Rows of later tokens are squeezed into a faint stub, or left out. Hover over a
token to follow it.</p>
)",
               c.text.micro_batch > 1
                   ? fmt::format(", in which the {} sequences take turns",
                                 c.text.micro_batch)
                   : "") +
           draw_permutation(c);
}

// ------------------------------------------------------------------- losses and golden
std::string losses_section(const Comparison& c) {
    if (c.columns.front().losses.empty()) return "";
    std::string head, rows;
    for (const ColumnOutcome& column : c.columns)
        head += fmt::format("<th>{}</th>", escape(column.label));
    for (const auto& [name, value] : c.columns.front().losses) {
        rows += fmt::format("<tr><td>{}</td>", escape(name));
        for (const ColumnOutcome& column : c.columns)
            rows += column.losses.contains(name)
                        ? fmt::format("<td>{:.9f}</td>", column.losses.at(name))
                        : "<td>–</td>";
        rows += "</tr>\n";
    }
    return fmt::format(
        R"(<h2>Losses</h2>
<p>These push the router towards an even load, or towards small logits (z loss). You see
them before their coefficients. A load-balancing loss near 1 means even use.</p>
<div class='wide'><table><tr><th>loss</th>{}</tr>
{}</table></div>
)",
        head, rows);
}

std::string kept_section(const Comparison& c) {
    const std::int64_t T = c.sizes.num_tokens;
    if (T == 0) return "";
    std::string rows;
    for (const ColumnOutcome& column : c.columns) {
        const bool known = !column.kept.is_off();
        const Floor& without = column.kept_otherwise;
        const std::string otherwise =
            recomputed_in_words(c.config).empty()
                ? ""
                : fmt::format("; without recompute {} + m = {} + m", without.formula,
                              grouped(without.bytes / T));
        rows += fmt::format(
            "<tr><td>{}</td><td>{}</td><td class='words'>{}</td><td>{}</td></tr>\n",
            escape(column.label), grouped(column.kept_bytes / T),
            known ? column.kept.formula + " + m" + otherwise : "–",
            known ? fmt::format("{} + {}", grouped(column.kept.bytes / T),
                                grouped((column.kept_bytes - column.kept.bytes) / T))
                  : "–");
    }
    return fmt::format(
        R"(<h2>Memory that the backward needs</h2>
<p>Training keeps this for every layer at once. The formula counts activations; m stands
for logits, scores, maps, ids and weights of rows, and is counted.</p>
<div class='wide'><table><tr><th>supplier</th><th>bytes per token</th>
<th class='words'>what is kept</th><th>of these</th></tr>
{}</table></div>
)",
        rows);
}

std::string golden_section(const Comparison& c) {
    if (c.golden.empty()) return "";
    std::string rows;
    for (const GoldenOutcome& golden : c.golden)
        rows += fmt::format(
            "<tr><td>{}</td><td class='{}'>{} {} of {}</td><td>{}</td>"
            "<td class='words'>{}</td></tr>\n",
            escape(golden.label), golden.failed.empty() ? "good" : "bad",
            golden.failed.empty() ? "✓" : "✗", golden.passed, golden.total,
            percent(golden.worst_share), escape(golden.worst_case));
    return fmt::format(
        R"(<h2>Golden cases</h2>
<p>Columns that agree could share a mistake. These cases are whole layers, forward and
backward, whose numbers come from Megatron-Core’s and Hugging Face’s own code.</p>
<div class='wide'><table><tr><th>supplier</th><th>passed</th><th>worst, of its bound</th>
<th class='words'>where</th></tr>
{}</table></div>
)",
        rows);
}

// -------------------------------------------------------------------------------- page
std::string make_body(const Comparison& c) {
    return introduction(c) + routing_section(c) + load_section(c) +
           permutation_section(c) + steps_section(c) + losses_section(c) +
           kept_section(c) + golden_section(c);
}

}  // namespace

std::string write_report(const Comparison& comparison, const std::string& folder) {
    return write_page(make_page("One MoE layer, step by step", make_body(comparison)),
                      folder);
}

}  // namespace moe
