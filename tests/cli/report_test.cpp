// The report's page as text: what is off has no numbers, and no line crosses a label.

#include <regex>

#include "tests/cli/support.h"

namespace moe::test {
namespace {

class ReportTest : public CliTest {
  protected:
    /// The page of a small comparison with these flags.
    std::string page(const std::string& flags) {
        std::string words;  // all letters, so that many experts get some
        for (int i = 0; i < 240; ++i) words += char('a' + i * i % 23 + i % 4);
        const std::string text = write("text.txt", words);
        const Output output =
            moe("compare --repeats 1 --golden none --tier "
                "reference_cpu --text " +
                text + " --report " + path("report") + " " + flags);
        EXPECT_EQ(output.code, kExitOk) << output.err;
        return read(path("report/index.html"));
    }
};

std::vector<std::smatch> matches(const std::string& text, const std::string& pattern) {
    static std::vector<std::regex> kept;
    kept.emplace_back(pattern);
    return {std::sregex_iterator(text.begin(), text.end(), kept.back()), {}};
}

/// The picture with this name.
std::string picture(const std::string& html, const std::string& name) {
    const std::size_t at = html.find("aria-label='" + name + "'");
    return html.substr(at, html.find("</svg>", at) - at);
}

/// Level lines of a picture that run through the box of a label with these words, from
/// the tops of its letters to where a p ends.
int crossings(const std::string& svg, const std::string& words) {
    int count = 0;
    const auto lines = matches(svg,
                               "<line class='(?:grid|even)' x1='([0-9.]+)' "
                               "y1='([0-9.]+)' x2='([0-9.]+)' y2='([0-9.]+)'");
    for (const auto& label : matches(svg,
                                     "<text class='' x='([0-9.]+)' y='([0-9.]+)' "
                                     "text-anchor='(start|middle)'>(" +
                                         words + ")</text>")) {
        const double width = 7.2 * double(label[4].length()), y = std::stod(label[2]);
        const double left = std::stod(label[1]) - (label[3] == "middle" ? width / 2 : 0);
        for (const auto& line : lines) {
            const double at = std::stod(line[2]);
            if (line[2] == line[4] && at > y - 9.0 && at < y + 4.2 &&
                std::stod(line[1]) < left + width && std::stod(line[3]) > left)
                ++count;
        }
    }
    return count;
}

TEST_F(ReportTest, NoLineCrossesANumberOnABar) {
    // Many experts near the even share
    const std::string svg =
        picture(page("--scale 256 --seq-length 50 --num-experts 16"), "rows per expert");
    EXPECT_GE(matches(svg, "text-anchor='middle'>[0-9]+</text>").size(), 32u);
    EXPECT_EQ(crossings(svg, "[0-9]+"), 0) << svg;
}

TEST_F(ReportTest, NoLineCrossesAnExpertsName) {
    const std::string svg =
        picture(page("--preset deepseek_v3 --scale 256 --num-experts 256 "
                     "--moe-router-num-groups 8 --seq-length 50 --hidden-size 64"),
                "tokens to rows");
    EXPECT_GE(matches(svg, ">expert [0-9]+</text>").size(), 10u);
    EXPECT_EQ(crossings(svg, "expert [0-9]+"), 0) << svg;
}

TEST_F(ReportTest, AStepThatIsOffHasNoNumbers) {
    const std::string html = page("--scale 256 --seq-length 50");
    const auto rows = matches(html, "<tr class='off'>.*</tr>");
    EXPECT_EQ(rows.size(), 4u);  // shared experts and dropping, and back
    for (const auto& row : rows) {
        EXPECT_EQ(matches(row.str(), "<td class='[^']*'>[^<]").size(), 0u) << row.str();
        EXPECT_EQ(row.str().find("share"), row.str().find("shared")) << row.str();
    }
    EXPECT_EQ(html.find("<title>4 token dropping: "), std::string::npos);
    EXPECT_NE(html.find("<title>3 routing: "), std::string::npos);
}

}  // namespace
}  // namespace moe::test
