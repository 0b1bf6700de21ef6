// microscope_test.cpp: what docs/microscope.md says of its kernels, and how it is drawn.

#include <fstream>
#include <sstream>

#include "cli/microscope/lesson.h"
#include "cli/profile/lanes_picture.h"
#include "cli/profile/page.h"
#include "core/error.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

using cuda_on_cpu::observe::Sample;
using microscope::Look;
using microscope::Version;
using profile::figures_of;

/// The line with this text in a source of the lesson.
Counters at(const Look& look, const std::string& source, const std::string& text) {
    std::ifstream lines(std::string(MOE_SOURCE_DIR "/docs/microscope/") + source);
    Counters found;
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        if (line.find(text) == line.npos) continue;
        for (const auto& each : look.report.kernels.at(0).lines)
            if (each.line == number && each.file.ends_with(source))
                found += each.counters;
    }
    EXPECT_GT(found.instructions, 0) << text;
    return found;
}

/// Edges in every direction, but of whole warps in `out`.
constexpr microscope::Sizes kRagged = {38, 96, 72};

TEST(ObserveMicroscope, EachVersionMendsWhatItSays) {
    const auto look = [](Version version) { return look_at(version, kRagged); };
    const auto sectors = [](const Counters& c) {
        return double(c.loads.sectors) / double(c.loads.requests);
    };
    const Look uncoalesced = look(Version::uncoalesced),
               coalesced = look(Version::coalesced),
               conflicting = look(Version::conflicting), padded = look(Version::padded);
    const std::uint64_t results = 38 * 96;
    const Counters strided = at(uncoalesced, "linear.cu", "b = weight[column");
    EXPECT_EQ(sectors(strided), 32.0);
    EXPECT_EQ(strided.loads.requests, results / 32 * 72);
    EXPECT_EQ(sectors(at(uncoalesced, "linear.cu", "a = x[row")), 1.0);
    // 72 elements: two requests of 32 lanes and one of 8, all packed
    const Counters packed = at(coalesced, "linear.cu", "b = weight[column");
    EXPECT_EQ(packed.loads.requests, results * 3);
    EXPECT_EQ(packed.loads.sectors, results * 9);
    EXPECT_EQ(packed.loads.ideal_sectors, packed.loads.sectors);
    const std::uint64_t reads = 2 * 3 * 3 * 32 * 32;  // tiles of y, of in; k; warps
    for (const auto& [version, ways] : {std::pair(&conflicting, 32), {&padded, 1}}) {
        const Counters column = at(*version, "linear.cu", "wk = tiles.weight");
        EXPECT_EQ(column.shared.requests, reads);
        EXPECT_EQ(column.shared.wavefronts, reads * unsigned(ways));
        EXPECT_EQ(column.shared.most_ways, unsigned(ways));
        const Counters row = at(*version, "linear.cu", "xk = tiles.x");
        EXPECT_EQ(row.shared.wavefronts, reads);
        // Each element of W once for each of two rows of tiles
        EXPECT_EQ(at(*version, "linear.cu", "b = weight[w_row").loads.sectors,
                  2u * 96 * 9);
    }
    const std::uint64_t bytes = 4 * (38 * 72 + 96 * 72 + 38 * 96);
    for (const Look* each : {&uncoalesced, &coalesced, &conflicting, &padded}) {
        EXPECT_EQ(each->counters().compulsory_bytes(), bytes);
        EXPECT_EQ(each->y, uncoalesced.y);
    }
}

TEST(ObserveMicroscope, ThePipelineMovesWholeBoxesAndHalfTheBytes) {
    const Look look = look_at(Version::pipelined, kRagged);
    EXPECT_EQ(look.counters().loads.requests, 0);
    EXPECT_EQ(look.counters().mma_flops, 2u * 64 * 96 * 128);  // whole tiles
    EXPECT_EQ(look.counters().compulsory_bytes(), 2 * (38 * 72 + 96 * 72) + 4 * 38 * 96);
    EXPECT_EQ(at(look, "pipeline.cu", "] = d[i]").shared.most_ways, 8);
    EXPECT_NE(look.timeline.find("pipelined_kernel"), std::string::npos);
}

TEST(ObserveMicroscope, NoVersionHasARace) {
    for (const Version version : microscope::kVersions)
        EXPECT_EQ(findings_of(look_at(version, {33, 36, 40}, true).report), "")
            << microscope::to_string(version);
}

