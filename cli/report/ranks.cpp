// report_ranks.cpp: the ranks' page: who sends to whom, and against theory.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cli/ranks/asked.h"
#include "cli/ranks/comparison.h"
#include "cli/report/page.h"
#include "cli/report/pictures.h"
#include "cli/report/svg.h"
#include "cli/step_options.h"
#include "cli/words.h"

namespace moe {
namespace {

using distributed::RankGenerator;

// ------------------------------------------------------------------------------ values
std::string percent_of(const RankValue& value) {
    return percent(value.error / std::max(value.bound, 1e-300));
}

std::string value_cell(const RankValue& value) {
    if (value.exact)
        return value.ok() ? "<td class='opens'>exact</td>"
                          : "<td class='opens bad'>differs</td>";
    return fmt::format("<td class='opens {}'>{}</td>", value.ok() ? "" : "bad",
                       value.error == 0.0
                           ? "0"
                           : fmt::format("{:.1e}<small>{} of bound</small>", value.error,
                                         percent_of(value)));
}

std::string equality_table(const RankComparison& c) {
    std::string rows, heads;
    for (const RankColumn& column : c.dispatchers[0].columns)
        heads += fmt::format("<th class='column opens'>{}<small>{}</small></th>",
                             escape(column.label),
                             column.emulated ? "emulated on this CPU" : "");
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        rows += fmt::format("<tr class='part'><td>{}</td></tr>\n", outcome.name());
        for (std::size_t v = 0; v < outcome.columns[0].values.size(); ++v) {
            rows += fmt::format("<tr><td><code>{}</code></td>",
                                escape(outcome.columns[0].values[v].name));
            for (const RankColumn& column : outcome.columns)
                rows += value_cell(column.values[v]);
            rows += "</tr>\n";
        }
    }
    return fmt::format(
        "<div class='wide'><table><tr><th>value</th>{}</tr>\n{}</table></div>\n", heads,
        rows);
}

std::string differences(const RankComparison& c) {
    std::string items;
    const auto add = [&](const DispatcherOutcome& outcome, const RankColumn& column,
                         const std::string& what) {
        items += fmt::format("<li>{}, {}: {}</li>\n", outcome.name(),
                             escape(column.label), escape(what));
    };
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        for (const std::string& line : outcome.dropped_in_words())
            items += "<li>" + escape(line) + "</li>\n";
        for (const RankColumn& column : outcome.columns) {
            for (const RankValue& value : column.values)
                if (!value.ok()) add(outcome, column, value.name + ": " + value.detail);
            if (!column.bytes_detail.empty()) add(outcome, column, column.bytes_detail);
        }
    }
    return items.empty() ? "" : "<ul>\n" + items + "</ul>\n";
}

// ------------------------------------------------------------------------------- ranks
std::string rank_table(const RankComparison& c) {
    const RankGenerator experts = RankGenerator::experts(c.sizes);
    const std::int64_t L = c.config().num_local_experts();
    std::string rows;
    for (int rank = 0; rank < c.sizes.world; ++rank) {
        const std::int64_t first = experts.key(rank, "ep") * L;
        rows +=
            fmt::format("<tr><td>rank {}</td><td>{}</td><td>{}{}</td><td>{}</td></tr>\n",
                        rank, grouped(c.tokens.per_rank()),
                        L == 1 ? fmt::format("{}", first)
                               : fmt::format("{}–{}", first, first + L - 1),
                        c.sizes.expert_tensor == 1
                            ? ""
                            : fmt::format(", shard {}", experts.key(rank, "tp")),
                        grouped(c.rows_of(rank)));
    }
    return fmt::format(
        "<div class='wide'><table><tr><th>rank</th><th>tokens</th><th>experts</th>"
        "<th>rows that its experts get</th></tr>\n{}</table></div>\n"
        "<p>Overload factor {:.2f}: rows of the fullest rank over the mean. All wait for "
        "that rank.</p>\n",
        rows, c.overload_factor());
}

