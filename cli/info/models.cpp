#include "cli/info/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>

#include "cli/golden/golden.h"
#include "cli/info/captured.h"
#include "cli/places.h"
#include "cli/terminal.h"
#include "core/presets.h"

namespace moe {
namespace {

/// Sizes, and what says nothing of a model.
const std::set<std::string> kNoSwitches = {"hidden_size",
                                           "num_moe_experts",
                                           "ffn_hidden_size",
                                           "moe_ffn_hidden_size",
                                           "moe_router_dtype",
                                           "moe_token_dispatcher_type",
                                           "moe_router_load_balancing_type",
                                           "expert_tensor_parallel_size"};

/// How a config differs from gated silu without biases under a softmax after top-k:
/// "`moe_router_score_function` sigmoid, …". Numbers are the golden case's, not the
/// model's, and left out. @param ours  the field that has a mark
std::string switches(const MoEConfig& config, const std::string& ours) {
    MoEConfig plain;
    plain.gated_linear_unit = true;
    plain.activation_func = "silu";
    plain.add_bias_linear = false;
    const auto given = config_to_json(config), usual = config_to_json(plain);
    std::string text;
    for (const auto& [name, value] : given.items()) {
        if (kNoSwitches.contains(name) || value == usual[name]) continue;
        if (name == "moe_router_topk" && value != 1) continue;
        text += (text.empty() ? "`" : ", `") + name + "`";
        if (value.is_string()) text += " " + value.get<std::string>();
        if (name == ours) text += "†";
        if (value == false || name == "moe_router_topk") text += " " + value.dump();
    }
    return text.empty() ? "none" : text;
}

/// "transformers 5.24.0 AriaTextMoELayer, CPU, fp64": the class.
std::string block_of(const GoldenCase& golden) {
    const std::string prefix = "transformers ";
    const std::size_t name = golden.source.find(' ', prefix.size()) + 1;
    return golden.source.substr(name, golden.source.find(',') - name);
}

GoldenCase golden_of(const ModelRow& row) {
    return load_golden(golden_folder() + "/" + row.golden + ".safetensors");
}

std::string or_dash(const std::string& text) {
    return text.empty() ? "-" : text;
}

}  // namespace

Regions model_regions() {
    std::string verified =
        "| models | its block | presets | fields that it sets | golden case |\n"
        "|---|---|---|---|---|\n";
    std::string read = "| models | code | as |\n|---|---|---|\n";
    std::string missing = "| models | code | what the layer lacks |\n|---|---|---|\n";
    for (const ModelRow& row : model_rows()) {
        if (!row.golden.empty()) {
            const GoldenCase golden = golden_of(row);
            verified += fmt::format("| {} | `{}` | {} | {} | `{}` |\n", row.family,
                                    block_of(golden), or_dash(row.presets),
                                    switches(golden.config, row.ours), row.golden);
        } else if (!row.as.empty()) {
            read += fmt::format("| {} | `{}` | {} |\n", row.family, row.code, row.as);
        }
        if (!row.missing.empty())
            missing +=
                fmt::format("| {} | `{}` | {} |\n", row.family, row.code, row.missing);
    }
    std::string presets = "| preset | read from |\n|---|---|\n";
    for (const std::string& name : preset_names())
        presets += fmt::format("| `{}` | {} |\n", name, preset_source(name));
    return {{"verified", verified},         {"read", read},
            {"missing", missing},           {"presets", presets},
            {"captured", captured_table()}, {"refused", refused_table()}};
}

void print_models() {
    for (const ModelRow& row : model_rows()) {
        std::string text;
        if (!row.golden.empty())
            text = "golden case " + row.golden;
        else if (!row.as.empty())
            text = "its code computes what that of " + row.as + " does";
        if (!row.presets.empty()) text += "; preset " + row.presets;
        if (!row.ours.empty()) text += "; by " + row.ours + ", which is not Megatron's";
        if (!row.missing.empty()) text += (text.empty() ? "" : "; ✗ ") + row.missing;
        const char* mark = !row.golden.empty() ? "✓" : row.as.empty() ? "✗" : "~";
        fmt::print("{}\n",
                   wrapped(fmt::format("{} {:<31} {}", mark, row.family, text), 34));
    }
    fmt::print("✓ met its own code's values; ~ read; ✗ what the layer lacks\n");
}

}  // namespace moe
