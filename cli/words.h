/// @file
/// Numbers, and a layer, in words, as the terminal and the report both say them.
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <ctime>
#include <string>
#include <vector>

#include "core/config.h"
#include "core/recompute.h"

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
    for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, ',');
    return digits;
}

inline std::string percent(double share) {
    return fmt::format("{:.1f} %", 100.0 * share);
}

/// The present time in UTC as strftime() writes it: "2026-11-27T22:04:05Z".
inline std::string utc_now(const char* form = "%Y-%m-%dT%H:%M:%SZ") {
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    gmtime_r(&now, &parts);
    char text[64] = "";
    std::strftime(text, sizeof text, form, &parts);
    return text;
}

/// "H=256 E=8 K=2 F=896, gated silu, softmax"; with moe_latent_size "H=256 ℓ=64 E=8 …";
/// at its end what runs again in backward.
inline std::string layer_in_words(const MoEConfig& config) {
    const std::string again = recomputed_in_words(config);
    return fmt::format(
        "H={}{} E={} K={} F={}{}, {}{}, {}{}{}", config.hidden_size,
        config.moe_latent_size ? fmt::format(" ℓ={}", *config.moe_latent_size) : "",
        config.num_experts(), config.moe_router_topk, config.ffn(),
        config.shared_ffn() > 0 ? fmt::format(" Fs={}", config.shared_ffn()) : "",
        config.gated_linear_unit ? "gated " : "", config.activation_func,
        config.is_sinkhorn() ? "sinkhorn" : config.moe_router_score_function,
        config.is_quantile_balancing() ? " with quantile balancing" : "",
        again.empty() ? "" : "; " + again);
}

/// "1500 of 2048 kept, 548 dropped: an expert takes at most 256", with a capacity.
/// @param probs    (T, E) after dropping
/// @param at_once  tokens that fill up one capacity together
inline std::string kept_rows_in_words(const MoEConfig& config,
                                      const std::vector<double>& probs,
                                      std::int64_t at_once) {
    const std::int64_t rows =
        std::int64_t(probs.size()) / config.num_experts() * config.moe_router_topk;
    // A row that only pads is in the map, and has no weight
    const std::int64_t kept =
        std::count_if(probs.begin(), probs.end(), [](double prob) { return prob > 0.0; });
    return fmt::format("{} of {} kept, {} dropped: an expert takes at most {}", kept,
                       rows, rows - kept, get_capacity(config, at_once));
}

}  // namespace moe