// -------------------------------------------------------------------------------- links
/// Bytes of every link in ⑥, shaded by the largest of all dispatchers.
std::string draw_links(const DispatcherOutcome& outcome, std::int64_t largest) {
    const RankColumn& column = outcome.columns.back();
    const Links bytes = column.sent_in({Step::dispatch});
    const int W = int(bytes.size());
    const double left = 92, top = 46, right = kPictureWidth - 150;
    const double width = std::min((right - left) / W, 190.0);
    const double height = std::clamp(480.0 / W, 14.0, 46.0);
    const bool has_words = width >= 64 && height >= 14;
    Canvas canvas;
    canvas.text(left + width * W / 2, 14, "middle", "to rank", "faint");
    canvas.text(left - 12, top - 10, "end", "from rank", "faint");
    canvas.text(left + width * W + 14, top - 10, "start", "sent", "faint");
    const int step = int(std::max(1.0, std::ceil(24.0 / width)));
    for (int from = 0; from < W; ++from) {
        const double y = top + from * height, middle = y + height / 2 + 4;
        if (from % step == 0)
            canvas.text(left + (from + 0.5) * width, top - 10, "middle",
                        fmt::format("{}", from));
        canvas.text(left - 12, middle, "end", fmt::format("{}", from));
        for (int to = 0; to < W; ++to) {
            const double x = left + to * width;
            if (from == to) {
                canvas.rect("ground", x, y, width - 1, height - 1,
                            fmt::format("rank {} keeps what is its own", from));
                continue;
            }
            const double share = double(bytes[from][to]) / double(largest);
            canvas.rect(
                "cell", x, y, width - 1, height - 1,
                fmt::format("rank {} to rank {}: {} rows in step 6; {} bytes", from, to,
                            grouped(outcome.rows[from][to]), grouped(bytes[from][to])),
                bytes[from][to] == 0 ? "fill-opacity='0.04'" : shade(share));
            if (has_words)
                canvas.text(x + width / 2, middle, "middle",
                            bytes_in_words(bytes[from][to]), share > 0.6 ? "onbar" : "");
        }
        canvas.text(left + width * W + 14, middle, "start",
                    bytes_in_words(std::accumulate(bytes[from].begin(), bytes[from].end(),
                                                   std::int64_t{0})));
    }
    return canvas.svg(top + W * height + 6,
                      fmt::format("{}: who sends to whom", outcome.name()));
}

std::string links_section(const RankComparison& c) {
    if (c.sizes.world == 1) return "";
    std::int64_t largest = 1;
    for (const DispatcherOutcome& outcome : c.dispatchers)
        for (const auto& row : outcome.columns.back().sent_in({Step::dispatch}))
            largest = std::max(largest, *std::max_element(row.begin(), row.end()));
    std::string pictures;
    for (const DispatcherOutcome& outcome : c.dispatchers)
        pictures +=
            fmt::format("<h3>{}</h3>\n", outcome.name()) + draw_links(outcome, largest);
    return fmt::format(
        R"(<h2>Who sends to whom</h2>
<p>Each field is a link from one rank to another, with the bytes that crossed it in step
6, tokens on their way to the experts. In step 10 the results take the same links the
other way. The stronger the field, the more bytes; all pictures share one scale. These are
counted from what the ranks sent, in {}. Hover over a field for its rows.</p>
{})",
        escape(c.dispatchers[0].columns.back().label), pictures);
}

