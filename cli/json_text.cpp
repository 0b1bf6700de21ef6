#include "cli/json_text.h"

#include <set>
#include <vector>

#include "core/error.h"

namespace moe {
namespace {

constexpr int kMaxDepth = 32;

}  // namespace

nlohmann::json parse_json(const std::string& field, const std::string& text) {
    using nlohmann::json;
    std::vector<std::set<std::string>> names;  // of each object that is open
    const auto watch = [&](int depth, json::parse_event_t event, json& value) {
        // The parser does not recurse, but whoever walks or frees its result does.
        if (depth > kMaxDepth)
            reject(field, "deeply nested JSON",
                   fmt::format("must nest at most {} levels", kMaxDepth));
        if (event == json::parse_event_t::object_start) names.emplace_back();
        if (event == json::parse_event_t::object_end) names.pop_back();
        if (event == json::parse_event_t::key &&
            !names.back().insert(value.get<std::string>()).second)
            reject(field, value.get<std::string>(), "must stand only once");
        return true;
    };
    json value = json::parse(text, watch, /*allow_exceptions=*/false);
    if (value.is_discarded())
        reject(
            field,
            json(text.substr(0, 60)).dump(-1, ' ', true, json::error_handler_t::replace),
            "must be JSON");
    return value;
}

}  // namespace moe
