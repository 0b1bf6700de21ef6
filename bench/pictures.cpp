// pictures.cpp: the pictures made of bars: ladder, waterfall, counts.

#include "bench/pictures.h"

#include <algorithm>
#include <utility>

#include "bench/result_words.h"
#include "cli/report/sheet.h"

namespace moe::bench {
namespace {

constexpr double kLeft = 24.0, kRight = kSheetWidth - 24.0;
constexpr double kRow = 24.0, kBar = 14.0;  ///< heights
constexpr double kBarsFrom = 342.0, kBarsTo = 720.0;
constexpr double kNameWidth = kBarsFrom - kLeft - 78.0;

std::size_t index_of(const std::vector<std::string>& names, const std::string& name) {
    return std::size_t(std::find(names.begin(), names.end(), name) - names.begin());
}

void draw_axis(Canvas& canvas, const Axis& axis, double from, double to) {
    for (const double tick : axis.ticks()) {
        canvas.line("grid", axis.at(tick), from, axis.at(tick), to);
        canvas.text(axis.at(tick), to + 14.0, "middle", tick_label(tick), "soft");
    }
}

/// Words over the grid, whose lines end beside them.
void draw_words(Canvas& canvas, double x, double y, const std::string& words) {
    canvas.rect("ground", x - 3.0, y - 11.0, text_width(words, 12.0) + 6.0, 15.0);
    canvas.text(x, y, "start", words);
}

/// A bar with its whisker, and words behind it.
/// @param beyond  the words lie beyond this value as well
void draw_timing(Canvas& canvas, const Axis& axis, double y, const Timing& ms,
                 const std::string& look, const std::string& words, double beyond = 0.0) {
    const double middle = y + kBar / 2.0;
    canvas.rect(
        look, axis.at(0.0), y, axis.at(ms.median) - axis.at(0.0), kBar,
        fmt::format("median {}, p10 {}, p90 {}, {} samples", milliseconds(ms.median),
                    milliseconds(ms.p10), milliseconds(ms.p90), ms.count));
    for (const char* pen : {"halo", "whisker"}) {
        canvas.line(pen, axis.at(ms.p10), middle, axis.at(ms.p90), middle);
        for (const double end : {ms.p10, ms.p90})
            canvas.line(pen, axis.at(end), middle - 4.0, axis.at(end), middle + 4.0);
    }
    draw_words(canvas, axis.at(std::max(ms.p90, beyond)) + 8.0, middle + 4.5, words);
}

/// What the marks mean, to the right of the title.
void draw_key(Canvas& canvas) {
    const double y = 28.0, x = kRight - 226.0;
    canvas.line("whisker", x, y, x + 22.0, y);
    canvas.line("whisker", x, y - 4.0, x, y + 4.0);
    canvas.line("whisker", x + 22.0, y - 4.0, x + 22.0, y + 4.0);
    canvas.text(x + 28.0, y + 4.0, "start", "p10 to p90", "soft");
    canvas.line("floor", x + 122.0, y - 8.0, x + 122.0, y + 8.0);
    canvas.text(x + 129.0, y + 4.0, "start", "roofline floor", "soft");
}

/// The timed measurements of one subject, group by group.
struct Panel {
    std::string subject;
    std::vector<Group> groups;
    std::vector<double> values;  ///< all that its axis must show
};

std::vector<Panel> timed_panels(const Run& run) {
    std::vector<Panel> panels;
    for (Group group : by_subject_and_pass(run.measurements)) {
        std::erase_if(group, [](const Measurement* m) { return !m->ms; });
        if (group.empty()) continue;
        if (panels.empty() || panels.back().subject != group[0]->subject)
            panels.push_back({group[0]->subject, {}, {}});
        panels.back().groups.push_back(group);
        for (const Measurement* m : group)
            for (const double value :
                 {m->ms->p10, m->ms->p90, m->floor_ms.value_or(m->ms->median)})
                panels.back().values.push_back(value);
    }
    return panels;
}

/// Returns where the next panel begins.
double draw_panel(Canvas& canvas, const Panel& panel,
                  const std::vector<std::string>& names, double y) {
    const Axis axis(panel.values, kBarsFrom, kBarsTo);
    canvas.text(kLeft, y + 14.0, "start", escape(panel.subject), "head");
    canvas.text(kBarsFrom, y + 14.0, "start", axis.is_log() ? "ms, log scale" : "ms",
                "soft");
    canvas.text(kRight, y + 14.0, "end", "floor ÷ median", "soft");
    y += 24.0;
    double rows = 0.0;
    for (const Group& group : panel.groups) rows += double(group.size());
    const double height = rows * kRow + 6.0 * double(panel.groups.size() - 1);
    draw_axis(canvas, axis, y, y + height);
    for (const Group& group : panel.groups) {
        canvas.text(kLeft, y + kRow / 2.0 + 4.5, "start", escape(group[0]->pass));
        for (const Measurement* m : group) {
            const double top = y + (kRow - kBar) / 2.0, line = y + kRow / 2.0 + 4.5;
            canvas.text(kBarsFrom - 8.0, line, "end",
                        fitted(spec_in_words(m->spec), kNameWidth, 12.0), "soft");
            draw_timing(canvas, axis, top, *m->ms, hue(index_of(names, m->spec)),
                        milliseconds(m->ms->median), m->floor_ms.value_or(0.0));
            if (m->floor_ms) {
                const double x = axis.at(*m->floor_ms);
                for (const char* pen : {"halo", "floor"})
                    canvas.line(pen, x, top - 3.0, x, top + kBar + 3.0);
                canvas.text(kRight, line, "end", share(*m->floor_ms / m->ms->median),
                            "soft");
            }
            y += kRow;
        }
        y += 6.0;
    }
    return y + 30.0;
}

}  // namespace

std::string ladder_picture(const Run& run, const std::string& device) {
    Canvas canvas;
    double y = kSheetTop;
    for (const Panel& panel : timed_panels(run))
        y = draw_panel(canvas, panel, suppliers(run), y);
    if (y == kSheetTop) return "";
    draw_key(canvas);
    return standalone_svg(canvas, y, "The ladder: each part of the layer, tier by tier",
                          workload_in_words(run.workload) + "; " + device);
}

std::string waterfall_picture(const Run& run, const std::string& device) {
    Group steps;
    std::vector<double> values;
    for (const Measurement& m : run.waterfall)
        if (m.ms) {
            steps.push_back(&m);
            values.insert(values.end(), {m.ms->p10, m.ms->p90});
        }
    if (steps.empty()) return "";

    Canvas canvas;
    const double from = kLeft, to = kBarsTo - 60.0, step_height = 48.0;
    const Axis axis(values, from, to);
    const double end = kSheetTop + step_height * double(steps.size());
    draw_axis(canvas, axis, kSheetTop + 4.0, end);
    canvas.text(to + 40.0, end + 14.0, "start", axis.is_log() ? "ms, log scale" : "ms",
                "soft");
    double y = kSheetTop;
    for (std::size_t i = 0; i < steps.size(); ++i, y += step_height) {
        const Measurement& m = *steps[i];
        std::string words = milliseconds(m.ms->median), change = spec_in_words(m.spec);
        if (i > 0) {
            words += ", " + times_faster(steps[i - 1]->ms->median / m.ms->median);
            change = what_changed(steps[i - 1]->spec, m.spec);
        }
        draw_words(canvas, from + 4.0, y + 19.0,
                   fitted(change, kRight - from - 8.0, 13.0));
        draw_timing(canvas, axis, y + 26.0, *m.ms, hue(i), words);
    }
    return standalone_svg(
        canvas, end + 30.0,
        fmt::format("The waterfall: the whole layer, {} after {} steps",
                    times_faster(steps.front()->ms->median / steps.back()->ms->median),
                    steps.size() - 1),
        workload_in_words(run.workload) + ", forward and backward; " + device);
}

std::string counts_picture(const Run& run, const std::string& device) {
    std::vector<double> launches{0.0}, waits{0.0};
    std::vector<Group> groups = by_subject_and_pass(run.measurements);
    for (Group& group : groups) {
        std::erase_if(group, [](const Measurement* m) { return !m->emulated; });
        for (const Measurement* m : group) {
            launches.push_back(double(m->launches));
            waits.push_back(double(m->host_waits));
        }
    }
    std::erase_if(groups, [](const Group& group) { return group.empty(); });
    if (groups.empty()) return "";

    Canvas canvas;
    const double middle = 640.0, number = 56.0;
    const Axis launch_axis(launches, kBarsFrom, middle - 30.0 - number);
    const Axis wait_axis(waits, middle, kRight - number);
    double y = kSheetTop;
    canvas.text(kBarsFrom, y + 12.0, "start", "kernel launches", "head");
    canvas.text(middle, y + 12.0, "start", "waits of the host", "head");
    y += 22.0;
    const std::vector<std::string> names = suppliers(run);
    std::string subject;
    for (const Group& group : groups) {
        if (std::exchange(subject, group[0]->subject) != group[0]->subject) {
            canvas.text(kLeft, y + 14.0, "start", group[0]->subject, "head");
            y += 24.0;
        }
        canvas.text(kLeft, y + kRow / 2.0 + 4.5, "start", group[0]->pass);
        for (const Measurement* m : group) {
            const double top = y + (kRow - kBar) / 2.0, line = y + kRow / 2.0 + 4.5;
            const auto bar = [&](const Axis& axis, std::int64_t count) {
                const double x = axis.at(0.0), end = axis.at(double(count));
                canvas.rect(hue(index_of(names, m->spec)), x, top, end - x, kBar);
                canvas.text(end + 6.0, line, "start", std::to_string(count));
            };
            canvas.text(kBarsFrom - 8.0, line, "end",
                        fitted(spec_in_words(m->spec), kNameWidth, 12.0), "soft");
            bar(launch_axis, m->launches);
            bar(wait_axis, m->host_waits);
            y += kRow;
        }
        y += 6.0;
    }
    return standalone_svg(canvas, y + 14.0,
                          "Counted on the CPU executor: launches, and waits of the host",
                          workload_in_words(run.workload) + "; " + device);
}

}  // namespace moe::bench
