// report_pictures.cpp: routing map, expert load, permutation and times as SVG.

#include "cli/report/pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cli/report/svg.h"

namespace moe {
namespace {

constexpr std::int64_t kMostHued = 32;  // beyond, eight hues in turn say nothing
constexpr double kNameHeight = 13.0;    // from one expert's name to the next

/// Class of an expert's colour; eight hues, in turn.
std::string hue(std::int64_t index) {
    return fmt::format("hue{}", index % 8);
}

/// Every how many cells to write a label so that labels keep `room` apart: a power of
/// two, as numbers of experts are.
std::int64_t label_step(double cell, double room) {
    std::int64_t step = 1;
    while (double(step) * cell < room) step *= 2;
    return step;
}

/// The smallest of 1, 2, 5, 10, 20, … that is at least `value`.
std::int64_t round_number(double value) {
    std::int64_t power = 1;
    while (double(power) * 10.0 <= value) power *= 10;
    for (std::int64_t factor : {1, 2, 5})
        if (double(factor * power) >= value) return factor * power;
    return 10 * power;
}

std::string token_name(const Comparison& c, std::int64_t t) {
    return fmt::format("token {} “{}”", t, visible(c.text.bytes[t]));
}

/// One byte of the text, smaller when it takes two digits.
void draw_byte(Canvas& canvas, double x, double y, std::uint8_t byte) {
    const bool plain = byte == '\n' || byte == '\t' || (byte >= ' ' && byte <= '~');
    canvas.text(x, y, "middle", visible(byte), plain ? "" : "tiny");
}

/// Shades from faint to full, with the probabilities at both ends.
void draw_scale(Canvas& canvas, double right, double y, double largest) {
    constexpr int kShades = 6;
    const double width = 26, left = right - 40 - kShades * width;
    canvas.text(left - 8, y + 11, "end", "probability  0");
    for (int i = 0; i < kShades; ++i)
        canvas.rect("cell", left + i * width, y, width - 1, 14, "",
                    shade((i + 0.5) / kShades));
    canvas.text(right - 36, y + 11, "start", fmt::format("{:.2f}", largest));
}

/// Whether a level line at `line` would cross, or touch, words that stand on `baseline`.
bool is_crossed(double baseline, double line) {
    return line > baseline - 11.0 && line < baseline + 4.5;
}

struct RoutedRow {
    std::int64_t row, token, expert;
};

/// The drawn rows of one expert: [begin, end) of Permutation::rows.
struct Segment {
    std::size_t begin, end;
    std::int64_t expert, load;
    std::string look;
    double top = 0.0, bottom = 0.0;
    double middle() const { return (top + bottom) / 2; }
};

/// Which rows the permutation's picture shows, and where.
struct Permutation {
    std::int64_t tokens = 0;
    std::vector<RoutedRow> rows;  ///< in the order in which they are dispatched
    std::vector<Segment> segments;
    bool crowded = false;  ///< too many experts for one label under the other
    double left = 96, right = 740, top = 34, height = 0.0;
    double gap = 0.0, row_step = 0.0, token_step = 0.0;

