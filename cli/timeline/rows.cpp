#include "cli/timeline/rows.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace moe::timeline {
namespace {

constexpr int kWarpsOfGroup = 4;
/// A turn of all threads of a warpgroup: so far apart its warps do the same.
constexpr std::int64_t kTurn = 128;
constexpr int kMostLanes = 12;
constexpr std::size_t kMostMbarriers = 16;

/// Gives each bar the first lane that is free; where there are too many, the last.
Strip stacked(const std::string& label, std::vector<Bar> bars) {
    std::ranges::stable_sort(bars, {}, &Bar::begin);
    Strip strip{label, "", {}, {}, 1};
    std::vector<std::int64_t> ends;  // of the lanes
    for (Bar& bar : bars) {
        std::size_t lane = 0;
        while (lane < ends.size() && ends[lane] > bar.begin) ++lane;
        if (lane == kMostLanes) --lane;
        if (lane == ends.size()) ends.push_back(0);
        ends[lane] = std::max(ends[lane], bar.end);
        strip.bars.push_back({std::move(bar), int(lane)});
    }
    strip.lanes = std::max(1, int(ends.size()));
    return strip;
}

/// Whether two warps do the same, one a little later.
bool go_together(const Row& one, const Row& other) {
    if (one.bars.size() != other.bars.size()) return false;
    for (std::size_t i = 0; i < one.bars.size(); ++i) {
        const Bar &a = one.bars[i], &b = other.bars[i];
        if (a.what != b.what || a.where != b.where ||
            std::abs(a.begin - b.begin) > kTurn || std::abs(a.end - b.end) > kTurn)
            return false;
    }
    return true;
}

/// The products of the warpgroup that begins with rows[first], if its warps go together.
bool is_group(const std::vector<const Row*>& rows, std::size_t first) {
    if (first + kWarpsOfGroup > rows.size() || rows[first]->warp % kWarpsOfGroup != 0)
        return false;
    for (std::size_t i = 1; i < kWarpsOfGroup; ++i)
        if (rows[first + i]->warp != rows[first]->warp + int(i) ||
            !go_together(*rows[first], *rows[first + i]))
            return false;
    return true;
}

/// Each bar from where the first warp begins to where the last ends.
std::vector<Bar> united(const std::vector<const Row*>& rows, std::size_t first) {
    std::vector<Bar> bars = rows[first]->bars;
    for (std::size_t b = 0; b < bars.size(); ++b) {
        for (std::size_t i = 1; i < kWarpsOfGroup; ++i) {
            const Bar& other = rows[first + i]->bars[b];
            bars[b].begin = std::min(bars[b].begin, other.begin);
            bars[b].end = std::max(bars[b].end, other.end);
        }
        bars[b].what += fmt::format(" by warps {} to {}", rows[first]->warp,
                                    rows[first]->warp + kWarpsOfGroup - 1);
    }
    return bars;
}

std::vector<const Row*> rows_of_kind(const Block& block, RowKind kind) {
    std::vector<const Row*> rows;
    for (const Row& row : block.rows)
        if (row.kind == kind) rows.push_back(&row);
    return rows;
}

void add_products(const Block& block, std::vector<Strip>& strips) {
    const std::vector<const Row*> rows = rows_of_kind(block, RowKind::products);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const int warp = rows[i]->warp;
        if (!is_group(rows, i)) {
            strips.push_back(stacked(fmt::format("wgmma, warp {}", warp), rows[i]->bars));
            continue;
        }
        strips.push_back(
            stacked(fmt::format("wgmma, warps {}-{}", warp, warp + kWarpsOfGroup - 1),
                    united(rows, i)));
        i += kWarpsOfGroup - 1;
    }
}

/// A strip for each mbarrier, by its place, and one for the other barriers.
std::vector<Strip> phase_strips(const Block& block) {
    std::map<std::string, Strip> others;
    std::map<std::pair<std::size_t, std::string>, Strip>
        mbarriers;  // short numbers first
    for (const Row* row : rows_of_kind(block, RowKind::phases))
        for (const Mark& mark : row->marks) {
            const std::string& at = mark.mbarrier;
            Strip& strip = at.empty() ? others["barriers"] : mbarriers[{at.size(), at}];
            strip.label = at.empty() ? "barriers" : at;
            // Without loads nobody knows what an mbarrier is for.
            if (!at.empty() && !block.filled.empty())
                strip.note = block.filled.contains(at) ? "full" : "empty";
            strip.marks.push_back(mark);
        }
    std::vector<Strip> strips;
    for (auto& [name, strip] : others) strips.push_back(std::move(strip));
    if (mbarriers.size() > kMostMbarriers) {
        Strip all{"mbarriers", "", {}, {}, 1};
        for (auto& [place, strip] : mbarriers)
            all.marks.insert(all.marks.end(), strip.marks.begin(), strip.marks.end());
        strips.push_back(std::move(all));
        return strips;
    }
    for (auto& [place, strip] : mbarriers) strips.push_back(std::move(strip));
    return strips;
}

}  // namespace

std::vector<Section> sections(const Block& block) {
    std::vector<Section> all = {
        {"Warps: what each waits for", {}},
        {"On their way, while warps go on", {}},
        {"Barriers, and mbarriers by their place in shared memory", {}}};
    for (const Row* row : rows_of_kind(block, RowKind::warp))
        all[0].strips.push_back(stacked(fmt::format("warp {}", row->warp), row->bars));
    const std::pair<RowKind, const char*> engines[] = {{RowKind::loads, "TMA loads"},
                                                       {RowKind::copies, "cp.async"}};
    for (const auto& [kind, label] : engines)
        for (const Row* row : rows_of_kind(block, kind))
            all[1].strips.push_back(stacked(label, row->bars));
    add_products(block, all[1].strips);
    for (const Row* row : rows_of_kind(block, RowKind::stores))
        all[1].strips.push_back(stacked("TMA stores", row->bars));
    all[2].strips = phase_strips(block);
    std::erase_if(all, [](const Section& section) { return section.strips.empty(); });
    return all;
}

}  // namespace moe::timeline
