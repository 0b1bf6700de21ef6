// MoE layers of well-known models, as the public files named beside them give them.

#include "core/presets.h"

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

/// Neither model's router has a dtype of its own: it has the layer's.
MoEConfig mixtral_8x7b() {
    MoEConfig config = swiglu_layer(4096, 8, 2, 14336);
    config.moe_aux_loss_coeff = {0.01};
    return config;
}

MoEConfig mixtral_8x22b() {
    MoEConfig config = swiglu_layer(6144, 8, 2, 16384);
    config.moe_aux_loss_coeff = {0.01};
    return config;
}

MoEConfig qwen3(std::int64_t hidden, std::int64_t ffn) {
    MoEConfig config = swiglu_layer(hidden, 128, 8, ffn);
    config.moe_aux_loss_coeff = {0.001};
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig qwen3_30b_a3b() {
    return qwen3(2048, 768);
}

MoEConfig qwen3_235b_a22b() {
    return qwen3(4096, 1536);
}

MoEConfig qwen3_next_80b() {
    MoEConfig config = swiglu_layer(2048, 512, 10, 512);
    config.moe_shared_expert_intermediate_size = 512;
    config.moe_shared_expert_gate = true;
    config.moe_router_load_balancing_type = {"global_aux_loss"};
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

/// Layers 3 to 42, counted from 0. Those before choose by the token's id: there
/// moe_router_hash_vocab_size is 129280, and the expert bias is off.
MoEConfig deepseek_v4_flash() {
    MoEConfig config = swiglu_layer(4096, 256, 6, 2048);
    config.moe_shared_expert_intermediate_size = 2048;
    config.activation_func_clamp_value = 10.0;
    config.moe_router_score_function = "sqrtsoftplus";
    config.moe_router_topk_scaling_factor = 1.5;
    config.moe_router_enable_expert_bias = true;
    config.moe_router_load_balancing_type = {"none"};
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig glm_4_5() {
    MoEConfig config = swiglu_layer(5120, 160, 8, 1536);
    config.moe_shared_expert_intermediate_size = 1536;
    config.moe_router_score_function = "sigmoid";
    config.moe_router_topk_scaling_factor = 2.5;
    config.moe_router_enable_expert_bias = true;
    config.moe_router_load_balancing_type = {"seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.001};
    config.moe_router_dtype = "fp32";
    return config;
}

/// Hugging Face divides the experts' counts by the T tokens, Megatron by their T K
/// choices: the same coefficient weighs K times more there. (It also takes one loss over
/// the tokens of all layers; Megatron adds up a loss of each.) Source:
/// modeling_mixtral.py, load_balancing_loss_func.
std::vector<double> hugging_face_coeff(const MoEConfig& config, double coeff) {
    return {double(config.moe_router_topk) * coeff};
}

/// Hugging Face's loss has a softmax of the logits where Megatron's has the normalised
/// sigmoids that route: only the factor K between the coefficients is accounted for. No
/// source names the router's dtype; fp32 is what Megatron advises from 32 experts on.
MoEConfig minimax_m2() {
    MoEConfig config = swiglu_layer(3072, 256, 8, 1536);
    config.moe_router_score_function = "sigmoid";
    config.moe_router_enable_expert_bias = true;
    config.moe_aux_loss_coeff = hugging_face_coeff(config, 0.001);
    config.moe_router_dtype = "fp32";
    return config;
}

/// Experts of squared ReLU, without a gate, in a latent space.
MoEConfig nemotron_3_super() {
    MoEConfig config = swiglu_layer(4096, 512, 22, 2688);
    config.gated_linear_unit = false;
    config.activation_func = "squared_relu";
    config.moe_latent_size = 1024;
    config.moe_shared_expert_intermediate_size = 5376;
    config.moe_router_score_function = "sigmoid";
    config.moe_router_topk_scaling_factor = 5.0;
    config.moe_router_enable_expert_bias = true;
    config.moe_router_load_balancing_type = {"seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.0001};
    config.moe_router_dtype = "fp32";
    return config;
}

/// It was trained with megablocks, whose loss is over T K choices as Megatron's is, and
/// over the layers: no factor K.
MoEConfig olmoe() {
    MoEConfig config = swiglu_layer(2048, 64, 8, 1024);
    config.moe_router_pre_softmax = true;
    config.moe_aux_loss_coeff = {0.01};
    config.moe_z_loss_coeff = 0.001;
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig gpt_oss(std::int64_t experts) {
    MoEConfig config = swiglu_layer(2880, experts, 4, 2880);
    config.activation_func = "quick_gelu";
    config.glu_linear_offset = 1.0;
    config.activation_func_clamp_value = 7.0;
    config.add_bias_linear = true;
    config.moe_router_load_balancing_type = {"none"};
    config.moe_router_dtype = "fp32";
    return config;
}

MoEConfig gpt_oss_20b() {
    return gpt_oss(32);
}

MoEConfig gpt_oss_120b() {
    return gpt_oss(128);
}

MoEConfig llama4_scout() {
    MoEConfig config = swiglu_layer(5120, 16, 1, 8192);
    config.moe_shared_expert_intermediate_size = 8192;
    config.moe_router_score_function = "sigmoid";
    config.moe_apply_probs_on_input = true;
    config.moe_router_load_balancing_type = {"seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.001};
    config.moe_router_dtype = "fp32";
    return config;
}

struct Preset {
    std::string name;
    std::string source;
    MoEConfig (*make)();
};

const std::vector<Preset> kPresets = {
    {"mixtral_8x7b",
     "NVIDIA/Megatron-LM: examples/mixtral/train_mixtral_8x7b_distributed.sh",
     mixtral_8x7b},
    {"mixtral_8x22b",
     "NVIDIA/Megatron-LM: tests/functional_tests/test_cases/mixtral/"
     "mixtral_8x22b_tp2pp8ep8vpp1_release/model_config.yaml",
     mixtral_8x22b},
    {"qwen3_30b_a3b",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "Qwen/Qwen3-30B-A3B.sh",
     qwen3_30b_a3b},
    {"qwen3_235b_a22b",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "Qwen/Qwen3-235B-A22B.sh",
     qwen3_235b_a22b},
    {"qwen3_next_80b",
     "transformers: configuration_qwen3_next.py; NVIDIA-NeMo/Megatron-Bridge: "
     "src/megatron/bridge/models/qwen/qwen3_next_bridge.py (loss, router dtype)",
     qwen3_next_80b},
    {"deepseek_v3",
     "transformers: configuration_deepseek_v3.py; NVIDIA/Megatron-LM: "
     "examples/post_training/modelopt/conf/deepseek-ai/DeepSeek-R1.sh",
     deepseek_v3},
    {"deepseek_v4_flash",
     "transformers: configuration_deepseek_v4.py; NVIDIA-NeMo/Megatron-Bridge: "
     "src/megatron/bridge/models/deepseek/deepseek_v4_bridge.py (loss, router dtype)",
     deepseek_v4_flash},
    {"glm_4_5",
     "NVIDIA-NeMo/Megatron-Bridge: tests/unit_tests/models/glm/test_glm45_bridge.py, "
     "src/megatron/bridge/models/glm/glm45_bridge.py (loss, router dtype)",
     glm_4_5},
    {"minimax_m2", "transformers: configuration_minimax_m2.py", minimax_m2},
    {"nemotron_3_super",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16.sh",
     nemotron_3_super},
    {"olmoe",
     "allenai/OLMoE: configs/olmoe-8x1b-newhp-newds-cx5-fine1-normreorder.yml; "
     "NVIDIA-NeMo/Megatron-Bridge: src/megatron/bridge/models/olmoe/olmoe_bridge.py "
     "(router dtype)",
     olmoe},
    {"gpt_oss_20b",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "openai/gpt-oss-20b.sh",
     gpt_oss_20b},
    {"gpt_oss_120b",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "openai/gpt-oss-120b.sh",
     gpt_oss_120b},
    {"llama4_scout",
     "NVIDIA/Megatron-LM: examples/post_training/modelopt/conf/"
     "meta-llama/Llama-4-Scout-17B-16E-Instruct.sh",
     llama4_scout}};

const Preset& find_preset(const std::string& name) {
    for (const Preset& candidate : kPresets)
        if (candidate.name == name) return candidate;
    reject_unknown("preset", name, preset_names(), "known are");
}

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
    shrink_given("moe_latent_size", config.moe_latent_size);
    shrink_given("moe_shared_expert_intermediate_size",
                 config.moe_shared_expert_intermediate_size);
}

const std::string& preset_source(const std::string& name) {
    return find_preset(name).source;
}

MoEConfig preset(const std::string& name, std::int64_t scale) {
    MoEConfig config = find_preset(name).make();
    scale_widths(config, scale);
    return config;
}

}  // namespace moe
