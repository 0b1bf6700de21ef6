// lanes_picture.cpp: lanes above the sectors they touch; banks above their turns.

#include "cli/profile/lanes_picture.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>
#include <sstream>

#include "cli/profile/figures.h"
#include "cli/report/sheet.h"

namespace moe::profile {

using cuda_on_cpu::observe::Sample;

namespace {

constexpr unsigned kSector = 32, kBanks = 32, kWord = 4, kLanes = 32;
constexpr double kLeft = 24.0, kRight = kSheetWidth - 24.0;
constexpr double kGridLeft = 84.0;  ///< of the banks; turns are named before it
constexpr double kBox = 16.0, kTurn = 11.0, kBetween = 46.0;

std::vector<int> lanes_of(unsigned mask) {
    std::vector<int> lanes;
    for (; mask != 0; mask &= mask - 1) lanes.push_back(std::countr_zero(mask));
    return lanes;
}

/// The lanes whose accesses reach into these bytes.
std::vector<int> lanes_at(const Sample& sample, std::uint64_t offset, unsigned bytes) {
    std::vector<int> those;
    for (const int lane : lanes_of(sample.mask))
        if (sample.offsets[lane] < offset + bytes &&
            offset < sample.offsets[lane] + sample.bytes)
            those.push_back(lane);
    return those;
}

std::string in_words(const std::vector<int>& lanes) {
    return lanes.size() == 1
               ? fmt::format("lane {}", lanes[0])
               : fmt::format("{} lanes, {} to {}", lanes.size(), lanes[0], lanes.back());
}

}  // namespace

LanesFigures figures_of(const Sample& sample) {
    LanesFigures figures;
    if (!sample.is_shared) {
        std::set<std::uint64_t> sectors, bytes;
        for (const int lane : lanes_of(sample.mask))
            for (unsigned i = 0; i < sample.bytes; ++i) {
                sectors.insert((sample.offsets[lane] + i) / kSector);
                bytes.insert(sample.offsets[lane] + i);
            }
        figures.sectors.assign(sectors.begin(), sectors.end());
        figures.used_bytes = unsigned(bytes.size());
        return figures;
    }
    // Wide accesses come in parts, each of as many lanes as 128 bytes hold.
    const unsigned words_each = std::max(1u, sample.bytes / kWord);
    const unsigned lanes_each = kLanes / words_each;
    for (unsigned part = 0; part < words_each; ++part) {
        std::array<std::set<std::uint64_t>, kBanks> banks;
        for (const int lane : lanes_of(sample.mask))
            if (unsigned(lane) / lanes_each == part)
                for (unsigned i = 0; i < words_each; ++i) {
                    const std::uint64_t word = sample.offsets[lane] / kWord + i;
                    banks[word % kBanks].insert(word);
                }
        const std::size_t first = figures.turns.size();
        for (unsigned bank = 0; bank < kBanks; ++bank) {
            std::size_t turn = first;
            for (const std::uint64_t word : banks[bank]) {
                if (turn == figures.turns.size())
                    figures.turns.emplace_back().fill(LanesFigures::kNoWord);
                figures.turns[turn++][bank] = word;
            }
        }
        figures.fewest_turns += figures.turns.size() > first;
    }
    return figures;
}

namespace {

std::string in_words(const Sample& sample, const LanesFigures& figures) {
    const auto lanes = std::popcount(sample.mask);
    const std::string what =
        fmt::format("{} {} of {} {}", lanes, lanes == 1 ? "lane" : "lanes", sample.bytes,
                    sample.bytes == 1 ? "byte" : "bytes");
    if (sample.is_shared)
        return fmt::format("{}, shared memory: {} {} of the banks, at best {}", what,
                           figures.turns.size(),
                           figures.turns.size() == 1 ? "turn" : "turns",
                           figures.fewest_turns);
    const std::size_t fetched = kSector * figures.sectors.size();
    return fmt::format(
        "{}, global memory: {} {}, {} of {} bytes used", what, figures.sectors.size(),
        figures.sectors.size() == 1 ? "sector" : "sectors", figures.used_bytes, fetched);
}

const char* verb(Sample::Access access) {
    return access == Sample::Access::load    ? "load"
           : access == Sample::Access::store ? "store"
                                             : "atomic";
}

/// Returns where the next panel begins.
double draw_sectors(Canvas& canvas, const Sample& sample, const LanesFigures& figures,
                    double y) {
    const double lane_width = (kRight - kLeft) / kLanes;
    // Four sectors of 8 words lie just below 32 lanes; of more, each is narrower.
    const double width =
        (kRight - kLeft) / double(std::max<std::size_t>(4, figures.sectors.size()));
    const double below = y + kBox + kBetween;
    std::map<std::uint64_t, double> left_of;
    for (const std::uint64_t sector : figures.sectors) {
        const double x = kLeft + width * double(left_of.size());
        left_of[sector] = x;
        canvas.rect("paper", x + 1.0, below, width - 2.0, kBox,
                    fmt::format("sector at byte {}", sector * kSector));
    }
    const auto at = [&](std::uint64_t offset) {
        return left_of.at(offset / kSector) + 1.0 +
               (width - 2.0) * double(offset % kSector) / kSector;
    };
    std::set<std::uint64_t> drawn;
    for (const int lane : lanes_of(sample.mask)) {
        const std::uint64_t offset = sample.offsets[lane];
        const double x = kLeft + lane_width * lane;
        canvas.rect("hue0", x + 1.0, y, lane_width - 2.0, kBox,
                    fmt::format("lane {}: byte {}", lane, offset));
        canvas.text(x + lane_width / 2.0, y + 12.0, "middle", std::to_string(lane),
                    "onhue");
        // An access may lie across two sectors, which need not be neighbours here.
        for (std::uint64_t first = offset; first < offset + sample.bytes;) {
            const std::uint64_t end =
                std::min(offset + sample.bytes, (first / kSector + 1) * kSector);
            const double piece = (width - 2.0) * double(end - first) / kSector;
            if (drawn.insert(first).second)
                canvas.rect("hue1", at(first), below, piece, kBox,
                            in_words(lanes_at(sample, first, unsigned(end - first))));
            canvas.line("lead", x + lane_width / 2.0, y + kBox, at(first) + piece / 2.0,
                        below);
            first = end;
        }
    }
    double label_end = 0.0;
    for (const auto& [sector, x] : left_of) {
        const std::string label = fmt::format("+{}", sector * kSector);
        if (x < label_end || x + text_width(label, 11.0) > kRight) continue;
        canvas.text(x + 1.0, below + kBox + 13.0, "start", label, "soft");
        label_end = x + text_width(label, 11.0) + 8.0;
    }
    return below + kBox + 36.0;
}

double draw_banks(Canvas& canvas, const Sample& sample, const LanesFigures& figures,
                  double y) {
    const double width = (kRight - kGridLeft) / kBanks;
    canvas.text(kGridLeft - 8.0, y + 10.0, "end", "bank", "soft");
    for (unsigned bank = 0; bank < kBanks; ++bank)
        canvas.text(kGridLeft + width * (bank + 0.5), y + 10.0, "middle",
                    std::to_string(bank), "soft");
    y += 16.0;
    const double top = y;
    for (std::size_t turn = 0; turn < figures.turns.size(); ++turn, y += kTurn) {
        if (turn == 0 || turn + 1 == figures.turns.size())
            canvas.text(kGridLeft - 8.0, y + 9.5, "end", fmt::format("turn {}", turn + 1),
                        "soft");
        for (unsigned bank = 0; bank < kBanks; ++bank) {
            const std::uint64_t word = figures.turns[turn][bank];
            if (word == LanesFigures::kNoWord) continue;
            const std::vector<int> lanes = lanes_at(sample, word * kWord, kWord);
            canvas.rect("hue1", kGridLeft + width * bank + 1.0, y + 0.5, width - 2.0,
                        kTurn - 1.0,
                        fmt::format("bank {}, word {}: {}", bank, word, in_words(lanes)));
            canvas.text(kGridLeft + width * (bank + 0.5), y + 9.0, "middle",
                        lanes.size() == 1 ? std::to_string(lanes[0])
                                          : fmt::format("×{}", lanes.size()),
                        "onhue");
        }
    }
    for (unsigned bank = 0; bank <= kBanks; ++bank)
        canvas.line("grid", kGridLeft + width * bank, top - 2.0, kGridLeft + width * bank,
                    y + 2.0);
    return y + 26.0;
}

}  // namespace

std::string lanes_picture(const std::vector<LanesPanel>& panels, const std::string& title,
                          const std::string& subtitle) {
    Canvas canvas;
    double y = kSheetTop;
    for (const LanesPanel& panel : panels) {
        const LanesFigures figures = figures_of(panel.sample);
        canvas.text(kLeft, y + 12.0, "start",
                    fitted(panel.source, kRight - kLeft - 150.0, 13.0), "code");
        canvas.text(kRight, y + 12.0, "end", escape(panel.place), "soft");
        canvas.text(kLeft, y + 30.0, "start",
                    fmt::format("{}: {}", verb(panel.sample.access),
                                in_words(panel.sample, figures)),
                    "soft");
        y += 40.0;
        y = panel.sample.is_shared ? draw_banks(canvas, panel.sample, figures, y)
                                   : draw_sectors(canvas, panel.sample, figures, y);
    }
    return standalone_svg(canvas, y, title, subtitle);
}

namespace {

/// By number, from 1; without the blanks before it.
std::string line_of(const std::string& source, int number) {
    std::istringstream lines(source);
    std::string line;
    for (int i = 0; i < number; ++i) std::getline(lines, line);
    return line.substr(std::min(line.find_first_not_of(" \t"), line.size()));
}

/// A template's kernels share their lines, and often what they touch.
void add_unless_there(std::vector<LanesPanel>& panels, const LanesPanel& panel) {
    if (std::find(panels.begin(), panels.end(), panel) == panels.end())
        panels.push_back(panel);
}

}  // namespace

std::vector<LanesPanel> panels_of(const cuda_on_cpu::observe::Report& report,
                                  const std::string& path, int line,
                                  const std::string& source) {
    const std::string name = path.substr(path.rfind('/') + 1);
    std::vector<LanesPanel> panels;
    for (const auto& kernel : report.kernels)
        for (const auto& each : kernel.lines)
            if (is_file(each.file, path) && (line == 0 || each.line == line))
                for (const Sample& sample : each.samples)
                    add_unless_there(panels, {fmt::format("{}:{}", name, each.line),
                                              line_of(source, each.line), sample});
    return panels;
}

}  // namespace moe::profile
