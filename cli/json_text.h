/// @file
/// JSON that users hand over, in which no name stands twice.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace moe {

/// JSON from text. InputError naming `field` when it is not JSON, or when an object has
/// two entries of one name: a reader would take one of them and say nothing.
nlohmann::json parse_json(const std::string& field, const std::string& text);

}  // namespace moe
