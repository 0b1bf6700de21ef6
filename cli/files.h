/// @file
/// Files: reading what users hand over, whole, and JSON in which no name stands twice;
/// and writing, whole or not at all.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace moe {

/// The bytes of a file. InputError naming `field` when it is missing, unreadable or a
/// folder.
std::string read_file(const std::string& field, const std::string& path);

/// JSON from text. InputError naming `field` when it is not JSON, or when an object has
/// two entries of one name: a reader would take one of them and say nothing.
nlohmann::json parse_json(const std::string& field, const std::string& text);

/// Writes a file whole or not at all. Why it could not, or "".
std::string write_whole(const std::string& path, const std::string& content);

/// The same. InputError naming `field` when it cannot be written.
void write_file(const std::string& field, const std::string& path,
                const std::string& content);

}  // namespace moe
