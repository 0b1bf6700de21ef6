/// @file
/// What reading and writing safetensors share: the element types of the format, and the
/// words of its errors. Private to safetensors.cpp and safetensors_write.cpp.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "core/dtype.h"
#include "core/error.h"

namespace moe::safetensors {

using nlohmann::json;
using Strings = std::map<std::string, std::string>;

static_assert(std::endian::native == std::endian::little, "bytes are copied as they are");

inline constexpr std::int64_t kLengthBytes = 8;
inline constexpr std::int64_t kMaxHeaderBytes = 100'000'000;
inline const std::string kMetadata = "__metadata__";

/// Those that a Tensor can hold. U8 comes before BOOL: it is what u8 is written as.
inline const std::vector<std::pair<std::string, DType>> kReadable = {
    {"F64", DType::f64}, {"F32", DType::f32}, {"BF16", DType::bf16}, {"I64", DType::i64},
    {"I32", DType::i32}, {"U8", DType::u8},   {"BOOL", DType::u8}};

/// JSON as one line of plain ASCII, cut where it gets long: safe to print, whatever the
/// file holds. Strings come in quotes.
inline std::string shown(const json& value, std::size_t max_bytes = 80) {
    const std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
    return text.size() <= max_bytes ? text : text.substr(0, max_bytes) + "...";
}

/// The path as errors name it: on one line.
inline std::string shown_path(std::string path) {
    const auto is_control = [](unsigned char c) { return c < ' ' || c == 0x7f; };
    std::replace_if(path.begin(), path.end(), is_control, '?');
    return path;
}

/// `where` and something in it: "a.safetensors: header length".
inline std::string inside(const std::string& where, const std::string& what) {
    return fmt::format("{}: {}", where, what);
}

inline std::string inside_entry(const std::string& where, const std::string& name) {
    return inside(where, name == kMetadata ? name : "tensor " + shown(name));
}

/// Throws InputError with the reason the operating system gave.
inline void require_success(bool success, const std::string& path, const std::string& allowed) {
    if (!success)
        reject(shown_path(path), std::generic_category().message(errno), allowed);
}

/// Pipes, devices and folders are neither mapped nor replaced; opening a pipe would wait.
inline void reject_other_than_file(const std::string& path) {
    std::error_code ignored;
    const std::filesystem::file_status status = std::filesystem::status(path, ignored);
    if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
        reject(shown_path(path), "not a regular file", "must be a safetensors file");
}

}  // namespace moe::safetensors
