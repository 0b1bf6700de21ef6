// MoE layers of well-known models, as their published configurations give them.

#include <fmt/ranges.h>

#include "core/config.h"
#include "core/error.h"
#include "core/known_names.h"

namespace moe {
namespace {

/// What all presets share: SwiGLU without biases behind the all-to-all dispatcher.
MoEConfig swiglu_layer(std::int64_t hidden, std::int64_t experts, std::int64_t topk,
                       std::int64_t ffn) {
    MoEConfig config;
    config.hidden_size = hidden;
    config.num_moe_experts = experts;
    config.moe_router_topk = topk;
    config.moe_ffn_hidden_size = ffn;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.moe_token_dispatcher_type = "alltoall";
    config.moe_permute_fusion = config.moe_router_fusion = true;
    config.moe_grouped_gemm = true;
    return config;
}

MoEConfig mixtral_8x7b() {
    MoEConfig config = swiglu_layer(4096, 8, 2, 14336);
    config.moe_aux_loss_coeff = {0.02};
    return config;
}

MoEConfig qwen3_30b_a3b() {
    MoEConfig config = swiglu_layer(2048, 128, 8, 768);
    config.moe_aux_loss_coeff = {0.001};
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig deepseek_v3() {
    MoEConfig config = swiglu_layer(7168, 256, 8, 2048);
    config.moe_shared_expert_intermediate_size = 2048;
    config.moe_router_score_function = "sigmoid";
    config.moe_router_num_groups = 8;
    config.moe_router_group_topk = 4;
    config.moe_router_topk_scaling_factor = 2.5;
    config.moe_router_enable_expert_bias = true;
    config.moe_router_load_balancing_type = {"seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.0001};
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig olmoe() {
    MoEConfig config = swiglu_layer(2048, 64, 8, 1024);
    config.moe_router_pre_softmax = true;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_z_loss_coeff = 0.001;
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig gpt_oss_20b() {
    MoEConfig config = swiglu_layer(2880, 32, 4, 2880);
    config.activation_func = "quick_gelu";
    config.glu_linear_offset = 1.0;
    config.activation_func_clamp_value = 7.0;
    config.add_bias_linear = true;
    config.moe_router_load_balancing_type = {"none"};
    config.moe_router_dtype = "fp32";
    return config;
}

struct Preset {
    std::string name;
    MoEConfig (*make)();
};

const std::vector<Preset> kPresets = {{"mixtral_8x7b", mixtral_8x7b},
                                      {"qwen3_30b_a3b", qwen3_30b_a3b},
                                      {"deepseek_v3", deepseek_v3},
                                      {"olmoe", olmoe},
                                      {"gpt_oss_20b", gpt_oss_20b}};

std::int64_t shrink(const std::string& width, std::int64_t size, std::int64_t scale) {
    if (size / scale < 1)
        reject("scale", scale, fmt::format("must be at most {} = {}", width, size));
    return size / scale;
}

}  // namespace

const std::vector<std::string>& preset_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> list;
        for (const Preset& preset : kPresets) list.push_back(preset.name);
        return list;
    }();
    return names;
}

void scale_widths(MoEConfig& config, std::int64_t scale) {
    if (scale < 1) reject("scale", scale, "must be at least 1");
    config.hidden_size = shrink("hidden_size", config.hidden_size, scale);
    const auto shrink_given = [&](const char* name, std::optional<std::int64_t>& width) {
        if (width.value_or(0) > 0) width = shrink(name, *width, scale);
    };
    shrink_given("ffn_hidden_size", config.ffn_hidden_size);
    shrink_given("moe_ffn_hidden_size", config.moe_ffn_hidden_size);
    shrink_given("moe_shared_expert_intermediate_size",
                 config.moe_shared_expert_intermediate_size);
}

MoEConfig preset(const std::string& name, std::int64_t scale) {
    for (const Preset& candidate : kPresets) {
        if (candidate.name != name) continue;
        MoEConfig config = candidate.make();
        scale_widths(config, scale);
        return config;
    }
    reject_unknown("preset", name, preset_names(), "known are");
}

}  // namespace moe
