// timeline_test.cpp: `moe timeline`: traces read, summed up, drawn, refused.

#include <regex>

#include "cli/timeline/picture.h"
#include "core/error.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using timeline::Kind;
using timeline::read_timeline;
using timeline::Timeline;

std::string trace(const std::string& events) {
    return R"({"otherData":{},"traceEvents":[)" + events + "]}";
}
std::string process(int number, const std::string& name) {
    return fmt::format(
        R"({{"ph":"M","pid":{},"tid":0,"name":"process_name","args":{{"name":"{}"}}}})",
        number, name);
}
std::string row(int process, int number, const std::string& name) {
    return fmt::format(
        R"(,{{"ph":"M","pid":{},"tid":{},"name":"thread_name","args":{{"name":"{}"}}}})",
        process, number, name);
}
std::string bar(int process, int row, const std::string& name, int begin, int steps,
                const std::string& more = "") {
    return fmt::format(R"(,{{"ph":"X","pid":{},"tid":{},"name":"{}","ts":{},"dur":{},)"
                       R"("args":{{"at":"../a.cu:7"{}}}}})",
                       process, row, name, begin, steps, more);
}
std::string mark(int process, int row, const std::string& name, int step) {
    return fmt::format(R"(,{{"ph":"i","pid":{},"tid":{},"name":"{}","s":"t","ts":{}}})",
                       process, row, name, step);
}

/// A block that meets at a barrier, and one in which a load is waited for.
std::string two_blocks() {
    return process(1, "first_kernel, block (0,0,0)") +
           bar(1, 0, "wait: __syncthreads", 3, 5) +
           mark(1, 3000, "__syncthreads opens, line 4", 8) + "," +
           process(2, "load<int>, block (0,0,0)") + row(2, 0, "warp 0") +
           bar(2, 0, "wait: mbarrier +0x40, parity 0 (phase 0; init at ../b.cu:3)", 10,
               30) +
           bar(2, 0, "wait: mbarrier +0x48, parity 1 (phase 1)", 50, 5) +
           bar(2, 0, "wait: wgmma_fence", 60, 10) +
           bar(2, 0, "wait: __shfl_sync", 65, 10) + row(2, 1000, "TMA loads") +
           bar(2, 1000, "tma_load to +0x0, 64 bytes", 11, 20, R"(,"on":"+0x40")") +
           bar(2, 1000, "tma_load to +0x80, 64 bytes", 12, 28, R"(,"on":"+0x40")") +
           bar(2, 1001, "store", 80, 30) +
           bar(2, 1002, "cp.async of warp 0, 512 bytes", 5, 1) +
           bar(2, 2004, "m64n8k16", 62, 20) + row(2, 3000, "mbarriers") +
           mark(2, 3000, "mbarrier +0x40: phase 1", 40);
}

/// The pictures of the products that four warps make, each a while after the one before.
std::string warpgroup(int apart) {
    std::string events = process(1, "k, block (0,0,0)");
    for (int warp = 4; warp < 8; ++warp)
        for (const int begin : {0, 200, 400})
            events += bar(1, 2000 + warp, "m64n8k16", begin + apart * (warp - 4), 10);
    return trace(events);
}

std::string picture(const std::string& json, const std::string& title = "t") {
    return timeline_picture(read_timeline(json, "a.json"), title);
}

int count(const std::string& text, const std::string& pattern) {
    const std::regex wanted(pattern);
    return int(std::distance(std::sregex_iterator(text.begin(), text.end(), wanted), {}));
}
/// What reads a tip is a bar or a diamond.
int count_bars(const std::string& svg) {
    return count(svg, "<rect [^>]*><title>");
}

/// Every element closed in its turn, every & that of an entity, every value in quotes.
testing::AssertionResult IsWellFormed(const std::string& xml) {
    static const std::regex kTag(R"(<(/?)([a-z]+)((?: +[a-zA-Z0-9:-]+='[^'<]*')*) *(/?)>)"
                                 R"(|&(?:amp|lt|gt|quot|#39);|[^<&])");
    std::vector<std::string> open;
    auto at = xml.begin();
    for (std::smatch tag; at != xml.end(); at = tag.suffix().first) {
        if (!std::regex_search(at, xml.end(), tag, kTag,
                               std::regex_constants::match_continuous))
            return testing::AssertionFailure()
                   << "no element or text: " << std::string(at, xml.end()).substr(0, 80);
        const std::string name = tag[2];
        if (name.empty() || tag[4] == "/") continue;
        if (tag[1] != "/") {
            open.push_back(name);
        } else if (open.empty() || open.back() != name) {
            return testing::AssertionFailure() << "not open: " << name;
        } else {
            open.pop_back();
        }
    }
    if (!open.empty()) return testing::AssertionFailure() << "left open: " << open[0];
    return testing::AssertionSuccess();
}

