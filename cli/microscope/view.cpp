// view.cpp: the lesson as a table, as a page and as pictures.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "cli/files.h"
#include "cli/microscope/lesson.h"
#include "cli/profile/bound.h"
#include "cli/profile/figures.h"
#include "cli/profile/lanes_picture.h"
#include "cli/profile/page.h"
#include "cli/profile/view.h"
#include "cli/report/sheet.h"
#include "cli/terminal.h"
#include "cli/timeline/picture.h"
#include "cli/words.h"
#include "core/error.h"

namespace moe::microscope {

using cuda_on_cpu::observe::Counters;
using profile::number;

namespace {

std::string ways(const Counters& c) {
    return c.shared.requests == 0 ? "-" : std::to_string(c.shared.most_ways);
}

std::string bytes(std::uint64_t value) {
    return value == 0 ? "-" : bytes_in_words(std::int64_t(value));
}

profile::Bound bound(const Counters& c) {
    return profile::bound_of(c, 1, profile::kH100);
}

/// Seconds; of what the kernel does itself, not of its launch.
double without_launch(profile::Bound bound) {
    bound.launch = 0.0;
    return bound.seconds();
}

std::string flops_in_words(std::uint64_t flops) {
    return flops == 0 ? "-" : fmt::format("{:.1f} M", 1e-6 * double(flops));
}

/// The cells of a version's row, in the order of kColumns.
std::vector<std::string> cells(const Look& look) {
    const Counters& c = look.counters();
    return {number(c.loads.requests + c.stores.requests),
            profile::sectors_per_request(c),
            profile::efficiency(c),
            bytes(c.requested_bytes()),
            bytes(c.compulsory_bytes()),
            number(c.shared.wavefronts),
            ways(c),
            number(c.barriers),
            flops_in_words(c.mma_flops),
            fmt::format("{:.2f}", 1e6 * without_launch(bound(c))),
            bound(c).resource()};
}

struct Column {
    const char* head;
    int width;
};
constexpr std::array<Column, 11> kColumns = {{{"requests", 10},
                                              {"sect/req", 9},
                                              {"eff", 6},
                                              {"requested", 10},
                                              {"compulsory", 11},
                                              {"wavefronts", 11},
                                              {"ways", 5},
                                              {"barriers", 9},
                                              {"MMA FLOP", 9},
                                              {"us", 7},
                                              {"limit", 7}}};
/// The first to go where the terminal is narrow, by number.
constexpr std::array<std::size_t, 5> kGo = {7, 8, 2, 0, 6};

std::string row(const std::string& name, const std::vector<std::string>& all,
                std::size_t left_out) {
    const auto end = kGo.begin() + std::ptrdiff_t(left_out);
    std::string line = fmt::format("{:<12}", name);
    for (std::size_t i = 0; i < all.size(); ++i)
        if (std::find(kGo.begin(), end, i) == end)
            line += fmt::format("{:>{}}", all[i], kColumns[i].width);
    return line;
}

bool all_equal(const std::vector<Look>& looks) {
    return std::all_of(looks.begin(), looks.end(),
                       [&](const Look& look) { return look.y == looks[0].y; });
}

}  // namespace

void print_looks(const std::vector<Look>& looks) {
    std::vector<std::string> heads, going;
    for (const Column& column : kColumns) heads.push_back(column.head);
    for (const std::size_t column : kGo) going.push_back(heads[column]);
    const TableParts parts(going,
                           [&](std::size_t n) { return columns_of(row("", heads, n)); });
    fmt::print("{}\n", row("version", heads, parts.left_out()));
    for (const Look& look : looks)
        fmt::print("{}\n", row(to_string(look.version), cells(look), parts.left_out()));
    fmt::print("{}", parts.note("--json"));
    fmt::print("\n{}\n", all_equal(looks)
                             ? "✓ all versions gave the same y, to the last bit"
                             : "✗ the versions gave different y");
    fmt::print(
        "{}\n",
        wrapped(fmt::format("us, limit: bound on {} (model) without the launch, in "
                            "microseconds, and what bounds it; never a time",
                            profile::kH100.name),
                2));
    for (const Look& look : looks)
        for (const auto& finding : look.report.findings)
            fmt::print("✗ {}: {}\n", to_string(look.version), finding.text);
}

nlohmann::json to_json(const std::vector<Look>& looks, const Sizes& sizes) {
    nlohmann::json versions = nlohmann::json::array();
    for (const Look& look : looks)
        versions.push_back({{"version", to_string(look.version)},
                            {"kernel", look.report.launches[0].kernel},
                            {"counters", profile::to_json(look.counters())}});
    return {{"emulated", true},
            {"rows", sizes.rows},
            {"out", sizes.out},
            {"in", sizes.in},
            {"versions", versions}};
}

namespace {

/// A function of the kernels' sources, from its name to the brace that ends it.
std::string source_of_kernel(const std::string& file, const std::string& name) {
    const std::string path = "docs/microscope/" + file;
    const std::string text = read_file("source", MOE_SOURCE_DIR "/" + path);
    const std::size_t at = text.find(name + "(");
    const std::size_t begin = text.rfind("\n\n", at), end = text.find("\n}\n", at);
    MOE_CHECK(at != text.npos && end != text.npos);
    const std::size_t first = text.find("__global__", begin);
    return fmt::format("```cpp\n{}\n}}\n```\n", text.substr(first, end - first));
}

}  // namespace

Regions page_regions(const std::vector<Look>& looks, const Sizes& sizes) {
    std::string table =
        "| version | requests | sectors/request | efficiency | requested | compulsory | "
        "wavefronts | ways | barriers | MMA FLOP | bound (model), µs | limit |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|\n";
    for (const Look& look : looks)
        table += fmt::format("| {} | {} |\n", to_string(look.version),
                             fmt::join(cells(look), " | "));
    return {
        {"run", fmt::format("y ({0}, {1}) = x ({0}, {2}) Wᵀ, compiled by {3}: {4}.\n",
                            sizes.rows, sizes.out, sizes.in, profile::compiler_in_words(),
                            all_equal(looks)
                                ? "all five versions gave the same y, to the last bit"
                                : "the versions gave different y")},
        {"figures", table},
        {"uncoalesced", source_of_kernel("linear.cu", "uncoalesced_kernel")},
        {"coalesced", source_of_kernel("linear.cu", "void coalesced_kernel")},
        {"tiled", source_of_kernel("linear.cu", "tiled_kernel")}};
}

// ------------------------------------------------------------------------------ pictures
namespace {

std::string product_in_words(const Sizes& sizes) {
    return fmt::format("y ({0}, {1}) = x ({0}, {2}) Wᵀ", sizes.rows, sizes.out, sizes.in);
}

/// Where a version's kernel stands.
std::string source_of(Version version) {
    return version == Version::pipelined ? "docs/microscope/pipeline.cu"
                                         : "docs/microscope/linear.cu";
}

/// The instructions that ran most often.
std::string lanes_of(const Look& look, const Sizes& sizes) {
    std::uint64_t most = 0;
    for (const auto& line : look.report.kernels[0].lines)
        most = std::max(most, line.counters.instructions);
    const std::string path = source_of(look.version);
    const std::string source = read_file("source", MOE_SOURCE_DIR "/" + path);
    std::vector<profile::LanesPanel> panels;
    for (const auto& line : look.report.kernels[0].lines)
        if (line.counters.instructions == most)
            for (const auto& panel :
                 profile::panels_of(look.report, path, line.line, source))
                panels.push_back(panel);
    return profile::lanes_picture(
        panels, fmt::format("{}: who touches what", to_string(look.version)),
        product_in_words(sizes) +
            ": the lines that ran most often; recorded on the CPU executor");
}

constexpr double kLeft = 24.0, kRight = kSheetWidth - 24.0, kNames = 124.0;
constexpr double kBar = 14.0, kRow = 30.0;

/// One bar per version, from `from` to `to` at most.
template <typename Value, typename Words>
void draw_bars(Canvas& canvas, const std::vector<Look>& looks, double from, double to,
               const std::string& head, std::int64_t colour, Value value, Words words) {
    std::vector<double> values;
    for (const Look& look : looks) values.push_back(double(value(look)));
    const Axis axis(values, from, to);
    canvas.text(from, kSheetTop + 12.0, "start",
                head + (axis.is_log() ? ", log scale" : ""), "head");
    double y = kSheetTop + 24.0;
    for (const double each : values) {
        canvas.rect(hue(colour), axis.at(0.0), y, axis.at(each) - axis.at(0.0), kBar);
        canvas.text(axis.at(each) + 6.0, y + 11.5, "start",
                    each == 0.0 ? "none" : words(std::uint64_t(each)));
        y += kRow;
    }
}

std::string bars(const std::vector<Look>& looks, const Sizes& sizes) {
    Canvas canvas;
    double y = kSheetTop + 24.0;
    for (const Look& look : looks) {
        canvas.text(kLeft, y + 11.5, "start", to_string(look.version));
        y += kRow;
    }
    const double middle = (kLeft + kNames + kRight) / 2.0, words = 90.0;
    draw_bars(
        canvas, looks, kLeft + kNames, middle - words, "bytes requested", 0,
        [](const Look& look) { return look.counters().requested_bytes(); }, bytes);
    draw_bars(
        canvas, looks, middle + 10.0, kRight - words, "turns of the banks", 1,
        [](const Look& look) { return look.counters().shared.wavefronts; }, number);
    return standalone_svg(
        canvas, y + 10.0, "One product, five kernels",
        product_in_words(sizes) +
            "; counted on the CPU executor: figures of memory, no times");
}

}  // namespace

std::vector<Picture> pictures(const std::vector<Look>& looks, const Sizes& sizes) {
    std::vector<Picture> all = {{"figures.svg", bars(looks, sizes)}};
    for (const Look& look : looks)
        all.push_back(
            {fmt::format("{}.svg", to_string(look.version)), lanes_of(look, sizes)});
    for (const Look& look : looks)
        if (!look.timeline.empty())
            all.push_back(
                {"timeline.svg",
                 timeline::timeline_picture(
                     timeline::read_timeline(look.timeline, "timeline"),
                     fmt::format("{}: who waits for whom", to_string(look.version)))});
    return all;
}

}  // namespace moe::microscope
