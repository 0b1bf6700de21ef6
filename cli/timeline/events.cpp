#include "cli/timeline/events.h"

#include <algorithm>
#include <map>
#include <optional>

#include "cli/json_text.h"
#include "core/error.h"

namespace moe::timeline {
namespace {

using nlohmann::json;

constexpr std::int64_t kMostSteps = std::int64_t(1) << 53;
constexpr std::int64_t kMostBlocks = std::int64_t(1) << 31;
constexpr int kMostWarps = 32;
constexpr const char* kWriter = "as CUDA_ON_CPU_TRACE=FILE writes it";

/// A row by the number that it has in the file: trace.h of the executor.
std::optional<Row> row_of(std::int64_t number) {
    const auto one_per_warp = [&](std::int64_t first, RowKind kind) {
        return std::optional<Row>({kind, int(number - first), "", {}, {}});
    };
    if (number < kMostWarps) return one_per_warp(0, RowKind::warp);
    if (number >= 2000 && number < 2000 + kMostWarps)
        return one_per_warp(2000, RowKind::products);
    switch (number) {
        case 1000: return Row{RowKind::loads, 0, "", {}, {}};
        case 1001: return Row{RowKind::stores, 0, "", {}, {}};
        case 1002: return Row{RowKind::copies, 0, "", {}, {}};
        case 3000: return Row{RowKind::phases, 0, "", {}, {}};
        default: return {};
    }
}

/// "+0x40" of "mbarrier +0x40, parity 0 …" or "mbarrier +0x40: phase 1"; else "".
std::string mbarrier_of(const std::string& what) {
    const std::string before = "mbarrier ";
    if (!what.starts_with(before)) return "";
    const std::size_t end = what.find_first_of(",: ", before.size());
    return what.substr(before.size(), end - before.size());
}

Kind kind_of_wait(const std::string& what) {
    if (what.starts_with("mbarrier ")) return Kind::space;
    for (const char* barrier : {"__syncthreads", "named_barrier", "cluster_wait"})
        if (what.starts_with(barrier)) return Kind::barrier;
    return what.starts_with("wgmma") ? Kind::wgmma : Kind::lanes;
}

Kind kind_of(const Row& row, const std::string& what) {
    switch (row.kind) {
        case RowKind::loads: return Kind::load;
        case RowKind::stores: return Kind::store;
        case RowKind::copies: return Kind::copy;
        case RowKind::products: return Kind::product;
        default: return kind_of_wait(what);
    }
}

/// Takes event after event.
class Reader {
  public:
    explicit Reader(std::string source) : source_(std::move(source)) {}

    void take(const json& event) {
        if (!event.is_object()) refuse("", event, "must be an object");
        const std::string phase = text(event, "ph"), name = text(event, "name");
        if (phase == "M") {
            take_name(event, name);
        } else if (phase == "X") {
            take_bar(event, name);
        } else if (phase == "i") {
            take_mark(event, name);
        } else {
            refuse(".ph", phase, std::string("must be M, X or i, ") + kWriter);
        }
        ++index_;
    }

    Timeline finish() {
        for (auto& [process, rows] : rows_) {
            Block& block = timeline_.blocks[blocks_[process]];
            for (auto& [number, row] : rows)
                if (!row.bars.empty() || !row.marks.empty())
                    block.rows.push_back(std::move(row));
            for (const Row& row : block.rows)
                for (const Bar& bar : row.bars)
                    if (!is_wait(bar.kind) && !bar.mbarrier.empty())
                        block.filled.insert(bar.mbarrier);
            for (Row& row : block.rows)
                for (Bar& bar : row.bars)
                    if (bar.kind == Kind::space && block.filled.contains(bar.mbarrier))
                        bar.kind = Kind::data;
        }
        return std::move(timeline_);
    }

  private:
    /// @param key  ".ts", or "" for the event itself
    [[noreturn]] void refuse(const std::string& key, const json& value,
                             const std::string& allowed) const {
        std::string words = value.dump(-1, ' ', true, json::error_handler_t::replace);
        if (words.size() > 60) words = words.substr(0, 60) + "...";
        refuse_words(key, words, allowed);
    }
    [[noreturn]] void refuse_words(const std::string& key, const std::string& words,
                                   const std::string& allowed) const {
        reject(fmt::format("{}: traceEvents[{}]{}", source_, index_, key), words,
               allowed);
    }

    const json& member(const json& object, const std::string& key) const {
        const auto found = object.find(key);
        if (found == object.end()) refuse_words("." + key, "missing", "must be there");
        return *found;
    }
    std::string text(const json& object, const std::string& key) const {
        const json& value = member(object, key);
        if (!value.is_string()) refuse("." + key, value, "must be text");
        return value;
    }
    std::int64_t number(const json& event, const std::string& key, std::int64_t least,
                        std::int64_t most) const {
        const json& value = member(event, key);
        // As 64 bits without a sign a negative number is beyond every limit here.
        if (!value.is_number_integer() ||
            value.get<std::uint64_t>() > std::uint64_t(most) ||
            value.get<std::int64_t>() < least)
            refuse("." + key, value,
                   fmt::format("must be a whole number from {} to {}", least, most));
        return value;
    }
    const json& arguments(const json& event) const {
        const json& found = member(event, "args");
        if (!found.is_object()) refuse(".args", found, "must be an object");
        return found;
    }