// ------------------------------------------------------------------------------- theory
/// Bytes per token of a forward: what was counted over what balanced routing needs.
std::string draw_theory(const RankComparison& c) {
    const double T = double(std::max<std::int64_t>(1, c.num_tokens()));
    const double left = 92, right = kPictureWidth - 120, bar = 18;
    struct Bars {
        std::string name;
        double counted, theory;
    };
    std::vector<Bars> all;
    double longest = 1e-30;
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        const RankColumn& column = outcome.columns.back();
        const double row = double(c.config().latent_size()) *
                           double(size_of(column.spec.dispatcher.dtype));
        const double counted =
            double(total(column.sent_in({Step::dispatch, Step::combine}))) / T;
        all.push_back(
            {outcome.name(), counted, 2.0 * outcome.balanced_rows_per_token * row});
        longest = std::max({longest, all.back().counted, all.back().theory});
    }
    Canvas canvas;
    double y = 4;
    const auto draw = [&](const std::string& look, double bytes, const std::string& words,
                          const std::string& attributes) {
        const double width = (right - left) * bytes / longest;
        canvas.rect(look, left, y, std::max(width, 0.5), bar, words, attributes);
        canvas.text(left + width + 8, y + 13, "start", words);
        y += bar + 3;
    };
    for (const Bars& bars : all) {
        canvas.text(left - 12, y + bar + 6, "end", bars.name);
        draw("cell", bars.counted,
             "counted " + bytes_in_words(std::int64_t(bars.counted)), "");
        draw("cell", bars.theory, "theory " + bytes_in_words(std::int64_t(bars.theory)),
             "fill-opacity='0.35'");
        y += 16;
    }
    return canvas.svg(y - 8, "bytes per token, counted and in theory");
}

std::string traffic_table(const RankComparison& c) {
    const double T = double(std::max<std::int64_t>(1, c.num_tokens()));
    std::string rows, heads;
    for (const Step step : kExchangeSteps)
        heads += fmt::format("<th>{}<small>{}</small></th>", badge(step), title(step));
    for (const DispatcherOutcome& outcome : c.dispatchers) {
        const RankColumn& column = outcome.columns.back();
        rows +=
            fmt::format("<tr><td>{}</td><td>{:.2f}</td><td>{:.2f}</td>", outcome.name(),
                        outcome.rows_per_token, outcome.balanced_rows_per_token);
        for (const Step step : kExchangeSteps)
            rows += fmt::format(
                "<td>{}</td>",
                bytes_in_words(std::int64_t(double(total(column.sent_in({step}))) / T)));
        rows += fmt::format("<td>{}</td><td>{}</td></tr>\n", column.host_waits,
                            outcome.megatron_host_waits);
    }
    return fmt::format(
        "<div class='wide'><table><tr><th>dispatcher</th><th>rows per token, "
        "counted</th><th>if balanced</th>{}<th>host waits</th><th>Megatron’s</th></tr>\n"
        "{}</table></div>\n",
        heads, rows);
}

std::string theory_section(const RankComparison& c) {
    return fmt::format(
        R"(<h2>Bytes per token</h2>
<p><b>Theory</b> is what balanced routing needs: AllGather sends every token to all other
ranks of its group, AlltoAll one copy for every expert that lives elsewhere, Flex one copy
for every rank that has any of the token’s experts; each comes back once. A token’s {} experts
lie on {:.2f} ranks here ({:.2f} if balanced), so Flex makes, those that stay included, {:.2f} times fewer copies than
AlltoAll. <b>Counted</b> adds what travels along (probabilities, counts, ids). It also
adds up in fp32 where sums are formed on the way, which doubles such bytes under
bf16 rows.</p>
{}{}<p class='soft'>Bytes are sums over all ranks, divided by all tokens. Host waits are
those of one forward.</p>
)",
        c.config().moe_router_topk, c.hit, c.balanced_hit,
        double(c.config().moe_router_topk) / std::max(c.hit, 1e-30), draw_theory(c),
        traffic_table(c));
}

