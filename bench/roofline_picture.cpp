// roofline_picture.cpp: how near the matrix products come to the machine's two ceilings.

#include <algorithm>
#include <cmath>

#include "bench/pictures.h"
#include "bench/result_words.h"
#include "cli/report/sheet.h"

namespace moe::bench {
namespace {

constexpr double kFrom = 80.0, kTo = kSheetWidth - 30.0;
constexpr double kTop = kSheetTop + 8.0, kBottom = 520.0, kPoint = 5.0, kSize = 12.0;

/// Powers of ten around positive values.
struct Decades {
    double low, high;

    explicit Decades(const std::vector<double>& values) {
        const auto [least, most] = std::minmax_element(values.begin(), values.end());
        low = std::floor(std::log10(*least) - 0.15);
        high = std::max(std::ceil(std::log10(*most) + 0.15), low + 1.0);
    }
    double share(double value) const { return (std::log10(value) - low) / (high - low); }
};

struct Box {
    double left, top, right, bottom;

    bool meets(const Box& other) const {
        return left < other.right && other.left < right && top < other.bottom &&
               other.top < bottom;
    }
};

/// Puts each label beside its point, further away where others lie already.
class Labels {
  public:
    explicit Labels(std::vector<Box> taken) : taken_(std::move(taken)) {}

    void take(const Box& box) { taken_.push_back(box); }

    void put(Canvas& canvas, double x, double y, const std::string& words) {
        const double width = text_width(words, kSize), height = kSize + 3.0;
        for (double reach = kPoint + 4.0; reach < 400.0; reach += 6.0)
            for (const auto& [right, down] : {std::pair{1.0, 0.0},
                                              {-1.0, 0.0},
                                              {0.8, 0.8},
                                              {0.8, -0.8},
                                              {-0.8, -0.8},
                                              {-0.8, 0.8},
                                              {0.0, 1.2},
                                              {0.0, -1.2}}) {
                const double anchor_x = x + right * reach, middle = y + down * reach;
                const double left = right > 0.0   ? anchor_x
                                    : right < 0.0 ? anchor_x - width
                                                  : anchor_x - width / 2.0;
                const Box box{left, middle - height / 2.0, left + width,
                              middle + height / 2.0};
                const bool leads = reach > 20.0;
                if (!is_free(box) || (leads && !is_free_line(x, y, anchor_x, middle)))
                    continue;
                if (leads) {
                    canvas.line("lead", x, y, anchor_x, middle);
                    take_line(x, y, anchor_x, middle);
                }
                const char* anchor = right > 0.0   ? "start"
                                     : right < 0.0 ? "end"
                                                   : "middle";
                canvas.text(anchor_x, middle + kSize * 0.36, anchor, words, "soft");
                return take(box);
            }
    }

    /// A straight line as small boxes, which labels then keep away from.
    void take_line(double x1, double y1, double x2, double y2) {
        for (const auto& [x, y] : along(x1, y1, x2, y2))
            take({x - 3.0, y - 3.0, x + 3.0, y + 3.0});
    }

  private:
    static std::vector<std::pair<double, double>> along(double x1, double y1, double x2,
                                                        double y2) {
        std::vector<std::pair<double, double>> places;
        const int pieces = 1 + int(std::hypot(x2 - x1, y2 - y1) / 6.0);
        for (int i = 0; i <= pieces; ++i)
            places.emplace_back(x1 + (x2 - x1) * i / pieces, y1 + (y2 - y1) * i / pieces);
        return places;
    }

    /// Whether a line from a point to its label, which begins within the point, crosses
    /// nothing.
    bool is_free_line(double x1, double y1, double x2, double y2) const {
        const auto places = along(x1, y1, x2, y2);
        return std::all_of(places.begin(), places.end(), [&](const auto& place) {
            const auto [x, y] = place;
            if (std::hypot(x - x1, y - y1) < 2.0 * kPoint) return true;
            const Box here{x, y, x, y};
            return std::none_of(taken_.begin(), taken_.end(),
                                [&](const Box& other) { return here.meets(other); });
        });
    }

    bool is_free(const Box& box) const {
        return box.left > kFrom + 2.0 && box.right < kTo && box.top > kTop &&
               box.bottom < kBottom &&
               std::none_of(taken_.begin(), taken_.end(),
                            [&](const Box& other) { return box.meets(other); });
    }

