// permutation_picture.cpp: curves from tokens to their rows in expert order.

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cli/report/pictures.h"
#include "cli/report/svg.h"

namespace moe {
namespace {

constexpr std::int64_t kMostHued = 32;  // beyond, eight hues in turn say nothing
constexpr double kNameHeight = 13.0;    // from one expert's name to the next

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

}  // namespace moe