TEST(ObserveMicroscope, SizesAreRefusedByTheirFlag) {
    const auto refusal = [](const microscope::Sizes& sizes) -> std::string {
        try {
            microscope::require_sizes(sizes);
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    EXPECT_EQ(refusal({64, 192, 512}), "");
    EXPECT_EQ(refusal({0, 192, 512}), "--rows = 0: must be from 1 to 4096");
    EXPECT_EQ(refusal({64, 190, 512}),
              "--out = 190: must be a multiple of 4, up to 4096");
    EXPECT_EQ(refusal({64, 192, -8}), "--in = -8: must be a multiple of 8, up to 4096");
    EXPECT_EQ(refusal({64, 192, 4104}),
              "--in = 4104: must be a multiple of 8, up to 4096");
}

/// Lane l at byte l * stride.
Sample strided(unsigned bytes, unsigned stride, bool is_shared, unsigned mask = ~0u) {
    Sample sample{Sample::Access::load, is_shared, bytes, mask, {}};
    for (unsigned lane = 0; lane < 32; ++lane) sample.offsets[lane] = lane * stride;
    return sample;
}

TEST(LanesPicture, SectorsAndTurnsOfASampleAreKnown) {
    EXPECT_EQ(figures_of(strided(4, 4, false)).sectors,
              (std::vector<std::uint64_t>{0, 1, 2, 3}));
    EXPECT_EQ(figures_of(strided(4, 64, false)).sectors.size(), 32);
    EXPECT_EQ(figures_of(strided(4, 64, false)).used_bytes, 128);
    EXPECT_EQ(figures_of(strided(8, 28, false, 3)).sectors.size(), 2);  // lies across
    EXPECT_EQ(figures_of(strided(4, 4, true)).turns.size(), 1);
    EXPECT_EQ(figures_of(strided(4, 128, true)).turns.size(), 32);
    EXPECT_EQ(figures_of(strided(4, 132, true)).turns.size(), 1);
    EXPECT_EQ(figures_of(strided(4, 0, true)).turns.size(), 1);
    EXPECT_EQ(figures_of(strided(16, 16, true)).turns.size(), 4);
    EXPECT_EQ(figures_of(strided(16, 16, true)).fewest_turns, 4);
    EXPECT_EQ(figures_of(strided(8, 16, true)).turns.size(), 4);
    EXPECT_EQ(figures_of(strided(8, 16, true)).fewest_turns, 2);
    EXPECT_EQ(figures_of(strided(4, 128, true)).turns[5][0], 5 * 32);
}

std::size_t count(const std::string& text, const std::string& part) {
    std::size_t found = 0;
    for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1))
        ++found;
    return found;
}

TEST(LanesPicture, HasABoxPerLaneAndPerWord) {
    const auto draw = [](const Sample& sample) {
        return profile::lanes_picture({{"a.cu:3", "x[i] < \"1\";", sample}}, "t & u",
                                      "s");
    };
    const std::string global = draw(strided(4, 64, false, 0xffff));
    EXPECT_EQ(count(global, "class='hue0'"), 16);  // lanes
    EXPECT_EQ(count(global, "class='hue1'"), 16);  // what they touch
    EXPECT_EQ(count(global, "<line"), 16);
    EXPECT_EQ(count(global, "x[i] &lt; &quot;1&quot;;"), 1);
    EXPECT_EQ(count(global,
                    "load: 16 lanes of 4 bytes, global memory: 16 sectors, 64 of "
                    "512 bytes used"),
              1);
    const std::string shared = draw(strided(4, 128, true));
    EXPECT_EQ(count(shared, "class='hue1'"), 32);
    EXPECT_EQ(count(shared, "32 turns of the banks, at best 1"), 1);
    EXPECT_EQ(count(draw(strided(4, 0, true)), ">×32<"), 1);
}

std::string text_of(const std::string& path) {
    std::ostringstream text;
    text << std::ifstream(path).rdbuf();
    return text.str();
}

// As `./moe microscope --page docs/microscope.md --pictures docs/microscope`.
TEST(ObserveMicroscope, ThePageAndItsPicturesAreUpToDate) {
    const std::string path = MOE_SOURCE_DIR "/docs/microscope.md";
    const std::string page = text_of(path);
    if (page.find(profile::compiler_in_words()) == page.npos)
        GTEST_SKIP() << path << " was made with another compiler";
    const microscope::Sizes sizes;
    std::vector<Look> looks;
    for (const Version version : microscope::kVersions)
        looks.push_back(look_at(version, sizes));
    EXPECT_EQ(with_regions(path, page, page_regions(looks, sizes), "microscope"), page);
    for (const auto& [name, svg] : pictures(looks, sizes))
        EXPECT_TRUE(text_of(MOE_SOURCE_DIR "/docs/microscope/" + name) == svg)
            << name << ": run ./moe microscope --page docs/microscope.md --pictures "
            << "docs/microscope";
}

}  // namespace
}  // namespace moe::test
