#include "tests/observe/support.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <fstream>
#include <set>

namespace moe::test {

namespace {

/// "/global_test.cu"
std::string name_of(const std::string& path) {
    return path.substr(path.rfind('/'));
}

}  // namespace

int marked_line(const std::string& file, const std::string& mark) {
    std::ifstream source(MOE_SOURCE_DIR + ("/tests/observe" + name_of(file)));
    EXPECT_TRUE(source.good()) << file;
    int found = 0, number = 0;
    for (std::string line; std::getline(source, line);) {
        ++number;
        if (!line.ends_with("// " + mark)) continue;
        EXPECT_EQ(found, 0) << mark << " marks two lines of " << file;
        found = number;
    }
    EXPECT_NE(found, 0) << mark << " marks no line of " << file;
    return found;
}

std::string findings_of(const Report& report) {
    std::set<std::string> all;
    for (const Finding& finding : report.findings) {
        const auto [first, second] = std::minmax(finding.line, finding.other_line);
        if (finding.kind == Finding::Kind::race)
            all.insert("race of " + std::to_string(first) + " and " +
                       std::to_string(second));
        else
            all.insert((finding.kind == Finding::Kind::uninitialised ? "unwritten at "
                                                                     : "outside at ") +
                       std::to_string(finding.line));
    }
    return fmt::format("{}", fmt::join(all, "; "));
}

std::string race_in(const std::string& file, const std::string& one,
                    const std::string& other) {
    const auto [low, high] =
        std::minmax({marked_line(file, one), marked_line(file, other)});
    return fmt::format("race of {} and {}", low, high);
}

Counters Seen::at(const std::string& mark) const {
    const int line = marked_line(file, mark);
    for (const auto& kernel : report.kernels)
        for (const auto& each : kernel.lines)
            if (each.line == line && each.file.ends_with(name_of(file)))
                return each.counters;
    return {};
}

}  // namespace moe::test