std::string asked_table(const RankComparison& c) {
    std::string kinds, names, rows;
    for (const AskedKind& kind : kAskedKinds) {
        kinds += fmt::format("<th class='column opens' colspan='{}'>{}</th>",
                             c.dispatchers.size(), kind.title);
        for (const DispatcherOutcome& outcome : c.dispatchers)
            names += fmt::format("<th>{}</th>", outcome.name());
    }
    for (std::size_t i = 0; i < c.dispatchers[0].columns.size(); ++i) {
        rows += fmt::format("<tr><td>{}</td>",
                            escape(c.dispatchers[0].columns[i].short_label()));
        for (const AskedKind& kind : kAskedKinds)
            for (const DispatcherOutcome& outcome : c.dispatchers)
                rows += fmt::format("<td>{}</td>", kind.in_words(outcome.columns[i]));
        rows += "</tr>\n";
    }
    return fmt::format(
        "<div class='wide'><table><tr><th></th>{}</tr>\n<tr><th>tier</th>{}</tr>\n{}"
        "</table></div>\n",
        kinds, names, rows);
}

std::string asked_section(const RankComparison& c) {
    if (!c.uses_device()) return "";
    return fmt::format(
        R"(<h2>What a rank asks of its device</h2>
<p>Kernels launched and times that the host stood still, counted in one forward and
backward that nobody watches, once the layer has made what it keeps, with experts {} wide,
which changes no count; each number is that of the rank that has most. After the plus:
what the exchanges ask themselves, here over {}. A dot is work that the host does alone.
Counts, not times.</p>
{})",
        narrowed(c.config()).ffn(), c.backend, asked_table(c));
}

std::string introduction(const RankComparison& c) {
    const distributed::ParallelSizes& s = c.sizes;
    return fmt::format(
        R"(<h1>One Mixture-of-Experts layer on {} rank{}</h1>
<p>There {} {}. Each rank holds some experts and some tokens, so tokens
travel to their experts and the results travel back. The model is <b>{}</b>, {} of {}
experts per token; its weights are random. The text is <b>{}</b>, {} tokens.</p>
<p>Dense grid: TP {} × CP {} × DP {}. Grid of the experts: ETP {} × EP {} × DP {}.</p>
<div class='verdict {}'><b>{}</b>{}</div>
{})",
        s.world, s.world == 1 ? "" : "s", s.world == 1 ? "is" : "are", c.ranks_in_words(),
        escape(c.model), c.config().moe_router_topk, c.config().num_experts(),
        escape(c.text_name), grouped(c.num_tokens()), s.tensor, s.context, s.data(),
        s.expert_tensor, s.expert, s.expert_data(), c.ok ? "good" : "bad",
        c.ok ? "✓ Every dispatcher gives what one rank gives, in every column."
             : "✗ Some values differ.",
        differences(c), rank_table(c));
}

std::string notes(const RankComparison& c) {
    std::string items;
    for (const std::string& reason : c.left_out)
        items += fmt::format("<li>left out: {}</li>\n", escape(reason));
    if (c.micro_batches > 1)
        items += fmt::format(
            "<li>{} micro-batches, each that many tokens; rows and bytes "
            "are the first's</li>\n",
            c.micro_batches);
    if (!c.training) items += "<li>" + mode_in_words(false) + "</li>\n";
    if (!c.losses_left_out.empty())
        items += fmt::format("<li>off here: {}</li>\n", escape(c.losses_left_out));
    return items.empty() ? "" : "<ul class='soft'>\n" + items + "</ul>\n";
}

std::string equality_section(const RankComparison& c) {
    return fmt::format(
        R"(<h2>Equality</h2>
<p>All ranks together against one rank that has {}, in fp64. Integers must be equal,
errors are relative (Frobenius norm).</p>
{})",
        escape(c.whole_in_words()), equality_table(c));
}

}  // namespace

std::string write_rank_report(const RankComparison& c, const std::string& folder) {
    return write_page(
        make_page("One MoE layer on ranks",
                  introduction(c) + notes(c) + links_section(c) + theory_section(c) +
                      asked_section(c) + timeline_section(c) + equality_section(c)),
        folder);
}

}  // namespace moe
