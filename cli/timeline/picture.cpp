#include "cli/timeline/picture.h"

#include <algorithm>
#include <array>

#include "cli/report/sheet.h"
#include "cli/timeline/rows.h"
#include "cli/words.h"

namespace moe::timeline {
namespace {

constexpr double kLeft = 24.0, kRight = kSheetWidth - 24.0;
constexpr double kFrom = 188.0;             ///< where the axis begins
constexpr double kBar = 12.0, kThin = 7.0;  ///< heights; thin where there are lanes
constexpr double kGap = 6.0, kLaneGap = 1.5;
constexpr double kLeast = 1.4;  ///< the width of what is too short to be seen
constexpr double kMark = 5.0;   ///< half of a diamond
constexpr double kSize = 12.0;  ///< of small text

struct Look {
    Kind kind;
    int hue;
    const char* words;
};
/// In the order of the legend.
constexpr std::array<Look, kKinds> kLooks = {{
    {Kind::data, 1, "waits for data: an mbarrier that loads complete on, “full”"},
    {Kind::space, 3, "waits at another mbarrier, as “empty”: for a free place"},
    {Kind::barrier, 7, "waits at a barrier for other threads"},
    {Kind::wgmma, 6, "its lanes wait for each other: wgmma"},
    {Kind::lanes, 4, "its lanes wait for each other: another function of a warp"},
    {Kind::load, 0, "TMA load, from issue to arrival"},
    {Kind::copy, 0, "cp.async, from issue to completion"},
    {Kind::product, 2, "wgmma product, from issue to result"},
    {Kind::store, 5, "TMA store, from issue to completion"},
}};

std::string hue_of(Kind kind) {
    for (const Look& look : kLooks)
        if (look.kind == kind) return hue(look.hue);
    return "";
}

/// Sources by their place in the project, "tests/a.cu:5", and no comma at the end, where
/// a message goes on.
std::string tidy(const std::string& text) {
    std::string result;
    for (std::size_t at = 0; at < text.size();) {
        const bool up = text.compare(at, 3, "../") == 0;
        if (!up) result += text[at];
        at += up ? 3 : 1;
    }
    if (result.ends_with(',')) result.pop_back();
    return result;
}

/// Steps of the block, from its first event, along the picture.
class Steps {
  public:
    explicit Steps(const Block& block)
        : first_(block.first_step()),
          count_(std::max<std::int64_t>(block.last_step() - first_, 1)),
          axis_({double(count_)}, kFrom, kRight) {}
    double at(std::int64_t step) const { return axis_.at(double(step - first_)); }
    std::string words(std::int64_t step) const { return grouped(step - first_); }
    std::int64_t count() const { return count_; }
    const Axis& axis() const { return axis_; }

