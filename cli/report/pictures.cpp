// pictures.cpp: routing map, expert load and times as SVG.

#include "cli/report/pictures.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

#include "cli/report/svg.h"

namespace moe {
namespace {

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

}  // namespace

std::vector<std::int64_t> expert_load(const Comparison& c) {
    const auto counts = elements<std::int32_t>(c.tokens_per_expert);
    std::vector<std::int64_t> load(counts.begin(), counts.end());
    load.resize(c.config.num_experts());
    return load;
}

std::string token_name(const Comparison& c, std::int64_t t) {
    return fmt::format("token {} “{}”", t, visible(c.text.bytes[t]));
}

void draw_byte(Canvas& canvas, double x, double y, std::uint8_t byte) {
    const bool plain = byte == '\n' || byte == '\t' || (byte >= ' ' && byte <= '~');
    canvas.text(x, y, "middle", visible(byte), plain ? "" : "tiny");
}

bool is_crossed(double baseline, double line) {
    return line > baseline - 11.0 && line < baseline + 4.5;
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

bool is_on(const Comparison& c, Step step) {
    return !c.floors().step(step).is_off();
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
