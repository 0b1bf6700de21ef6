// rank_timeline.cpp: hosts and streams of all ranks, as early as their order allows.

#include <fmt/format.h>

#include <array>

#include "cli/ranks/comparison.h"
#include "cli/report/svg.h"

namespace moe {
namespace {

constexpr int kMostRanks = 8;
constexpr double kLeft = 150.0, kRight = kPictureWidth - 4.0, kTop = 22.0;
constexpr double kRow = 17.0, kBar = 12.0, kBetweenRanks = 10.0;

struct Look {
    const char *hue, *words;
};
/// By Slot::Kind.
constexpr std::array<Look, 4> kLooks = {{{"hue0", "kernel"},
                                         {"hue1", "exchange: all its ranks at once"},
                                         {"hue3", "kernel in which ranks meet"},
                                         {"hue7", "the host waits"}}};

const Look& look_of(const Slot& slot) {
    return kLooks[std::size_t(slot.kind)];
}

/// Where rows lie, from above.
class Rows {
  public:
    explicit Rows(const Schedule& schedule) {
        double y = kTop;
        for (std::size_t rank = 0; rank < schedule.streams.size(); ++rank) {
            if (rank == kMostRanks) break;
            first_.push_back(y);
            y += kRow * (1 + schedule.streams[rank]) + kBetweenRanks;
        }
        end_ = y - kBetweenRanks;
    }
    int ranks() const { return int(first_.size()); }
    double at(int rank, int stream) const { return first_[rank] + kRow * (stream + 1); }
    double end() const { return end_; }

  private:
    std::vector<double> first_;
    double end_ = 0.0;
};

std::string in_words(const Slot& slot) {
    std::string words = slot.name;
    if (slot.kind == Slot::Kind::host_wait)
        words = slot.width == 0 ? "the host waits for what is done"
                                : "the host waits for its device";
    if (!slot.members.empty())
        words += fmt::format(" of ranks {}", fmt::join(slot.members, ", "));
    if (slot.beside) words += "; nothing orders it against another stream";
    return words;
}

void draw_labels(Canvas& canvas, const Schedule& schedule, const Rows& rows) {
    for (int rank = 0; rank < rows.ranks(); ++rank)
        for (int stream = Slot::kHost; stream < schedule.streams[rank]; ++stream) {
            const double y = rows.at(rank, stream) + 10.0;
            if (stream == Slot::kHost)
                canvas.text(0.0, y, "start", fmt::format("rank {}", rank));
            canvas.text(kLeft - 10.0, y, "end",
                        stream == Slot::kHost ? "host" : fmt::format("stream {}", stream),
                        "faint");
        }
}

std::string draw(const Schedule& schedule, const std::string& label) {
    const Rows rows(schedule);
    const double column = (kRight - kLeft) / std::max(schedule.columns, 1);
    const auto at = [&](int c) { return kLeft + column * c; };
    Canvas canvas;
    for (int rank = 0; rank < rows.ranks(); ++rank)
        for (int stream = Slot::kHost; stream < schedule.streams[rank]; ++stream) {
            const double y = rows.at(rank, stream) + kBar / 2.0;
            canvas.line("grid", kLeft, y, kRight, y);
        }
    draw_labels(canvas, schedule, rows);
    canvas.text(kLeft, 12.0, "start", "forward", "faint");
    canvas.text(at(schedule.backward_from) + 4.0, 12.0, "start", "backward", "faint");
    const double turn = at(schedule.backward_from);
    canvas.line("even", turn, 2.0, turn, rows.end());
    for (const Slot& slot : schedule.slots) {
        if (slot.rank >= rows.ranks()) continue;
        const bool waits = slot.kind == Slot::Kind::host_wait;
        const double gap = std::min(1.0, column * 0.15);
        const double width = std::max(column * slot.width - gap, 1.5);
        canvas.rect(look_of(slot).hue, at(slot.column), rows.at(slot.rank, slot.stream),
                    width, kBar, escape(in_words(slot)),
                    waits || slot.beside ? "" : "fill-opacity='0.45'");
    }
    return canvas.svg(rows.end() + 4.0, escape(label));
}

std::string legend() {
    std::string keys;
    for (const Look& look : kLooks)
        keys += fmt::format(
            "<span class='key'><svg viewBox='0 0 12 12'><rect class='{}' width='12' "
            "height='12'/></svg>{}</span>",
            look.hue, look.words);
    return "<p class='soft'>" + keys + "</p>\n";
}

/// The last column of every tier that uses a device: one dtype shows the order of all.
std::vector<const RankColumn*> shown(const DispatcherOutcome& outcome) {
    std::vector<const RankColumn*> columns;
    for (const RankColumn& column : outcome.columns) {
        if (column.schedule.columns == 0) continue;
        const std::string& tier = column.spec.dispatcher.tier;
        if (!columns.empty() && columns.back()->spec.dispatcher.tier == tier)
            columns.pop_back();
        columns.push_back(&column);
    }
    return columns;
}

std::string pictures(const DispatcherOutcome& outcome) {
    const std::vector<const RankColumn*> columns = shown(outcome);
    std::string open, folded;
    for (const RankColumn* column : columns) {
        const std::string label = column->short_label() + ", " + outcome.name();
        const Schedule& s = column->schedule;
        const std::string heading =
            s.beside() == 0
                ? label
                : fmt::format("{}: {} of a second stream may run beside {} of the first",
                              label, s.beside(), s.with());
        const std::string picture = draw(s, label);
        if (column == columns.back())
            open = fmt::format("<h3>{}</h3>\n{}", escape(heading), picture);
        else
            folded += fmt::format("<details><summary>{}</summary>\n{}</details>\n",
                                  escape(heading), picture);
    }
    return open + folded;
}

}  // namespace

std::string timeline_section(const RankComparison& c) {
    if (!c.uses_device()) return "";
    std::string all;
    for (const DispatcherOutcome& outcome : c.dispatchers) all += pictures(outcome);
    return fmt::format(
        R"(<h2>What waits for what</h2>
<p>The same forward and backward as above: a row for each rank’s host and for each of its
streams. Every kernel and every exchange is one column wide and stands as far left as its
order allows: behind what its stream got before, behind events, behind all that its host
had waited for. This is the order alone, no time. Full colour, but for the host: nothing
orders it against something in another stream of its rank, so a device may run both at
once. Where a host waits, nothing that it launches later can begin.</p>
{}{}{})",
        legend(),
        c.sizes.world > kMostRanks
            ? fmt::format("<p class='soft'>The first {} of {} ranks.</p>\n", kMostRanks,
                          c.sizes.world)
            : "",
        all);
}

}  // namespace moe