    std::vector<Box> taken_;
};

struct Point {
    const Measurement* measurement;
    double intensity, rate;  ///< FLOP per byte, TFLOP/s
};

/// Forward and backward of each subject; both together, which lie between the two, only
/// where they were measured as one. What has no floor ran below other ceilings, as the
/// reference does beside a GPU.
std::vector<Point> points_of(const Run& run) {
    std::vector<Point> points;
    std::string in_halves;  // the subject that has points already
    for (const Group& group : by_subject_and_pass(run.measurements)) {
        if (group[0]->pass == "both" && group[0]->subject == in_halves) continue;
        for (const Measurement* m : group)
            if (m->floor_ms && m->ms && m->flops > 0.0 && m->bytes > 0.0) {
                points.push_back({m, m->flops / m->bytes, tflops(*m)});
                in_halves = m->subject;
            }
    }
    return points;
}

/// The subjects that no point can stand for.
std::string left_out(const Run& run) {
    std::string names;
    for (const Group& group : by_subject_and_pass(run.measurements)) {
        const std::string& name = group[0]->subject;
        const bool timed = std::any_of(group.begin(), group.end(),
                                       [](const Measurement* m) { return bool(m->ms); });
        if (timed && group[0]->flops == 0.0 && !names.ends_with(name))
            names += (names.empty() ? "" : ", ") + name;
    }
    return names.empty() ? "" : "without matrix products, so not here: " + names;
}

void draw_grid(Canvas& canvas, const Decades& across, const Decades& up) {
    const auto label = [](double exponent) {
        return tick_label(std::pow(10.0, exponent));
    };
    for (double power = across.low; power <= across.high; power += 1.0) {
        const double x =
            kFrom + (power - across.low) / (across.high - across.low) * (kTo - kFrom);
        canvas.line("grid", x, kTop, x, kBottom);
        canvas.text(x, kBottom + 16.0, "middle", label(power), "soft");
    }
    for (double power = up.low; power <= up.high; power += 1.0) {
        const double y =
            kBottom - (power - up.low) / (up.high - up.low) * (kBottom - kTop);
        canvas.line("grid", kFrom, y, kTo, y);
        canvas.text(kFrom - 6.0, y + 4.0, "end", label(power), "soft");
    }
    canvas.text(kTo, kBottom + 34.0, "end", "FLOP per byte that must move", "soft");
    canvas.add(
        fmt::format("<text class='soft' text-anchor='end' transform='translate(24 "
                    "{:.0f}) rotate(-90)'>TFLOP/s</text>\n",
                    kTop));
}

/// One colour for each supplier; returns the height it took.
double draw_suppliers(Canvas& canvas, const std::vector<std::string>& names, double top) {
    double x = kFrom, y = top;
    for (std::size_t i = 0; i < names.size(); ++i) {
        const std::string words = escape(spec_in_words(names[i]));
        const double width = 30.0 + text_width(words, kSize);
        if (x > kFrom && x + width > kTo) {
            x = kFrom;
            y += 20.0;
        }
        canvas.rect(hue(i), x, y - 9.0, 10.0, 10.0);
        canvas.text(x + 15.0, y, "start", words, "soft");
        x += width;
    }
    return y - top;
}

}  // namespace

std::string roofline_picture(const Run& run, const std::string& device) {
    const std::vector<Point> points = points_of(run);
    const std::optional<Calibration> ceiling = ceilings(run);
    if (points.empty() || !ceiling) return "";

    std::vector<double> intensities, rates;
    for (const Point& point : points) {
        intensities.push_back(point.intensity);
        rates.push_back(point.rate);
    }
    const double slope = ceiling->copy_gb_per_s / 1000.0;  // TFLOP/s at one FLOP per byte
    if (ceiling->product_tflops) {
        rates.push_back(*ceiling->product_tflops);
        intensities.push_back(*ceiling->product_tflops / slope);  // where the two meet
    }
    const Decades across(intensities), up(rates);
    const auto x_of = [&](double value) {
        return kFrom + across.share(value) * (kTo - kFrom);
    };
    const auto y_of = [&](double value) {
        return kBottom - up.share(value) * (kBottom - kTop);
    };

    Canvas canvas;
    draw_grid(canvas, across, up);
    std::vector<Box> taken;
    for (const Point& point : points) {
        const double x = x_of(point.intensity), y = y_of(point.rate);
        taken.push_back({x - kPoint, y - kPoint, x + kPoint, y + kPoint});
    }
    Labels labels(std::move(taken));

    // The copy's ceiling rises from where it enters the picture to where it ends
    const double most = ceiling->product_tflops.value_or(std::pow(10.0, up.high));
    const double first =
        std::max(std::pow(10.0, across.low), std::pow(10.0, up.low) / slope);
    const double last = std::min(std::pow(10.0, across.high), most / slope);
    const double x1 = x_of(first), y1 = y_of(first * slope), x2 = x_of(last),
                 y2 = y_of(last * slope);
    canvas.line("ceiling", x1, y1, x2, y2);
    labels.take_line(x1, y1, x2, y2);
    if (ceiling->product_tflops) {
        canvas.line("ceiling", x2, y2, kTo, y2);
        labels.take_line(x2, y2, kTo, y2);
        labels.put(
            canvas, (x2 + kTo) / 2.0, y2,
            fmt::format("product: {} TFLOP/s", three_digits(*ceiling->product_tflops)));
    }
    labels.put(canvas, (x1 + x2) / 2.0, (y1 + y2) / 2.0,
               fmt::format("copy: {} GB/s", three_digits(ceiling->copy_gb_per_s)));

    const std::vector<std::string> names = suppliers(run);
    for (const Point& point : points) {
        const Measurement& m = *point.measurement;
        const auto index = std::find(names.begin(), names.end(), m.spec) - names.begin();
        canvas.add(fmt::format("<circle class='{}' cx='{:.1f}' cy='{:.1f}' r='{}'/>\n",
                               hue(index), x_of(point.intensity), y_of(point.rate),
                               kPoint));
        labels.put(canvas, x_of(point.intensity), y_of(point.rate),
                   m.subject + (m.pass == "forward"    ? " fwd"
                                : m.pass == "backward" ? " bwd"
                                                       : ""));
    }
    canvas.text(kFrom, kBottom + 34.0, "start", left_out(run), "soft");
    const double more = draw_suppliers(canvas, names, kBottom + 60.0);
    return standalone_svg(canvas, kBottom + 80.0 + more,
                          "The roofline: matrix products below the machine's ceilings",
                          workload_in_words(run.workload) + "; " + device);
}

}  // namespace moe::bench