  private:
    std::int64_t first_, count_;
    Axis axis_;
};

void draw_diamond(Canvas& canvas, const std::string& look, double x, double y,
                  const std::string& tip = "") {
    canvas.add(fmt::format(
        "<path class='{}' d='M{:.2f} {:.2f} l{k} {k} l-{k} {k} l-{k} -{k} z'>{}</path>\n",
        look, x, y - kMark, tip.empty() ? "" : "<title>" + tip + "</title>",
        fmt::arg("k", kMark)));
}

void draw_bar(Canvas& canvas, const Steps& steps, const Bar& bar, double y,
              double height) {
    const double from = steps.at(bar.begin), to = steps.at(bar.end);
    // Bars that meet stay two: a hair's breadth of paper lies between them.
    const double width = std::max(to - from - 0.5, kLeast);
    canvas.rect(
        hue_of(bar.kind), std::min(from, kRight - width), y, width, height,
        escape(fmt::format("{}{}, {}, steps {} to {}", is_wait(bar.kind) ? "waits: " : "",
                           tidy(bar.what), tidy(bar.where), steps.words(bar.begin),
                           steps.words(bar.end))),
        "rx='1.5'");
}

/// Diamonds, with the number of the phase where there is room behind it.
void draw_marks(Canvas& canvas, const Steps& steps, const Block& block,
                const Strip& strip, double middle) {
    std::vector<Mark> marks = strip.marks;
    std::ranges::stable_sort(marks, {}, &Mark::step);
    for (std::size_t i = 0; i < marks.size(); ++i) {
        const Mark& mark = marks[i];
        const Kind kind = mark.mbarrier.empty()                  ? Kind::barrier
                          : block.filled.contains(mark.mbarrier) ? Kind::data
                                                                 : Kind::space;
        const double x = steps.at(mark.step);
        draw_diamond(canvas, hue_of(kind), x, middle,
                     escape(mark.what + ", step " + steps.words(mark.step)));
        const std::size_t at = mark.what.rfind(": phase ");
        if (at == std::string::npos) continue;
        const std::string phase = mark.what.substr(at + 8);
        const double room = (i + 1 < marks.size() ? steps.at(marks[i + 1].step) - kMark
                                                  : kRight + kMark) -
                            x - kMark - 4.0;
        const double width = text_width(phase, kSize);
        if (width > room) continue;
        canvas.rect("ground", x + kMark + 1.0, middle - 2.0, width + 2.0, 4.0);
        canvas.text(x + kMark + 2.0, middle + 4.0, "start", escape(phase), "soft");
    }
}

double height_of(const Strip& strip) {
    return strip.lanes == 1 ? kBar : strip.lanes * (kThin + kLaneGap) - kLaneGap;
}

void draw_strip(Canvas& canvas, const Steps& steps, const Block& block,
                const Strip& strip, double y) {
    const double middle = y + height_of(strip) / 2.0;
    canvas.text(kLeft, middle + 4.5, "start",
                fitted(strip.label, kFrom - kLeft - 12.0, 13.0));
    canvas.text(kFrom - 12.0, middle + 4.5, "end", strip.note, "soft");
    if (strip.lanes == 1) canvas.line("grid", kFrom, middle, kRight, middle);
    for (const Placed& placed : strip.bars)
        draw_bar(canvas, steps, placed.bar, y + placed.lane * (kThin + kLaneGap),
                 strip.lanes == 1 ? kBar : kThin);
    draw_marks(canvas, steps, block, strip, middle);
}

double height_of(const Section& section) {
    double height = 24.0;
    for (const Strip& strip : section.strips) height += height_of(strip) + kGap;
    return height + 8.0;
}

void draw_axis(Canvas& canvas, const Axis& axis, double from, double to) {
    for (const double tick : axis.ticks()) {
        canvas.line("grid", axis.at(tick), from, axis.at(tick), to);
        canvas.text(axis.at(tick), to + 16.0, "middle", grouped(std::int64_t(tick)),
                    "soft");
    }
    canvas.text(kFrom, to + 34.0, "start", "scheduler steps, not time; emulated on a CPU",
                "soft");
}

bool has_kind(const std::vector<Section>& sections, Kind kind) {
    for (const Section& section : sections)
        for (const Strip& strip : section.strips)
            for (const Placed& placed : strip.bars)
                if (placed.bar.kind == kind) return true;
    return false;
}

bool has_marks(const std::vector<Section>& sections) {
    return std::ranges::any_of(sections, [](const Section& section) {
        return std::ranges::any_of(
            section.strips, [](const Strip& strip) { return !strip.marks.empty(); });
    });
}

/// What the colours mean, those that are there, two beside each other. Returns where the
/// next part begins.
double draw_legend(Canvas& canvas, const std::vector<Section>& sections, double y) {
    const double columns[] = {kLeft, kLeft + 436.0};
    std::size_t count = 0;
    const auto place = [&] {
        const double x = columns[count % 2];
        if (count > 0 && count % 2 == 0) y += 19.0;
        ++count;
        return x;
    };
    for (const Look& look : kLooks) {
        if (!has_kind(sections, look.kind)) continue;
        const double x = place();
        canvas.rect(hue(look.hue), x, y, 14.0, kBar, "", "rx='1.5'");
        canvas.text(x + 21.0, y + 10.5, "start", look.words, "soft");
    }
    if (!has_marks(sections)) return y + 30.0;
    const double x = place();
    draw_diamond(canvas, hue_of(Kind::barrier), x + 7.0, y + 6.0);
    canvas.text(x + 21.0, y + 10.5, "start",
                "a barrier opens; an mbarrier completes its phase of that number",
                "soft");
    return y + 30.0;
}

}  // namespace

std::string timeline_picture(const Timeline& timeline, const std::string& title) {
    const Block& block = timeline.block();
    const Steps steps(block);
    const std::vector<Section> all = sections(block);
    Canvas canvas;
    double y = draw_legend(canvas, all, kSheetTop);
    double end = y;
    for (const Section& section : all) end += height_of(section);
    draw_axis(canvas, steps.axis(), y, end);
    for (const Section& section : all) {
        const double width = text_width(section.heading, 14.0);
        canvas.rect("ground", kLeft, y + 2.0, width, 16.0);  // over the grid's lines
        canvas.text(kLeft, y + 14.0, "start", section.heading, "head");
        double top = y + 24.0;
        for (const Strip& strip : section.strips) {
            draw_strip(canvas, steps, block, strip, top);
            top += height_of(strip) + kGap;
        }
        y += height_of(section);
    }
    canvas.text(kRight, end + 34.0, "end",
                "where a warp’s row is empty, it runs or its turn has yet to come",
                "soft");
    return standalone_svg(
        canvas, end + 50.0, title,
        fmt::format("{}: {} steps of the scheduler from its first event{}", block.name,
                    grouped(steps.count()),
                    timeline.cut_off ? "; the trace was cut off" : ""));
}

}  // namespace moe::timeline