TEST(Timeline, ReadsWhatWaitedAndWhatWasOnItsWay) {
    const Timeline timeline = read_timeline(trace(two_blocks()), "a.json");
    ASSERT_EQ(timeline.blocks.size(), 2u);
    EXPECT_EQ(timeline.launches(), 2);
    EXPECT_EQ(timeline.steps(), 110);
    EXPECT_EQ(timeline.shown, 1u) << "the first only meets at a barrier";
    EXPECT_FALSE(timeline.cut_off);
    const timeline::Block& block = timeline.block();
    EXPECT_EQ(block.name, "load<int>, block (0,0,0)");
    EXPECT_EQ(block.first_step(), 5);
    EXPECT_EQ(block.last_step(), 110);
    std::vector<Kind> kinds;
    for (const timeline::Row& row : block.rows)
        for (const timeline::Bar& bar : row.bars) kinds.push_back(bar.kind);
    EXPECT_EQ(kinds, (std::vector<Kind>{Kind::data, Kind::space, Kind::wgmma, Kind::lanes,
                                        Kind::load, Kind::load, Kind::store, Kind::copy,
                                        Kind::product}));
    const timeline::Bar& wait = block.rows[0].bars[0];
    EXPECT_EQ(wait.what, "mbarrier +0x40, parity 0 (phase 0; init at ../b.cu:3)");
    EXPECT_EQ(wait.where, "../a.cu:7");
    EXPECT_EQ(wait.end - wait.begin, 30);
}

TEST(Timeline, DrawsABarForEachAndADiamondForEachOpening) {
    const std::string svg = picture(trace(two_blocks()));
    EXPECT_TRUE(IsWellFormed(svg));
    EXPECT_EQ(count_bars(svg), 9);
    EXPECT_EQ(count(svg, "<path [^>]*><title>mbarrier"), 1);
    EXPECT_NE(
        svg.find("waits: mbarrier +0x40, parity 0 (phase 0; init at b.cu:3), a.cu:7, "),
        std::string::npos);
    EXPECT_NE(svg.find(", steps 5 to 35<"), std::string::npos);
    EXPECT_NE(svg.find(">scheduler steps, not time; emulated on a CPU<"),
              std::string::npos);
    for (const char* label : {">warp 0<", ">TMA loads<", ">TMA stores<", ">cp.async<",
                              ">wgmma, warp 4<", ">+0x40<", ">full<"})
        EXPECT_EQ(count(svg, std::regex_replace(label, std::regex("\\+"), "\\+")), 1)
            << label;
}

TEST(Timeline, BarsThatOverlapLieInLanes) {
    const std::string svg = picture(trace(two_blocks()));
    std::vector<std::string> tops;
    const std::regex load("<rect class='hue0' x='[0-9.]+' y='([0-9.]+)'[^>]*><title>tma");
    for (std::sregex_iterator at(svg.begin(), svg.end(), load), end; at != end; ++at)
        tops.push_back((*at)[1]);
    ASSERT_EQ(tops.size(), 2u);
    EXPECT_NE(tops[0], tops[1]);
}

TEST(Timeline, WarpsThatMultiplyTogetherShareARow) {
    const std::string together = picture(warpgroup(32));
    EXPECT_EQ(count_bars(together), 3);
    EXPECT_NE(together.find("by warps 4 to 7, a.cu:7, steps 0 to 106<"),
              std::string::npos);
    EXPECT_EQ(count_bars(picture(warpgroup(50))), 12) << "one is a turn behind";
    std::string other = warpgroup(32);
    other.replace(other.find("m64n8k16"), 8, "m64n16k1");
    EXPECT_EQ(count_bars(picture(other)), 12) << "one multiplies something else";
}

TEST(Timeline, TextIsEscaped) {
    const std::string svg = picture(trace(process(1, "k<'&\\\">\\u0007, block (0,0,0)") +
                                          bar(1, 0, "wait: <&'\\u0001", 0, 4) +
                                          mark(1, 3000, "mbarrier <b>: phase </svg>", 2)),
                                    "<'&\">");
    EXPECT_TRUE(IsWellFormed(svg)) << svg;
    EXPECT_NE(svg.find("k&lt;&#39;&amp;&quot;&gt;·, block"), std::string::npos);
    EXPECT_NE(svg.find("waits: &lt;&amp;&#39;·"), std::string::npos);
}

TEST(Timeline, ManyMbarriersShareARowAndManyBarsTheLastLane) {
    std::string events = process(1, "k, block (0,0,0)");
    for (int i = 0; i < 40; ++i) {
        events += mark(1, 3000, fmt::format("mbarrier +0x{:x}: phase 1", 8 * i), i);
        events += bar(1, 1000, "bulk_load", i, 100);
    }
    const std::string svg = picture(trace(events));
    EXPECT_TRUE(IsWellFormed(svg));
    EXPECT_EQ(count_bars(svg), 40);
    EXPECT_EQ(count(svg, "<title>mbarrier"), 40);
    EXPECT_EQ(count(svg, ">mbarriers<"), 1);
}

TEST(Timeline, AnMbarrierIsFullOrEmptyOnlyBesideLoads) {
    const std::string marks = mark(2, 3000, "mbarrier +0x48: phase 1", 41);
    EXPECT_EQ(count(picture(trace(two_blocks() + marks)), ">empty<"), 1);
    EXPECT_EQ(count(picture(trace(process(2, "k, block (0,0,0)") + marks)), ">empty<"),
              0);
}

