#include "cli/markers.h"

#include <fmt/ranges.h>

#include <ranges>
#include <set>

#include "core/error.h"

namespace moe {
std::string with_regions(const std::string& page, const std::string& text,
                         const Regions& regions, const std::string& command) {
    const std::string opens = fmt::format("<!-- moe {}: ", command), ends = " -->";
    const std::string closing = fmt::format("<!-- /moe {} -->", command);
    const auto opening = [&](const std::string& name) { return opens + name + ends; };
    std::string result;
    std::set<std::string> seen;
    std::size_t at = 0;
    while (true) {
        const std::size_t open = text.find(opens, at), close = text.find(closing, at);
        if (close < open) reject(page, closing, "closes a region that was not opened");
        if (open == std::string::npos) break;

        const std::size_t from = open + opens.size(), end = text.find(ends, from);
        const std::string name = text.substr(from, std::min(end, from + 60) - from);
        if (end == std::string::npos)
            reject(page, opening(name), "must end on its own line");
        if (!regions.contains(name))
            reject(page, opening(name),
                   fmt::format("regions of this page are {}",
                               fmt::join(std::views::keys(regions), ", ")));
        if (!seen.insert(name).second)
            reject(page, opening(name), "must stand only once");
        const std::size_t next = text.find(opens, from);
        if (close == std::string::npos || next < close)
            reject(page, opening(name), fmt::format("must be closed by {}", closing));

        // Blank lines, so that what stands between is markdown of its own
        const std::string& markdown = regions.at(name);
        result += text.substr(at, open - at) + opening(name) + "\n\n" +
                  markdown.substr(0, markdown.find_last_not_of('\n') + 1) + "\n\n" +
                  closing;
        at = close + closing.size();
    }
    for (const auto& [name, markdown] : regions)
        if (!seen.contains(name))
            reject(page, opening(name), "must stand in the page; it is missing");
    return result + text.substr(at);
}

}  // namespace moe
