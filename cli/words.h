/// @file
/// Numbers in words, as the terminal and the report both say them.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>

namespace moe {

/// "1.5 MB", with three digits.
inline std::string bytes_in_words(std::int64_t bytes) {
    const char* units[] = {"B", "kB", "MB", "GB", "TB"};
    double value = double(bytes);
    int unit = 0;
    for (; value >= 999.5 && unit < 4; ++unit) value /= 1000.0;
    const int digits = unit == 0 || value >= 99.5 ? 0 : value >= 9.95 ? 1 : 2;
    return fmt::format("{:.{}f} {}", value, digits, units[unit]);
}

/// 16777216 as "16,777,216".
inline std::string grouped(std::int64_t number) {
    std::string digits = std::to_string(number);
    for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, ",");
    return digits;
}

inline std::string percent(double share) {
    return fmt::format("{:.1f} %", 100.0 * share);
}

}  // namespace moe
