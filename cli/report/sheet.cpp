#include "cli/report/sheet.h"

#include <algorithm>
#include <cmath>

namespace moe {
namespace {

// No variables: not everything that shows an SVG file knows them. The hues are those of
// the report, told apart by colour-blind eyes.
constexpr const char* kSheetStyle = R"(
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
  fill: #1c2430; }
.title { font-size: 17px; font-weight: 600; }
.head { font-size: 14px; font-weight: 600; }
.soft { fill: #5c6675; font-size: 12px; }
.code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; }
.onhue { fill: #ffffff; font-size: 10px; }
.paper { fill: #ffffff; stroke: #dfe3ea; } .ground { fill: #ffffff; }
.grid { stroke: #dfe3ea; }
.whisker { stroke: #1c2430; stroke-width: 1.5; }
.floor { stroke: #b3261e; stroke-width: 2.5; } .halo { stroke: #ffffff; stroke-width: 4.5; }
.ceiling { stroke: #5c6675; stroke-width: 2; }
.lead { stroke: #9aa4b2; }
.hue0 { fill: #0072b2; } .hue1 { fill: #d55e00; } .hue2 { fill: #009e73; }
.hue3 { fill: #b8559a; } .hue4 { fill: #a87b00; } .hue5 { fill: #3f9bd4; }
.hue6 { fill: #7a5cc4; } .hue7 { fill: #7f7f7f; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ef; } .soft { fill: #9aa4b2; }
  .paper { fill: #12161d; stroke: #2c3441; } .ground { fill: #12161d; }
  .grid { stroke: #2c3441; }
  .whisker { stroke: #e6e9ef; } .floor { stroke: #ff8a80; } .halo { stroke: #12161d; }
  .ceiling { stroke: #9aa4b2; }
  .lead { stroke: #5c6675; }
  .hue0 { fill: #3d9be0; } .hue1 { fill: #ee7d2b; } .hue2 { fill: #1fb88c; }
  .hue3 { fill: #d98cc0; } .hue4 { fill: #d0a52c; } .hue5 { fill: #86c5ee; }
  .hue6 { fill: #a48be8; } .hue7 { fill: #a0a0a0; }
}
)";

}  // namespace

double text_width(const std::string& words, double size) {
    double characters = 0.0;
    bool in_entity = false;
    for (const char c : words) {
        const bool continues = (static_cast<unsigned char>(c) & 0xC0u) == 0x80u;
        if (c == '&') in_entity = true;
        if (!continues && (!in_entity || c == ';')) characters += 1.0;
        if (c == ';') in_entity = false;
    }
    return 0.62 * size * characters;
}

std::string fitted(const std::string& words, double width, double size) {
    std::string cut = escape(words);
    if (text_width(cut, size) <= width) return cut;
    std::string plain = words;
    while (!plain.empty() && text_width(escape(plain) + "…", size) > width) {
        while ((static_cast<unsigned char>(plain.back()) & 0xC0u) == 0x80u)
            plain.pop_back();
        plain.pop_back();
    }
    return escape(plain) + "…";
}

std::string tick_label(double value) {
    return fmt::format("{:.10g}", value);
}

std::string standalone_svg(const Canvas& canvas, double height, const std::string& title,
                           const std::string& subtitle) {
    return fmt::format(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0} {1:.0f}' width='{0}' "
        "height='{1:.0f}' role='img' aria-label='{2}'>\n<style>{4}</style>\n"
        "<rect class='paper' x='0.5' y='0.5' width='{5}' height='{6:.0f}' rx='6'/>\n"
        "<text class='title' x='24' y='34'>{2}</text>\n"
        "<text class='soft' x='24' y='54'>{3}</text>\n{7}</svg>\n",
        kSheetWidth, height, escape(title), fitted(subtitle, kSheetWidth - 48.0, 12.0),
        kSheetStyle, kSheetWidth - 1.0, height - 1.0, canvas.body());
}

Axis::Axis(const std::vector<double>& values, double from, double to)
    : from_(from), to_(to) {
    double least = 0.0;
    for (const double value : values) {
        if (value > 0.0 && (least == 0.0 || value < least)) least = value;
        high_ = std::max(high_, value);
    }
    if (high_ <= 0.0) high_ = 1.0;
    log_ = least > 0.0 && high_ > 30.0 * least;
    if (log_) low_ = std::pow(10.0, std::ceil(std::log10(least) - 1.0));
}

double Axis::at(double value) const {
    const double share =
        log_ ? value <= low_ ? 0.0 : std::log(value / low_) / std::log(high_ / low_)
             : value / high_;
    return from_ + std::clamp(share, 0.0, 1.0) * (to_ - from_);
}

std::vector<double> Axis::ticks() const {
    std::vector<double> ticks;
    if (log_) {
        for (double tick = low_; tick <= high_ * 1.0001; tick *= 10.0)
            ticks.push_back(tick);
        return ticks;
    }
    // 1, 2 or 5 times a power of ten, so that there are at most five
    double step = std::pow(10.0, std::floor(std::log10(high_ / 5.0)));
    for (const double factor : {2.0, 2.5, 2.0})
        if (high_ / step > 5.0) step *= factor;
    for (double tick = 0.0; tick <= high_ * 1.0001; tick += step) ticks.push_back(tick);
    return ticks;
}

}  // namespace moe
