// report_pictures.cpp: routing map, expert load, permutation and time shares as SVG.
// Colours come from the page's style sheet, so that the pictures follow light and dark.

#include "cli/report_pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>

namespace moe {
namespace {

constexpr double kWidth = 960.0;

std::string svg(double height, const std::string& label, const std::string& body) {
    return fmt::format(
        "<svg viewBox='0 0 {} {:.0f}' role='img' aria-label='{}'>\n{}</svg>\n", kWidth,
        height, label, body);
}

std::string text_at(double x, double y, const std::string& anchor,
                    const std::string& text) {
    return fmt::format("<text x='{:.1f}' y='{:.1f}' text-anchor='{}'>{}</text>\n", x, y,
                       anchor, text);
}

/// Class of an expert's colour; eight hues, in turn.
std::string hue(std::int64_t expert) {
    return fmt::format("hue{}", expert % 8);
}

/// Label every n-th expert, so that labels keep `room` apart.
std::int64_t label_step(double cell, double room) {
    return std::max<std::int64_t>(1, std::llround(std::ceil(room / cell)));
}

struct RoutedRow {
    std::int64_t token, expert;
};

/// The rows of the first `count` tokens, in the order in which they are dispatched.
std::vector<RoutedRow> rows_of_first_tokens(const Comparison& c, std::int64_t count) {
    const std::int64_t* counts = c.tokens_per_expert.data<std::int64_t>();
    const std::int64_t* row_token = c.row_token.data<std::int64_t>();
    std::vector<RoutedRow> rows;
    std::int64_t row = 0;
    for (std::int64_t expert = 0; expert < c.config.num_experts(); ++expert)
        for (std::int64_t i = 0; i < counts[expert]; ++i, ++row)
            if (row_token[row] < count) rows.push_back({row_token[row], expert});
    return rows;
}

}  // namespace

std::string escape(const std::string& text) {
    std::string safe;
    for (char c : text) {
        if (c == '&')
            safe += "&amp;";
        else if (c == '<')
            safe += "&lt;";
        else if (c == '>')
            safe += "&gt;";
        else if (c == '\'')
            safe += "&#39;";
        else if (c == '"')
            safe += "&quot;";
        else if (c >= ' ' && c <= '~')
            safe += c;
        else
            safe += "·";
    }
    return safe;
}

std::string visible(std::uint8_t byte) {
    if (byte == ' ') return "␣";
    if (byte == '\n') return "⏎";
    return escape(std::string(1, static_cast<char>(byte)));
}

std::string draw_routing_map(const Comparison& c) {
    const std::int64_t E = c.config.num_experts(), B = c.text.micro_batch;
    const std::int64_t tokens = std::min<std::int64_t>(64, c.text.seq_len);
    const double left = 84, top = 26, cell = (kWidth - left - 6) / 64;
    const double row = std::clamp(420.0 / double(E), 2.5, 24.0);
    const double* probs = c.probs.data<double>();
    double largest = 1e-30;
    for (std::int64_t i = 0; i < c.probs.numel(); ++i)
        largest = std::max(largest, probs[i]);

    std::string body;
    for (std::int64_t i = 0; i < tokens; ++i)
        body += text_at(left + (double(i) + 0.5) * cell, top - 8, "middle",
                        visible(c.text.bytes[i * B]));
    body += fmt::format(
        "<rect class='ground' x='{}' y='{}' width='{:.1f}' height='{:.1f}'/>\n", left,
        top, cell * double(tokens), row * double(E));
    for (std::int64_t e = 0; e < E; ++e) {
        if (e % label_step(row, 14) == 0)
            body += text_at(left - 6, top + (double(e) + 0.5) * row + 4, "end",
                            fmt::format("expert {}", e));
        for (std::int64_t i = 0; i < tokens; ++i) {
            const double p = probs[i * B * E + e];
            const bool routed = c.routing_map.data<std::uint8_t>()[i * B * E + e] != 0;
            if (!routed) continue;
            body += fmt::format(
                "<rect class='cell' x='{:.1f}' y='{:.1f}' width='{:.1f}' "
                "height='{:.1f}' fill-opacity='{:.2f}'><title>token {} “{}”, "
                "expert {}: {:.4f}</title></rect>\n",
                left + double(i) * cell, top + double(e) * row, cell - 1,
                std::max(row - 1, 2.0), 0.15 + 0.85 * p / largest, i * B,
                visible(c.text.bytes[i * B]), e, p);
        }
    }
    return svg(top + row * double(E) + 6, "routing map", body);
}

std::string draw_expert_load(const Comparison& c) {
    const std::int64_t E = c.config.num_experts();
    const std::int64_t* load = c.tokens_per_expert.data<std::int64_t>();
    const double left = 58, bottom = 230, top = 18,
                 cell = (kWidth - left - 90) / double(E);
    const double largest =
        double(std::max<std::int64_t>(1, *std::max_element(load, load + E)));
    const double even = double(c.sizes.num_rows) / double(E);
    const auto height = [&](double rows) { return (bottom - top) * rows / largest; };

    std::string body;
    for (std::int64_t e = 0; e < E; ++e) {
        const double x = left + double(e) * cell;
        body += fmt::format(
            "<rect class='{}' x='{:.1f}' y='{:.1f}' width='{:.1f}' "
            "height='{:.1f}'><title>expert {}: {} rows</title></rect>\n",
            hue(e), x, bottom - height(double(load[e])), std::max(cell * 0.86, 1.0),
            height(double(load[e])), e, load[e]);
        if (e % label_step(cell, 30) == 0)
            body += text_at(x + cell * 0.43, bottom + 16, "middle", fmt::format("{}", e));
        if (cell >= 38)
            body += text_at(x + cell * 0.43, bottom - height(double(load[e])) - 4,
                            "middle", fmt::format("{}", load[e]));
    }
    const double line = bottom - height(even);
    body +=
        fmt::format("<line class='even' x1='{}' x2='{:.1f}' y1='{:.1f}' y2='{:.1f}'/>\n",
                    left, left + cell * double(E), line, line);
    body += text_at(left + cell * double(E) + 4, line + 4, "start", "even share");
    body += text_at(left - 6, bottom + 16, "end", "expert");
    body += text_at(left - 6, line + 4, "end", fmt::format("{:.1f}", even));
    return svg(bottom + 24, "rows per expert", body);
}

std::string draw_permutation(const Comparison& c) {
    const std::int64_t tokens = std::min<std::int64_t>(40, c.sizes.num_tokens);
    const std::vector<RoutedRow> rows = rows_of_first_tokens(c, tokens);
    const double top = 30, left = 150, right = 700;
    const double row_step = std::clamp(760.0 / double(rows.size() + 1), 3.0, 12.0);
    const double height = std::max(double(rows.size()) * row_step, double(tokens) * 13.0);
    const double token_step = height / double(std::max<std::int64_t>(tokens, 1));
    const double spread = height / double(std::max<std::size_t>(rows.size(), 1));

    std::string body = text_at(left - 10, 14, "end", "tokens") +
                       text_at(right + 10, 14, "start", "rows, by expert, then token");
    for (std::int64_t t = 0; t < tokens; ++t)
        body += text_at(left - 10, top + (double(t) + 0.5) * token_step + 4, "end",
                        fmt::format("{} “{}”", t, visible(c.text.bytes[t])));
    for (std::size_t r = 0; r < rows.size(); ++r) {
        const double from = top + (double(rows[r].token) + 0.5) * token_step;
        const double to = top + (double(r) + 0.5) * spread;
        body += fmt::format(
            "<path class='{}' d='M{} {:.1f} C{} {:.1f} {} {:.1f} {} {:.1f}'>"
            "<title>token {} to expert {}</title></path>\n",
            hue(rows[r].expert), left, from, left + 240, from, right - 240, to, right, to,
            rows[r].token, rows[r].expert);
    }
    // A bar beside the rows of each expert
    double last_label = -100.0;
    for (std::size_t first = 0; first < rows.size();) {
        std::size_t end = first;
        while (end < rows.size() && rows[end].expert == rows[first].expert) ++end;
        const double y = top + double(first) * spread,
                     size = double(end - first) * spread;
        body += fmt::format(
            "<rect class='{}' x='{}' y='{:.1f}' width='8' height='{:.1f}'/>\n",
            hue(rows[first].expert), right + 3, y, std::max(size - 1.5, 1.0));
        if (y + size / 2 - last_label >= 13) {
            last_label = y + size / 2;
            body += text_at(right + 18, last_label + 4, "start",
                            fmt::format("expert {}, {} row{}", rows[first].expert,
                                        end - first, end - first == 1 ? "" : "s"));
        }
        first = end;
    }
    return svg(top + height + 8, "tokens to rows", body);
}

std::string draw_time_shares(const ColumnOutcome& column) {
    double total = 1e-30;
    for (const StepOutcome& step : column.steps) total += step.seconds;
    double x = 0.0;
    std::string body;
    for (int n = 1; n <= kNumSteps; ++n) {
        const auto step = static_cast<Step>(n);
        const double width = kWidth * column.at(step).seconds / total;
        if (width < 0.05) continue;
        body += fmt::format(
            "<rect class='{}' x='{:.2f}' y='0' width='{:.2f}' height='30'>"
            "<title>{} {}: {:.2f} ms</title></rect>\n",
            hue(n), x, width, n, title(step), 1e3 * column.at(step).seconds);
        if (width > 26)
            body += fmt::format(
                "<text class='onbar' x='{:.1f}' y='20' "
                "text-anchor='middle'>{}</text>\n",
                x + width / 2, n);
        x += width;
    }
    return svg(30, "time by step", body);
}

}  // namespace moe
