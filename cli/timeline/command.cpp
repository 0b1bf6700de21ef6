// command.cpp: `moe timeline`, who waited for whom in a kernel on the CPU executor.

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "cli/commands.h"
#include "cli/files.h"
#include "cli/terminal.h"
#include "cli/timeline/picture.h"
#include "cli/words.h"
#include "core/error.h"

namespace moe {
namespace {

using timeline::Row;
using timeline::Timeline;

struct TimelineOptions {
    std::string trace;
    std::optional<std::int64_t> block;
    std::optional<std::string> svg;
};

/// Steps during which at least one of the row's bars lasted.
std::int64_t covered(const Row& row) {
    std::vector<timeline::Bar> bars = row.bars;
    std::ranges::sort(bars, {}, &timeline::Bar::begin);
    std::int64_t steps = 0, until = 0;
    for (const timeline::Bar& bar : bars) {
        steps += std::max<std::int64_t>(0, bar.end - std::max(bar.begin, until));
        until = std::max(until, bar.end);
    }
    return steps;
}

std::string counted(std::int64_t count, const std::string& one, const std::string& many) {
    return grouped(count) + " " + (count == 1 ? one : many);
}

void print_header(const Timeline& timeline) {
    fmt::print("Trace  {}, {}, {}{}\n",
               counted(timeline.launches(), "launch", "launches"),
               counted(std::int64_t(timeline.blocks.size()), "block", "blocks"),
               counted(timeline.steps(), "step", "steps"),
               timeline.cut_off ? "; cut off: too many events" : "");
    const timeline::Block& block = timeline.block();
    fmt::print("{}\n",
               wrapped(fmt::format("Block  {}: {}; steps {} to {}", timeline.shown + 1,
                                   one_line(block.name), grouped(block.first_step()),
                                   grouped(block.last_step())),
                       7));
    fmt::print("{}\n\n", wrapped("Steps  of the scheduler, from thread to thread, not "
                                 "time; emulated on a CPU",
                                 7));
}

/// What waits, and what is on its way meanwhile, in columns of their own.
void print_rows(const timeline::Block& block) {
    std::size_t width = 3;
    for (const Row& row : block.rows) width = std::max(width, columns_of(row.name));
    const auto print = [&](const std::string& name, const std::string& events,
                           const std::string& waited, const std::string& on_way) {
        std::string line = fmt::format("{}{}  {:>7}  {:>12}  {:>16}", name,
                                       std::string(width - columns_of(name), ' '), events,
                                       waited, on_way);
        line.erase(line.find_last_not_of(' ') + 1);
        fmt::print("{}\n", line);
    };
    print("Row", "events", "steps waited", "steps on its way");
    for (const Row& row : block.rows) {
        const std::size_t events = row.bars.size() + row.marks.size();
        const std::string steps = grouped(covered(row));
        const bool waits = row.kind == timeline::RowKind::warp;
        print(one_line(row.name), grouped(std::int64_t(events)), waits ? steps : "",
              waits || row.bars.empty() ? "" : steps);
    }
}

int run_timeline(const TimelineOptions& options) {
    Timeline timeline =
        timeline::read_timeline(read_file("trace", options.trace), options.trace);
    if (options.block) timeline::show_block(timeline, "--block", *options.block);
    const timeline::Block& block = timeline.block();
    if (options.svg)
        write_file("--svg", {*options.svg,
                             timeline::timeline_picture(timeline, "Who waits for whom")});
    print_header(timeline);
    print_rows(block);
    if (options.svg) fmt::print("\nwrote {}\n", one_line(*options.svg));
    return kExitOk;
}

}  // namespace

void add_timeline(CommandLine& line) {
    auto options = std::make_shared<TimelineOptions>();
    Command& command =
        line.add("timeline",
                 "Who waited for whom in a kernel on the CPU executor, drawn.\n"
                 "Sums up, row by row, a file that CUDA_ON_CPU_TRACE=FILE wrote.\n"
                 "Exit code: 0 done, 2 bad input.\n\n"
                 "Examples:\n"
                 "  CUDA_ON_CPU_TRACE=t.json ./moe test "
                 "--gtest_filter=ConformancePipeline.Tma*\n"
                 "  moe timeline t.json\n"
                 "  moe timeline t.json --block 20 --svg t.svg");
    command.option("trace", options->trace, "The trace (.json)").required();
    command.option("--block", options->block,
                   "Block to show, from 1 (default: the first that does more than meet "
                   "at barriers)");
    command.option("--svg", options->svg, "Draw it into this file");
    command.runs([options] { return run_timeline(*options); });
}

}  // namespace moe