class TimelineCommand : public CliTest {
  protected:
    std::string file(const std::string& text) const { return write("t.json", text); }
    /// Refused, with these words, and nothing drawn.
    testing::AssertionResult Refuses(const std::string& text,
                                     const std::vector<std::string>& words,
                                     const std::string& flags = "") const {
        const std::string svg = path("t.svg");
        const auto result =
            IsBadInput("timeline " + file(text) + " --svg " + svg + flags, words);
        if (result && std::filesystem::exists(svg))
            return testing::AssertionFailure() << "a picture was written";
        return result;
    }
};

TEST_F(TimelineCommand, SumsUpAndDraws) {
    const std::string svg = path("t.svg"), source = file(trace(two_blocks()));
    const Output output = moe("timeline " + source + " --svg " + svg);
    EXPECT_EQ(output.code, kExitOk) << output.err;
    for (const char* words :
         {"2 launches, 2 blocks, 110 steps", "Block  2: load<int>, block (0,0,0)",
          "not time; emulated on a CPU", "\nwarp 0           4            50\n",
          "\nTMA loads        2                              29\n", "\nrow 1001 ",
          "\nwrote "})
        EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
    EXPECT_EQ(read(svg), picture(trace(two_blocks()), "Who waits for whom"));
    EXPECT_TRUE(has(moe("timeline " + source + " --block 1"), "Block  1: first_kernel"));
}

TEST_F(TimelineCommand, RefusesWhatIsNoTrace) {
    const std::string named = process(1, "k, block (0,0,0)");
    EXPECT_TRUE(Refuses("so it goes", {"t.json = ", "must be JSON"}));
    EXPECT_TRUE(Refuses("[1]", {"traceEvents", "CUDA_ON_CPU_TRACE"}));
    EXPECT_TRUE(Refuses(R"({"traceEvents":7})", {"traceEvents"}));
    EXPECT_TRUE(Refuses(trace("7"), {"traceEvents[0] = 7: must be an object"}));
    EXPECT_TRUE(Refuses(trace(""), {"0 blocks without an event"}));
    EXPECT_TRUE(Refuses(trace(named), {"1 block without an event"}));
    EXPECT_TRUE(Refuses(trace(R"({"ph":"Q","name":""})"), {"traceEvents[0].ph = \"Q\""}));
    EXPECT_TRUE(Refuses(trace(named + R"(,{"ph":"X","pid":1,"tid":0,"name":"w","ts":1})"),
                        {"traceEvents[1].dur = missing"}));
    EXPECT_TRUE(Refuses(trace(named + bar(1, 0, "w", 1, -3)),
                        {"traceEvents[1].dur = -3: must be a whole number from 1 to "}));
    EXPECT_TRUE(Refuses(trace(named + bar(1, 0, "w", -1, 3)), {".ts = -1"}));
    EXPECT_TRUE(Refuses(trace(named + bar(1, 77, "w", 1, 3)), {".tid = 77"}));
    EXPECT_TRUE(Refuses(trace(named + bar(1, 3000, "w", 1, 3)), {".tid = 3000"}));
    EXPECT_TRUE(Refuses(trace(named + bar(2, 0, "w", 1, 3)), {".pid = 2"}));
    EXPECT_TRUE(
        Refuses(trace(named + "," + named), {".pid = 1: must get its name once"}));
    for (const char* huge :
         {"1e300", "18446744073709551615", "9007199254740993", "1.5"}) {
        std::string events = bar(1, 0, "w", 12345, 3);
        events.replace(events.find("12345"), 5, huge);
        EXPECT_TRUE(Refuses(trace(named + events), {".ts = ", "whole number"})) << huge;
    }
    EXPECT_TRUE(IsBadInput("timeline " + path("none.json"), {"trace = ", "readable"}));
    EXPECT_TRUE(IsBadInput("timeline", {"trace"}));
}

TEST_F(TimelineCommand, RefusesABlockThatIsNotThere) {
    const std::string three = two_blocks() + "," + process(3, "idle, block (0,0,0)");
    for (const char* number : {"0", "4", "-1", "9223372036854775807"})
        EXPECT_TRUE(Refuses(
            trace(three), {std::string("--block = ") + number + ": must be from 1 to 3"},
            std::string(" --block ") + number));
    EXPECT_TRUE(Refuses(trace(three), {"--block = 3", "block 2 has some"}, " --block 3"));
    EXPECT_TRUE(Refuses(trace(three), {"--block = two"}, " --block two"));
}

TEST_F(TimelineCommand, SaysThatATraceWasCutOff) {
    const std::string cut =
        trace(two_blocks() + R"(,{"name":"cut off: too many events","ph":"i","s":"g",)"
                             R"("pid":0,"tid":0,"ts":0})");
    EXPECT_TRUE(has(moe("timeline " + file(cut)), "cut off: too many events"));
    EXPECT_NE(picture(cut).find("the trace was cut off"), std::string::npos);
}

}  // namespace
}  // namespace moe::test
