#include "tests/observe/support.h"

#include <fstream>

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

Counters Seen::at(const std::string& mark) const {
    const int line = marked_line(file, mark);
    for (const auto& kernel : report.kernels)
        for (const auto& each : kernel.lines)
            if (each.line == line && each.file.ends_with(name_of(file)))
                return each.counters;
    return {};
}

}  // namespace moe::test