    Row& row(const json& event) {
        const std::int64_t process = number(event, "pid", 0, kMostBlocks);
        if (!blocks_.contains(process))
            refuse(".pid", process, "must be a process that has a name by then");
        const std::int64_t thread = number(event, "tid", 0, kMostBlocks);
        const auto found = rows_[process].find(thread);
        if (found != rows_[process].end()) return found->second;
        const std::optional<Row> fresh = row_of(thread);
        if (!fresh)
            refuse(".tid", thread,
                   std::string("must be the number of a row, ") + kWriter);
        Row& made = rows_[process].emplace(thread, *fresh).first->second;
        made.name = fmt::format("row {}", thread);
        return made;
    }

    void take_name(const json& event, const std::string& what) {
        if (what == "thread_name") {
            row(event).name = text(arguments(event), "name");
        } else if (what == "process_name") {
            const std::int64_t process = number(event, "pid", 0, kMostBlocks);
            if (!blocks_.emplace(process, timeline_.blocks.size()).second)
                refuse(".pid", process, "must get its name once");
            timeline_.blocks.push_back({text(arguments(event), "name"), {}, {}});
        }
    }

    void take_bar(const json& event, const std::string& name) {
        Row& place = row(event);
        if (place.kind == RowKind::phases)
            refuse(".tid", 3000, "must be a row in which something can last");
        const std::int64_t begin = number(event, "ts", 0, kMostSteps);
        const std::int64_t length = number(event, "dur", 1, kMostSteps);
        const std::string wait = "wait: ";
        const bool waits = place.kind == RowKind::warp;
        const std::string what =
            waits && name.starts_with(wait) ? name.substr(wait.size()) : name;
        const json& more = arguments(event);
        const std::string on = waits                 ? mbarrier_of(what)
                               : more.contains("on") ? text(more, "on")
                                                     : "";
        place.bars.push_back(
            {kind_of(place, what), what, text(more, "at"), on, begin, begin + length});
    }

    void take_mark(const json& event, const std::string& name) {
        if (name.starts_with("cut off")) {
            timeline_.cut_off = true;
            return;
        }
        row(event).marks.push_back(
            {name, mbarrier_of(name), number(event, "ts", 0, kMostSteps)});
    }

    std::string source_;
    std::size_t index_ = 0;
    Timeline timeline_;
    std::map<std::int64_t, std::size_t> blocks_;                // by process
    std::map<std::int64_t, std::map<std::int64_t, Row>> rows_;  // by process and thread
};

/// More than threads that meet.
bool is_worth_showing(const Block& block) {
    for (const Row& row : block.rows)
        for (const Bar& bar : row.bars)
            if (bar.kind != Kind::barrier) return true;
    return false;
}

}  // namespace

std::int64_t Block::first_step() const {
    std::int64_t first = kMostSteps;
    for (const Row& row : rows) {
        for (const Bar& bar : row.bars) first = std::min(first, bar.begin);
        for (const Mark& mark : row.marks) first = std::min(first, mark.step);
    }
    return rows.empty() ? 0 : first;
}

std::int64_t Block::last_step() const {
    std::int64_t last = 0;
    for (const Row& row : rows) {
        for (const Bar& bar : row.bars) last = std::max(last, bar.end);
        for (const Mark& mark : row.marks) last = std::max(last, mark.step);
    }
    return last;
}

std::int64_t Timeline::launches() const {
    return std::ranges::count_if(blocks, [](const Block& block) {
        return block.name.ends_with(", block (0,0,0)");
    });
}

std::int64_t Timeline::steps() const {
    std::int64_t steps = 0;
    for (const Block& block : blocks) steps = std::max(steps, block.last_step());
    return steps;
}

Timeline read_timeline(const std::string& json_text, const std::string& source) {
    const json whole = parse_json(source, json_text);
    const auto events = whole.is_object() ? whole.find("traceEvents") : whole.end();
    if (events == whole.end() || !events->is_array())
        reject(source, "no list \"traceEvents\"",
               "must be a trace that CUDA_ON_CPU_TRACE=FILE wrote");
    Reader reader(source);
    for (const json& event : *events) reader.take(event);
    Timeline timeline = reader.finish();
    const auto chosen = [&](auto is_fit) {
        return std::size_t(std::ranges::find_if(timeline.blocks, is_fit) -
                           timeline.blocks.begin());
    };
    timeline.shown = chosen(is_worth_showing);
    if (timeline.shown == timeline.blocks.size())
        timeline.shown = chosen([](const Block& block) { return block.has_events(); });
    if (timeline.shown == timeline.blocks.size())
        reject(source,
               fmt::format("{} block{} without an event", timeline.blocks.size(),
                           timeline.blocks.size() == 1 ? "" : "s"),
               "must have a block whose threads wait or copy");
    return timeline;
}

void show_block(Timeline& timeline, const std::string& flag, std::int64_t number) {
    const auto count = std::int64_t(timeline.blocks.size());
    if (number < 1 || number > count)
        reject(flag, number,
               count == 1 ? "must be 1: there is one block"
                          : fmt::format("must be from 1 to {}", count));
    const auto index = std::size_t(number - 1);
    if (!timeline.blocks[index].has_events())
        reject(flag, number,
               fmt::format("must be a block with events; block {} has some",
                           timeline.shown + 1));
    timeline.shown = index;
}

}  // namespace moe::timeline