    double token_place(std::int64_t token) const {
        return top + (double(token) + 0.5) * token_step;
    }
    double row_place(const Segment& segment, std::size_t r) const {
        return segment.top + (double(r - segment.begin) + 0.5) * row_step;
    }
};

/// Takes few enough tokens that their curves can be told apart.
Permutation choose_rows(const Comparison& c) {
    const std::int64_t K = std::max<std::int64_t>(c.config.moe_router_topk, 1);
    const std::int64_t E = c.config.num_experts();
    const std::vector<std::int64_t> load = expert_load(c);
    const auto row_token = elements<std::int64_t>(c.row_token);
    Permutation p;
    p.tokens = std::min<std::int64_t>(c.sizes.num_tokens,
                                      std::clamp<std::int64_t>(128 / K, 12, 48));
    std::int64_t row = 0;
    for (std::int64_t expert = 0; expert < E; ++expert) {
        const std::size_t begin = p.rows.size();
        for (std::int64_t i = 0; i < load[expert]; ++i, ++row)
            if (row_token[row] < p.tokens)
                p.rows.push_back({row, row_token[row], expert});
        if (p.rows.size() == begin) continue;
        const std::int64_t colour = E <= kMostHued ? expert : std::ssize(p.segments);
        p.segments.push_back({begin, p.rows.size(), expert, load[expert], hue(colour)});
    }
    return p;
}

void place_rows(Permutation& p) {
    const double rows = double(p.rows.size()), experts = double(p.segments.size());
    p.gap = std::clamp(200.0 / experts, 1.0, 10.0);
    p.height = std::max(rows * std::clamp(640.0 / rows, 3.4, 12.0) + experts * p.gap,
                        double(p.tokens) * 15.0);
    p.row_step = (p.height - experts * p.gap) / rows;
    p.token_step = p.height / double(p.tokens);
    double y = p.top, last_name = -100.0;
    for (Segment& segment : p.segments) {
        segment.top = y;
        segment.bottom = y + double(segment.end - segment.begin) * p.row_step;
        y = segment.bottom + p.gap;
        p.crowded = p.crowded || segment.middle() - last_name < kNameHeight;
        last_name = segment.middle();
    }
    if (p.crowded) p.right = 700;
}

/// Each token with its curves in one group, so that the page can lift one out.
void draw_tokens(Canvas& canvas, const Permutation& p, const Comparison& c) {
    const std::int64_t E = c.config.num_experts(), K = c.config.moe_router_topk;
    const auto probs = elements<double>(c.probs);
    const double fan = std::min(2.0, 0.6 * p.token_step / double(K));
    std::vector<std::string> curves(p.tokens);
    std::vector<int> drawn(p.tokens);
    for (const Segment& segment : p.segments)
        for (std::size_t r = segment.begin; r < segment.end; ++r) {
            const auto& [row, token, expert] = p.rows[r];
            const double from =
                p.token_place(token) + fan * (drawn[token]++ - double(K - 1) / 2);
            curves[token] +=
                curve(segment.look, p.left, from, p.right, p.row_place(segment, r),
                      fmt::format("{} → row {}, expert {}, probability {:.4f}",
                                  token_name(c, token), row, expert,
                                  probs[token * E + expert]));
        }
    for (std::int64_t t = 0; t < p.tokens; ++t) {
        const double y = p.token_place(t) + 4;
        canvas.add("<g class='token'>\n" + curves[t]);
        canvas.text(p.left - 30, y, "end", fmt::format("{}", t), "faint");
        draw_byte(canvas, p.left - 12, y, c.text.bytes[t]);
        canvas.add("</g>\n");
    }
}

/// A column of names beside the experts' bars, as far down as it is taken.
struct NameColumn {
    double x;
    double last_name = -100.0;  ///< baseline
    double last_line = -100.0;  ///< to a name of a later column
};

/// The first column with room for a name, to which a line gets past the names of those
/// before it.
NameColumn* choose_column(std::vector<NameColumn>& columns, double middle) {
    const double baseline = middle + 4;
    for (NameColumn& column : columns) {
        if (baseline - column.last_name >= kNameHeight &&
            !is_crossed(baseline, column.last_line))
            return &column;
        if (is_crossed(column.last_name, middle)) break;
    }
    return nullptr;
}

/// Names beside the experts' bars. Crowded ones take three columns; names that find no
/// room are left to the bars' tips.
void draw_names(Canvas& canvas, const Permutation& p) {
    std::vector<NameColumn> columns;
    for (int i = 0; i < (p.crowded ? 3 : 1); ++i)
        columns.push_back({p.right + 23 + 92.0 * i});
    for (const Segment& segment : p.segments) {
        const double y = segment.middle();
        NameColumn* column = choose_column(columns, y);
        if (column == nullptr) continue;
        for (NameColumn* passed = columns.data(); passed != column; ++passed)
            passed->last_line = y;
        column->last_name = y + 4;
        if (p.crowded) canvas.line("grid", p.right + 13, y, column->x - 2, y);
        canvas.text(column->x, y + 4, "start",
                    p.crowded ? fmt::format("expert {}", segment.expert)
                              : fmt::format("expert {}: {} of {} row{}", segment.expert,
                                            segment.end - segment.begin, segment.load,
                                            segment.load == 1 ? "" : "s"));
    }
}

void draw_segments(Canvas& canvas, const Permutation& p) {
    for (const Segment& segment : p.segments) {
        const auto drawn = std::int64_t(segment.end - segment.begin);
        canvas.rect(segment.look, p.right + 3, segment.top, 9,
                    segment.bottom - segment.top,
                    fmt::format("expert {}: {} of its {} rows drawn", segment.expert,
                                drawn, segment.load));
        if (segment.load > drawn && p.gap >= 4)
            canvas.rect(segment.look, p.right + 6, segment.bottom + 1, 3, p.gap - 2, "",
                        "fill-opacity='0.4'");
    }
}

}  // namespace

std::vector<std::int64_t> expert_load(const Comparison& c) {
    const auto counts = elements<std::int64_t>(c.tokens_per_expert);
    std::vector<std::int64_t> load(counts.begin(), counts.end());
    load.resize(c.config.num_experts());
    return load;
}

std::string component_hue(Step step) {
    const int n = static_cast<int>(step), forward = std::min(n, kNumSteps + 1 - n);
    if (forward == 1) return hue(3);                    // shared experts
    if (forward <= 5) return hue(0);                    // router
    return hue(forward == 6 || forward == 10 ? 1 : 2);  // dispatcher or experts
}

std::string badge(Step step) {
    return fmt::format("<span class='step {}'>{}</span>", component_hue(step),
                       static_cast<int>(step));
}

std::string draw_routing_map(const Comparison& c) {
    const std::int64_t E = c.config.num_experts(), B = c.text.micro_batch;
    const std::int64_t tokens =
        std::min<std::int64_t>({64, c.text.seq_len, c.sizes.num_tokens});
    if (tokens == 0) return nothing_to_draw("routing map");
    const double left = 88, top = 26, cell = (kPictureWidth - left - 4) / 64;
    const double row = std::min(std::clamp(560.0 / double(E), 3.0, 26.0), 1200.0 / E);
    const double gap = row > 8 ? 1.0 : 0.3, bottom = top + row * double(E);
    const double right = left + cell * double(tokens);
    const auto probs = elements<double>(c.probs);
    const auto routed = elements<std::uint8_t>(c.routing_map);
    double largest = 1e-30;
    for (std::int64_t s = 0; s < tokens; ++s)
        for (std::int64_t e = 0; e < E; ++e)
            largest = std::max(largest, probs[s * B * E + e]);

    Canvas canvas;
    canvas.rect("ground", left, top, right - left, bottom - top);
    const std::int64_t step = label_step(row, 16);
    for (std::int64_t e = 0; e < E; e += step) {
        const double y = top + (double(e) + 0.5) * row;
        canvas.text(left - 8, y + 4, "end", fmt::format("expert {}", e));
        if (step > 1) canvas.line("grid", left - 5, y, right, y);
    }
    for (std::int64_t s = 0; s < tokens; ++s) {
        const double x = left + double(s) * cell;
        const std::int64_t t = s * B;
        draw_byte(canvas, x + cell / 2, top - 8, c.text.bytes[t]);
        if (s % 8 == 0)
            canvas.text(x + cell / 2, bottom + 16, "middle", fmt::format("{}", s));
        for (std::int64_t e = 0; e < E; ++e) {
            if (routed[t * E + e] == 0) continue;
            const double p = probs[t * E + e];
            canvas.rect(
                "cell", x, top + double(e) * row, cell - 1, std::max(row - gap, 2.0),
                fmt::format("{}, expert {}, probability {:.4f}", token_name(c, t), e, p),
                shade(p / largest));
        }
    }
    canvas.text(left, bottom + 38, "start", "place in the sequence");
    draw_scale(canvas, kPictureWidth - 4, bottom + 27, largest);
    return canvas.svg(bottom + 48, "routing map");
}

std::string draw_expert_load(const Comparison& c) {
    const std::int64_t E = c.config.num_experts();
    const std::vector<std::int64_t> load = expert_load(c);
    const double left = 60, right = kPictureWidth - 124, top = 22, bottom = 240;
    const double cell = (right - left) / double(E);
    const bool has_numbers = cell >= 38;  // on its bars; else levels to read them off
    const std::int64_t largest =
        std::max<std::int64_t>(1, *std::max_element(load.begin(), load.end()));
    const auto level = [&](double rows) {
        return bottom - (bottom - top) * rows / double(largest);
    };

    Canvas canvas;
    canvas.line("grid", left, bottom, right, bottom);
    for (std::int64_t step = round_number(double(largest) / 5), tick = step;
         tick <= largest && !has_numbers; tick += step) {
        canvas.line("grid", left, level(double(tick)), right, level(double(tick)));
        canvas.text(left - 8, level(double(tick)) + 4, "end", fmt::format("{}", tick));
    }
    for (std::int64_t e = 0; e < E; ++e) {
        const double x = left + (double(e) + 0.07) * cell, y = level(double(load[e]));
        canvas.rect(E <= kMostHued ? hue(e) : "cell", x, y, std::max(0.86 * cell, 0.8),
                    bottom - y, fmt::format("expert {}: {} rows", e, load[e]));
    }
    const double even = double(c.sizes.num_rows) / double(E), y = level(even);
    canvas.line("even", left, y, right, y);
    for (std::int64_t e = 0, step = label_step(cell, 30); e < E; e += step) {
        const double x = left + (double(e) + 0.5) * cell;
        canvas.text(x, bottom + 17, "middle", fmt::format("{}", e));
        const double over_bar = level(double(load[e])) - 5;
        if (has_numbers)
            canvas.text(x, is_crossed(over_bar, y) ? y - 5 : over_bar, "middle",
                        fmt::format("{}", load[e]));
    }
    canvas.text(right + 6, y - 2, "start", "even share");
    canvas.text(right + 6, y + 13, "start", fmt::format("N/E = {:.5g}", even));
    canvas.text(left - 8, bottom + 17, "end", "expert");
    return canvas.svg(bottom + 26, "rows per expert");
}

std::string draw_permutation(const Comparison& c) {
    Permutation p = choose_rows(c);
    if (p.rows.empty()) return nothing_to_draw("tokens to rows");
    place_rows(p);
    Canvas canvas;
    canvas.text(p.left - 12, 16, "end", "tokens");
    canvas.text(p.right + 3, 16, "start", "rows, by expert, then by token");
    draw_tokens(canvas, p, c);
    draw_segments(canvas, p);
    draw_names(canvas, p);
    return canvas.svg(p.top + p.height + 8, "tokens to rows");
}

bool is_on(const Comparison& c, Step step) {
    return !step_cost(step, c.config, c.sizes, DType::f64).formula.empty();
}

std::string draw_time_line(const Comparison& c, const ColumnOutcome& column,
                           double longest) {
    constexpr double kHeight = 30.0;
    const double scale = kPictureWidth / std::max(longest, 1e-30);
    double x = 0.0;
    Canvas canvas;
    canvas.rect("ground", 0, 0, scale * column.seconds, kHeight,
                fmt::format("all: {:.2f} ms", 1e3 * column.seconds));
    for (int n = 1; n <= kNumSteps; ++n) {
        const auto step = static_cast<Step>(n);
        const double seconds = column.at(step).seconds, width = scale * seconds;
        if (n == 11) canvas.line("turn", x, -4, x, kHeight + 4);
        if (width <= 0.0 || !is_on(c, step)) continue;
        canvas.rect(component_hue(step), x, 0, std::max(width - 0.7, 0.3), kHeight,
                    fmt::format("{} {}: {:.2f} ms", n, title(step), 1e3 * seconds));
        if (width > 22)
            canvas.text(x + width / 2, 20, "middle", fmt::format("{}", n), "onbar");
        x += width;
    }
    return canvas.svg(kHeight + 4, "time by step");
}

std::string draw_share(Step step, double share) {
    return fmt::format(
        "<svg class='share' viewBox='0 0 40 8'>"
        "<rect class='ground' width='40' height='8'/>"
        "<rect class='{}' width='{:.1f}' height='8'/></svg>",
        component_hue(step), 40.0 * share);
}

}  // namespace moe
