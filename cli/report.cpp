// report.cpp: the comparison as one self-contained page.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <numeric>

#include "cli/comparison.h"
#include "cli/report_pictures.h"
#include "core/error.h"

namespace moe {
namespace {

namespace fs = std::filesystem;

// The eight hues are those of Okabe and Ito, told apart by colour-blind eyes.
constexpr const char* kStyle = R"(
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5c6675; --paper: #fff;
  --line: #d9dee6; --ground: #f1f3f7; --accent: #0072b2; --good: #00795a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa4b2;
  --paper: #12161d; --line: #303947; --ground: #1c232d; --accent: #56b4e9;
  --good: #4cc9a0; --bad: #ff8a80; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { line-height: 1.2; margin-bottom: .3rem; } h2 { margin-top: 2.6rem; }
p { max-width: 46rem; } .soft { color: var(--soft); } .good { color: var(--good); }
.bad { color: var(--bad); } pre { background: var(--ground); padding: .8rem; overflow: auto;
  border-radius: 6px; white-space: pre-wrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { color: var(--soft); }
tr.part td { border: 0; padding-top: 1rem; font-weight: 600; }
svg { width: 100%; height: auto; margin: .4rem 0; } svg text { font: 12px ui-monospace,
  monospace; fill: var(--ink); paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
svg text.onbar { fill: #fff; font-weight: 600; stroke: none; }
.step { display: inline-block; min-width: 1.5em; margin-right: .3em; text-align: center;
  border: 1px solid var(--soft); border-radius: 1em; font-size: 12px; }
.ground { fill: var(--ground); } .cell { fill: var(--accent); }
.even { stroke: var(--ink); stroke-dasharray: 5 4; }
path { fill: none; stroke-width: 1.6; stroke-opacity: .75; }
.hue0 { fill: #0072b2; stroke: #0072b2; } .hue1 { fill: #d55e00; stroke: #d55e00; }
.hue2 { fill: #009e73; stroke: #009e73; } .hue3 { fill: #cc79a7; stroke: #cc79a7; }
.hue4 { fill: #b8860b; stroke: #b8860b; } .hue5 { fill: #3f9bd4; stroke: #3f9bd4; }
.hue6 { fill: #7a5cc4; stroke: #7a5cc4; } .hue7 { fill: #7f7f7f; stroke: #7f7f7f; }
rect.hue0, rect.hue1, rect.hue2, rect.hue3, rect.hue4, rect.hue5, rect.hue6, rect.hue7 {
  stroke: none; } path[class^=hue] { fill: none; }
)";

std::string introduction(const Comparison& c) {
    const std::string excerpt = [&] {
        std::string text;
        for (std::int64_t s = 0; s < std::min<std::int64_t>(c.text.seq_len, 300); ++s) {
            const std::uint8_t byte = c.text.bytes[s * c.text.micro_batch];
            text += byte == '\n' ? "\n" : escape(std::string(1, static_cast<char>(byte)));
        }
        return text;
    }();
    return fmt::format(
        "<h1>One MoE layer, step by step</h1>\n<p class='soft'>{}: hidden size H = {}, E "
        "= {} "
        "experts of width F = {}, K = {} per token. {}: S = {} by B = {}, T = {} tokens, "
        "N = {} "
        "expert rows.</p>\n<p class='{}'><b>{}</b></p>\n"
        "<p>Each token is a byte of the text with the two before it, embedded by a fixed "
        "table. "
        "Common bytes make popular experts, as common words do in a real model. The "
        "first "
        "sequence begins:</p>\n<pre>{}</pre>\n",
        escape(c.model), c.config.hidden_size, c.config.num_experts(), c.config.ffn(),
        c.config.moe_router_topk, escape(c.text.name), c.text.seq_len, c.text.micro_batch,
        c.sizes.num_tokens, c.sizes.num_rows, c.ok ? "good" : "bad",
        c.ok ? "✓ All tiers agree, step by step." : "✗ Some values differ; see below.",
        excerpt);
}

/// "e 41, t 30, …": the bytes that an expert gets most.
std::string favourite_bytes(const Comparison& c, std::int64_t expert) {
    std::array<std::int64_t, 256> counts{};
    for (std::int64_t t = 0; t < c.sizes.num_tokens; ++t)
        counts[c.text.bytes[t]] +=
            c.routing_map.data<std::uint8_t>()[t * c.config.num_experts() + expert];
    std::vector<int> order(256);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return counts[a] > counts[b]; });
    std::string list;
    for (int i = 0; i < 8 && counts[order[i]] > 0; ++i)
        list +=
            fmt::format("{}<b>{}</b> {}", list.empty() ? "" : ", ",
                        visible(static_cast<std::uint8_t>(order[i])), counts[order[i]]);
    return list;
}

std::string load_section(const Comparison& c) {
    const std::int64_t E = c.config.num_experts();
    const std::int64_t* load = c.tokens_per_expert.data<std::int64_t>();
    const double mean = double(c.sizes.num_rows) / double(E);
    double variance = 0.0;
    for (std::int64_t e = 0; e < E; ++e)
        variance += std::pow(double(load[e]) - mean, 2) / double(E);
    std::vector<std::int64_t> busiest(E);
    std::iota(busiest.begin(), busiest.end(), 0);
    std::stable_sort(busiest.begin(), busiest.end(),
                     [&](std::int64_t a, std::int64_t b) { return load[a] > load[b]; });

    std::string rows;
    for (std::int64_t i = 0; i < std::min<std::int64_t>(E, 4); ++i)
        rows += fmt::format(
            "<tr><td>expert {}</td><td>{}</td><td style='text-align:left'>{}"
            "</td></tr>\n",
            busiest[i], load[busiest[i]], favourite_bytes(c, busiest[i]));
    const double safe_mean = std::max(mean, 1e-30);
    return fmt::format(
        "<h2>Expert load</h2>\n<p>Rows per expert. The busiest has {:.2f} times the even "
        "share; "
        "the coefficient of variation is {:.2f}. A step takes as long as its busiest "
        "expert, "
        "which is why routers are trained towards the dashed line.</p>\n{}"
        "<div class='wide'><table><tr><th>busiest</th><th>rows</th><th "
        "style='text-align:left'>"
        "bytes it gets most</th></tr>\n{}</table></div>\n",
        double(load[busiest[0]]) / safe_mean, std::sqrt(variance) / safe_mean,
        draw_expert_load(c), rows);
}

std::string error_cells(const StepOutcome& outcome) {
    if (!outcome.integers_equal) return "<td class='bad'>integers differ</td><td></td>";
    if (outcome.error == 0.0) return "<td>0</td><td></td>";
    return fmt::format("<td class='{}'>{:.1e}</td><td>{:.1f} %</td>",
                       outcome.ok() ? "" : "bad", outcome.error,
                       100.0 * outcome.error / outcome.bound);
}

/// A step's number as a badge: few fonts have ⑪ to ⑳.
std::string badge(Step step) {
    return fmt::format("<span class='step'>{}</span>", static_cast<int>(step));
}

std::string step_row(const Comparison& c, Step step) {
    const DType narrowest = c.columns.back().spec.experts.dtype;
    const StepCost cost = step_cost(step, c.config, c.sizes, narrowest);
    std::string row = fmt::format("<tr><td>{} {}</td>", badge(step), title(step));
    if (cost.formula.empty())
        return row + fmt::format("<td class='soft'>off</td><td colspan='{}'></td></tr>\n",
                                 3 * c.columns.size() - 1);
    row +=
        fmt::format("<td>{}</td><td>{:.2f}</td>", cost.formula, double(cost.bytes) / 1e6);
    for (std::size_t i = 0; i < c.columns.size(); ++i) {
        row += fmt::format("<td>{:.2f}</td>", 1e3 * c.columns[i].at(step).seconds);
        if (i > 0) row += error_cells(c.columns[i].at(step));
    }
    return row + "</tr>\n";
}

std::string steps_section(const Comparison& c) {
    std::string head = "<tr><th>step</th><th>elements</th><th>MB</th>";
    for (std::size_t i = 0; i < c.columns.size(); ++i)
        head += fmt::format("<th>{}, ms</th>{}", escape(c.columns[i].label),
                            i > 0 ? "<th>error</th><th>of bound</th>" : "");
    std::string rows;
    for (int n = 1; n <= kNumSteps; ++n) {
        if (n == 1) rows += "<tr class='part'><td>forward</td></tr>\n";
        if (n == 11) rows += "<tr class='part'><td>backward</td></tr>\n";
        rows += step_row(c, static_cast<Step>(n));
    }
    std::string shares, details;
    for (const ColumnOutcome& column : c.columns) {
        shares += fmt::format(
            "<p class='soft'>{}: {:.1f} ms forward and backward</p>\n{}",
            escape(column.label), 1e3 * column.seconds, draw_time_shares(column));
        for (int n = 1; n <= kNumSteps; ++n)
            if (const auto& step = column.steps[n - 1]; !step.detail.empty())
                details +=
                    fmt::format("<p class='bad'>{} {}: {}</p>\n", escape(column.label),
                                badge(static_cast<Step>(n)), escape(step.detail));
    }
    return fmt::format(
        "<h2>Step by step</h2>\n<p>Step n is undone by step 21 − n. Elements are what "
        "every "
        "correct implementation must read and write at least once; MB is that in {}. "
        "Times are "
        "medians on this machine's CPU and say nothing about a GPU. Errors are relative "
        "to {}."
        "</p>\n<div class='wide'><table>{}</tr>\n{}</table></div>\n{}"
        "<h3>Where the time goes</h3>\n{}",
        to_string(c.columns.back().spec.experts.dtype), escape(c.columns.front().label),
        head, rows, details, shares);
}

std::string losses_section(const Comparison& c) {
    if (c.columns.front().losses.empty()) return "";
    std::string head = "<tr><th>loss, before its coefficient</th>", rows;
    for (const ColumnOutcome& column : c.columns)
        head += fmt::format("<th>{}</th>", escape(column.label));
    for (const auto& [name, value] : c.columns.front().losses) {
        rows += fmt::format("<tr><td>{}</td>", name);
        for (const ColumnOutcome& column : c.columns)
            rows += fmt::format("<td>{:.9f}</td>", column.losses.at(name));
        rows += "</tr>\n";
    }
    return fmt::format(
        "<h2>Losses</h2>\n<p>A load-balancing loss of 1 means perfectly even use."
        "</p>\n<div class='wide'><table>{}</tr>\n{}</table></div>\n",
        head, rows);
}

std::string golden_section(const Comparison& c) {
    if (c.golden.empty()) return "";
    std::string rows;
    for (const GoldenOutcome& golden : c.golden) {
        std::string failed;
        for (const std::string& name : golden.failed) failed += " " + escape(name);
        rows += fmt::format(
            "<tr><td>{}</td><td class='{}'>{} of {}{}</td><td>{:.1f} %</td>"
            "<td>{}</td></tr>\n",
            escape(golden.label), golden.failed.empty() ? "good" : "bad", golden.passed,
            golden.total, failed, 100.0 * golden.worst_share, escape(golden.worst_case));
    }
    return "<h2>Golden cases</h2>\n<p>Whole layers, forward and backward, whose numbers "
           "were "
           "computed by Megatron-Core's and Hugging Face's own code.</p>\n<div "
           "class='wide'>"
           "<table><tr><th>tier</th><th>match</th><th>worst, of its "
           "bound</th><th>where</th>"
           "</tr>\n" +
           rows + "</table></div>\n";
}

std::string make_page(const Comparison& c) {
    return fmt::format(
               "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
               "<meta name='viewport' content='width=device-width, initial-scale=1'>"
               "<title>MoE layer, step by step</title><style>{}</style></head><body>\n",
               kStyle) +
           introduction(c) +
           "<h2>Routing map</h2>\n<p>Which experts the first tokens visit. The stronger "
           "the colour, the "
           "larger the probability; hover for numbers.</p>\n" +
           draw_routing_map(c) + load_section(c) +
           "<h2>Permutation</h2>\n<p>Dispatch copies each token once per expert it "
           "visits, and "
           "puts the copies in expert order, so that each expert finds its rows side by "
           "side. "
           "Combine sums them on the way back. Here: the first tokens of the "
           "batch.</p>\n" +
           draw_permutation(c) + steps_section(c) + losses_section(c) +
           golden_section(c) + "</body></html>\n";
}

/// Writes a file whole or not at all; false when the folder does not allow it.
bool write_whole(const fs::path& path, const std::string& content) {
    const fs::path draft = path.string() + ".part";
    std::ofstream file(draft, std::ios::binary);
    file << content;
    file.close();
    std::error_code error;
    if (file) fs::rename(draft, path, error);
    const bool written = file && !error;
    if (!written) fs::remove(draft, error);
    return written;
}

constexpr const char* kFolderRule = "must be a folder that can be made and written";

}  // namespace

void require_writable_folder(const std::string& field, const std::string& folder) {
    std::error_code error;
    fs::create_directories(folder, error);
    const fs::path probe = fs::path(folder) / ".moe-probe";
    if (!fs::is_directory(folder, error) || !write_whole(probe, "probe"))
        reject(field, folder, kFolderRule);
    fs::remove(probe, error);
}

std::string write_report(const Comparison& comparison, const std::string& folder) {
    const fs::path page = fs::path(folder) / "index.html";
    if (!write_whole(page, make_page(comparison)))
        reject("--report", folder, kFolderRule);
    return page;
}

}  // namespace moe
