/// @file
/// Tables of configs that must be taken, and of those that must not.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/config.h"
#include "tests/support.h"

namespace moe::test {

/// A config that is fine, with the fields of a JSON text in place of its own; finalized.
inline MoEConfig changed(const std::string& changes) {
    auto fields = nlohmann::json::parse(R"({"hidden_size": 16, "num_moe_experts": 8,
        "moe_ffn_hidden_size": 12, "gated_linear_unit": true, "activation_func": "silu",
        "add_bias_linear": false, "moe_token_dispatcher_type": "alltoall"})");
    fields.update(nlohmann::json::parse(changes));
    MoEConfig config = config_from_json(fields, "");
    config.finalize();
    return config;
}

/// What must be rejected, how the message begins, and what else it must say.
struct Rejection {
    std::string changes, beginning, allowed;
};

inline void expect_rejected(const std::vector<Rejection>& table) {
    for (const Rejection& row : table) {
        EXPECT_TRUE(Rejects([&] { changed(row.changes); }, {row.allowed})) << row.changes;
        try {
            changed(row.changes);
        } catch (const InputError& error) {
            EXPECT_TRUE(std::string(error.what()).starts_with(row.beginning))
                << error.what();
        }
    }
}

inline void expect_accepted(const std::vector<std::string>& table) {
    for (const std::string& changes : table) EXPECT_NO_THROW(changed(changes)) << changes;
}

}  // namespace moe::test
