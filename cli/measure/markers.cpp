#include "cli/measure/markers.h"

#include <fmt/ranges.h>

#include <ranges>
#include <set>
#include <string_view>

#include "core/error.h"

namespace moe {
namespace {

constexpr std::string_view kOpen = "<!-- moe results: ", kOpenEnd = " -->";
constexpr std::string_view kClose = "<!-- /moe results -->";

std::string opening(const std::string& name) {
    return fmt::format("{}{}{}", kOpen, name, kOpenEnd);
}

}  // namespace

std::string with_regions(const std::string& page, const std::string& text,
                         const Regions& regions) {
    std::string result;
    std::set<std::string> seen;
    std::size_t at = 0;
    while (true) {
        const std::size_t open = text.find(kOpen, at), close = text.find(kClose, at);
        if (close < open)
            reject(page, std::string(kClose), "closes a region that was not opened");
        if (open == std::string::npos) break;

        const std::size_t from = open + kOpen.size(), end = text.find(kOpenEnd, from);
        const std::string name = text.substr(from, std::min(end, from + 60) - from);
        if (end == std::string::npos)
            reject(page, opening(name), "must end on its own line");
        if (!regions.contains(name))
            reject(page, opening(name),
                   fmt::format("regions of this page are {}",
                               fmt::join(std::views::keys(regions), ", ")));
        if (!seen.insert(name).second)
            reject(page, opening(name), "must stand only once");
        const std::size_t next = text.find(kOpen, from);
        if (close == std::string::npos || next < close)
            reject(page, opening(name), fmt::format("must be closed by {}", kClose));

        // Blank lines, so that what stands between is markdown of its own
        const std::string& markdown = regions.at(name);
        result += text.substr(at, open - at) + opening(name) + "\n\n" +
                  markdown.substr(0, markdown.find_last_not_of('\n') + 1) + "\n\n" +
                  std::string(kClose);
        at = close + kClose.size();
    }
    for (const auto& [name, markdown] : regions)
        if (!seen.contains(name))
            reject(page, opening(name), "must stand in the page; it is missing");
    return result + text.substr(at);
}

}  // namespace moe
