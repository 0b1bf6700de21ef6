#include "core/checkpoint/families.h"

#include <cmath>

namespace moe::checkpoint {
namespace {

// ------------------------------------------------------------ 1. what fields do not say

/// gpt-oss's SwiGLU: (up + 1) gate sigmoid(1.702 gate), both clamped.
void clamped_quick_geglu(const Fields& fields, Model& model) {
    const double alpha = fields.number({"swiglu_alpha"}).value_or(1.702);
    if (std::abs(alpha - 1.702) > 1e-12)
        fields.refuse("swiglu_alpha", "must be 1.702, which is quick_gelu");
    model.config.activation_func = "quick_gelu";
    model.config.glu_linear_offset = 1.0;
    model.config.activation_func_clamp_value =
        fields.number({"swiglu_limit"}).value_or(7.0);
}

void with_biases(const Fields& fields, Model& model) {
    clamped_quick_geglu(fields, model);
    model.config.add_bias_linear = true;
}

void afmoe(const Fields& fields, Model&) {
    const auto function = fields.text({"score_func"});
    if (function && *function != "sigmoid")
        fields.refuse("score_func", "must be sigmoid");
    if (const auto norm = fields.boolean({"route_norm"}); norm && !*norm)
        fields.refuse("route_norm", "must be true");
}

void ungrouped_alone(const Fields& fields, Model& model) {
    if (fields.integer({"n_group"}).value_or(1) > 1)
        fields.refuse("n_group", model.type == "axk2"
                                     ? "must be 1: the layer lacks experts of unchosen "
                                       "groups that stay eligible with a key of 0"
                                     : "must be 1: the layer lacks a softmax over all "
                                       "experts that chooses groups, with weights that "
                                       "are normalised after it");
}

void cohere2_moe(const Fields& fields, Model& model) {
    const std::string function = fields.text({"expert_selection_fn"}).value_or("softmax");
    if (function == "sigmoid") {
        model.config.moe_router_score_function = "sigmoid";
        model.config.moe_router_norm_topk_prob =
            fields.boolean({"norm_topk_prob"}).value_or(true);
    } else if (function != "softmax") {
        fields.refuse("expert_selection_fn", "must be softmax or sigmoid");
    }
    const bool shares = fields.integer({"num_shared_experts"}).value_or(0) > 0;
    if (shares && fields.text({"shared_expert_combination_strategy"}) != "sum")
        fields.refuse("shared_expert_combination_strategy",
                      "must be sum: the layer lacks half of the sum of routed and shared "
                      "experts");
}

void dbrx(const Fields& fields, Model& model) {
    const Fields ffn = fields.inside("ffn_config");
    const auto norm = ffn.number({"moe_normalize_expert_weights"});
    const bool given = !ffn.any({"moe_normalize_expert_weights"}).is_null();
    if (given && norm != 1.0)
        ffn.refuse("moe_normalize_expert_weights", "must be 1 or null");
    model.config.moe_router_pre_softmax = !given;
    const Fields activation = ffn.inside("ffn_act_fn");
    if (const auto name = activation.text({"name"}); name && *name != "silu")
        activation.refuse("name", "must be silu");
    if (ffn.number({"moe_jitter_eps"}).value_or(0.0) != 0.0)
        model.notes.push_back("moe_jitter_eps, of training alone, is left out");
}

void deepseek_v2(const Fields& fields, Model& model) {
    if (fields.boolean({"norm_topk_prob"}).value_or(false))
        fields.refuse("norm_topk_prob",
                      "must be false: the model's code takes no notice");
    const std::string method = fields.text({"topk_method"}).value_or("greedy");
    if (method == "greedy") return;
    if (method != "group_limited_greedy")
        fields.refuse("topk_method", "must be greedy or group_limited_greedy");
    const std::int64_t groups = fields.required_integer({"n_group"});
    if (groups == 1) return;
    model.config.moe_router_num_groups = groups;
    model.config.moe_router_group_topk = fields.required_integer({"topk_group"});
    model.config.moe_router_group_score_topk = 1;  // a group's maximum
}

void deepseek_v3(const Fields& fields, Model&) {
    const auto method = fields.text({"topk_method"});
    if (method && *method != "noaux_tc") fields.refuse("topk_method", "must be noaux_tc");
}

void deepseek_v4(const Fields& fields, Model& model) {
    MoEConfig& config = model.config;
    config.moe_router_score_function =
        fields.text({"scoring_func"}).value_or("sqrtsoftplus");
    if (config.moe_router_score_function != "sqrtsoftplus" &&
        config.moe_router_score_function != "sigmoid")
        fields.refuse("scoring_func", "must be sqrtsoftplus or sigmoid");
    config.activation_func_clamp_value = fields.number({"swiglu_limit"}).value_or(10.0);
    const bool hashes =
        fields.any({"mlp_layer_types"}).is_array()
            ? fields.text({"mlp_layer_types"}) == "hash_moe"
            : fields.layer() < fields.integer({"num_hash_layers"}).value_or(3);
    if (!hashes) return;
    config.moe_router_hash_vocab_size = fields.required_integer({"vocab_size"});
    config.moe_router_enable_expert_bias = false;
}

void swiglu_limit(const Fields& fields, Model& model) {
    model.config.activation_func_clamp_value =
        fields.number({"swiglu_limit"}).value_or(10.0);
}

void dots3_note(const Fields& fields, Model& model) {
    if (const auto width = fields.integer({"shared_experts_intermediate_size"}))
        model.config.moe_shared_expert_intermediate_size =
            *width * fields.integer({"n_shared_experts"}).value_or(1);
}

void bias_of_zero(const Fields&, Model& model) {
    model.expert_bias_must_be_zero = true;
}

void hy_v3(const Fields& fields, Model& model) {
    if (fields.boolean({"enable_moe_fp32_combine"}).value_or(true))
        model.notes.push_back(
            "enable_moe_fp32_combine: the model adds routed and shared experts in fp32");
}

void jitter(const Fields& fields, Model& model) {
    if (fields.number({"router_jitter_noise"}).value_or(0.0) != 0.0)
        model.notes.push_back("router_jitter_noise, of training alone, is left out");
}

void laguna(const Fields& fields, Model&) {
    if (fields.number({"moe_router_logit_softcapping"}).value_or(0.0) > 0.0)
        fields.refuse("moe_router_logit_softcapping",
                      "must be 0: the layer lacks logits within a tanh");
    if (fields.boolean({"moe_apply_router_weight_on_input"}).value_or(false))
        fields.refuse("moe_apply_router_weight_on_input", "must be false");
}

void llama4(const Fields& fields, Model& model) {
    if (model.config.moe_router_topk != 1)
        fields.refuse("num_experts_per_tok",
                      "must be 1: the layer weighs inputs of one expert alone");
    model.config.moe_apply_probs_on_input = true;
    model.config.moe_shared_expert_intermediate_size = model.config.moe_ffn_hidden_size;
}

void minimax_m3(const Fields& fields, Model& model) {
    clamped_quick_geglu(fields, model);
    jitter(fields, model);
}

void nemotron_h(const Fields& fields, Model& model) {
    model.config.gated_linear_unit = false;
    model.config.moe_latent_size = fields.integer({"moe_latent_size"});
    if (fields.boolean({"mlp_bias"}).value_or(false))
        fields.refuse("mlp_bias", "must be false");
}

void step3p7(const Fields& fields, Model&) {
    for (const char* name : {"swiglu_limits", "swiglu_limits_shared"})
        if (fields.number({name}).value_or(0.0) != 0.0)
            fields.refuse(name,
                          "must be 0 for the layer, which lacks a gate that is "
                          "clamped after its activation");
}

// ------------------------------------------------------------ 2. by model_type

/// DeepSeek-V3's router, which many have.
Family noaux(Family family = {}) {
    family.scores =
        family.scores == Scores::softmax ? Scores::sigmoid_unless : family.scores;
    family.scaling = family.scaling ? family.scaling : "routed_scaling_factor";
    family.expert_bias = family.groups = family.fp32_router = true;
    return family;
}

std::map<std::string, Family> make_families() {
    const char* const width = "shared_expert_intermediate_size";
    const char* const count = "n_shared_experts";
    const char* const dense = "intermediate_size";
    std::map<std::string, Family> all;
    // Softmax
    all["mixtral"] = {.ffn = dense, .more = jitter};
    all["minimax"] = all["mixtral"];
    all["granitemoe"] = {.ffn = dense};
    for (const char* type : {"granitemoeshared", "granitemoehybrid", "granitemoe_swa"})
        all[type] = {.ffn = dense, .shared_width = "shared_intermediate_size"};
    all["hunyuan_v1_moe"] = {.ffn = dense, .shared_width = dense, .fp32_router = true};
    all["aria"] = {.ffn = dense,
                   .shared_count = "moe_num_shared_experts",
                   .packed = Packed::columns};
    all["qwen2_moe"] = {
        .scores = Scores::softmax_by_field, .shared_width = width, .shared_gate = true};
    all["qwen3_next"] = all["qwen4_exp"] = {
        .scores = Scores::softmax_unless, .shared_width = width, .shared_gate = true};
    all["qwen3_5_moe"] = {.shared_width = width, .shared_gate = true};
    all["qwen3_moe"] = {.scores = Scores::softmax_by_field};
    all["qwen3_omni_moe"] = all["mellum"] = {.scores = Scores::softmax_unless};
    all["qwen3_vl_moe"] = {.packed = Packed::either};
    all["olmoe"] = all["flex_olmo"] = {.scores = Scores::softmax_by_field, .ffn = dense};
    all["lara_mini"] = {
        .scores = Scores::softmax_unless, .shared_width = width, .fp32_router = true};
    all["jamba"] = {.scores = Scores::softmax_of_all, .ffn = dense};
    all["deepseek_v2"] = {.scores = Scores::softmax_of_all,
                          .shared_count = count,
                          .scaling = "routed_scaling_factor",
                          .fp32_router = true,
                          .more = deepseek_v2};
    all["deepseek_ocr2"] = all["unlimited_ocr"] = all["deepseek_v2"];
    all["mistral4"] = {.scores = Scores::softmax_unless,
                       .shared_count = count,
                       .scaling = "routed_scaling_factor",
                       .more = ungrouped_alone};
    all["mistral_large4"] = all["mistral4"];
    all["mistral_large4"].scores = Scores::softmax;
    all["mistral_large4"].fp32_router = true;
    all["cohere2_moe"] = {
        .ffn = dense, .shared_count = "num_shared_experts", .more = cohere2_moe};
    all["dbrx"] = {.more = dbrx};
    all["ernie4_5_moe"] = {.shared_count = "moe_num_shared_experts",
                           .fp32_router = true,
                           .more = bias_of_zero};
    all["gpt_oss"] = {.ffn = dense, .packed = Packed::interleaved, .more = with_biases};
    all["openai_privacy_filter"] = {.ffn = dense,
                                    .fp32_router = true,
                                    .packed = Packed::columns,
                                    .more = with_biases};
    // Sigmoid, with an expert bias and groups
    all["deepseek_v3"] = noaux({.shared_count = count, .more = deepseek_v3});
    all["kimi_k2"] = all["kimi_k25"] = all["deepseek_v32"] = all["deepseek_v3"];
    for (const char* type :
         {"glm4_moe", "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "solar_open"})
        all[type] = noaux({.shared_count = count});
    all["glm5_next"] = noaux({.shared_count = count, .more = swiglu_limit});
    all["axk2"] = noaux({.shared_count = count, .more = ungrouped_alone});
    all["dots1"] = noaux({.scores = Scores::sigmoid_by_field, .shared_count = count});
    all["dots3_note"] = noaux({.shared_count = count, .more = dots3_note});
    for (const char* type : {"bailing_hybrid", "exaone_moe", "kimi_linear"})
        all[type] = noaux({.shared_count = "num_shared_experts"});
    all["beam"] = all["mimo_v2_flash"] = noaux();
    all["nemotron_h"] = noaux(
        {.shared_width = "moe_shared_expert_intermediate_size", .more = nemotron_h});
    // Sigmoid, other
    all["afmoe"] = {.scores = Scores::sigmoid,
                    .shared_count = "num_shared_experts",
                    .scaling = "route_scale",
                    .expert_bias = true,
                    .more = afmoe};
    all["hy_v3"] = {.scores = Scores::sigmoid,
                    .shared_count = "num_shared_experts",
                    .scaling = "router_scaling_factor",
                    .expert_bias = true,
                    .fp32_router = true,
                    .more = hy_v3};
    all["laguna"] = {.scores = Scores::sigmoid,
                     .shared_width = width,
                     .scaling = "moe_routed_scaling_factor",
                     .expert_bias = true,
                     .more = laguna};
    all["minimax_m2"] = {
        .scores = Scores::sigmoid, .ffn = dense, .expert_bias = true, .more = jitter};
    all["minimax_m3_vl"] = {.scores = Scores::sigmoid,
                            .ffn = dense,
                            .shared_width = "shared_intermediate_size",
                            .scaling = "routed_scaling_factor",
                            .expert_bias = true,
                            .more = minimax_m3};
    all["step3p7"] = {.scores = Scores::sigmoid,
                      .shared_width = "share_expert_dim",
                      .scaling = "moe_router_scaling_factor",
                      .expert_bias = true,
                      .more = step3p7};
    all["step3p5"] = all["step3p7"];
    all["flint"] = {
        .scores = Scores::sigmoid_unless, .shared_width = width, .fp32_router = true};
    all["llama4"] = {.scores = Scores::sigmoid,
                     .ffn = dense,
                     .packed = Packed::columns,
                     .more = llama4};
    all["deepseek_v4"] = {.scores = Scores::sqrtsoftplus,
                          .shared_count = count,
                          .scaling = "routed_scaling_factor",
                          .expert_bias = true,
                          .more = deepseek_v4};
    return all;
}

}  // namespace

const std::map<std::string, Family>& families() {
    static const std::map<std::string, Family> all = make_families();
    return all;
}

const std::map<std::string, std::string>& lacking_models() {
    static const std::string softmax_bias = "an expert bias beside softmax scores";
    static const std::map<std::string, std::string> lacking = {
        {"axk1", "an RMS norm of the block's output"},
        {"diffusion_gemma", "a router with a norm of its own, a factor for each expert"},
        {"doge", "experts of one neuron, found by product keys"},
        {"ernie4_5_vl_moe", "a router and experts for text and others for images"},
        {"gemma4", "a router with a norm of its own, a factor for each expert"},
        {"hy_v4", "a clamp in the routed experts that the shared ones do not have"},
        {"hy_v4_vl", "a clamp in the routed experts that the shared ones do not have"},
        {"inkling", "shared experts that the router weighs"},
        {"inkling2", "SwiGLU with a tanh softcap around gate and up"},
        {"inkling2_loop", "SwiGLU with a tanh softcap around gate and up"},
        {"jetmoe", "a bias of the block's output"},
        {"kolibri1", "an expert bias that is added to logits, not to scores"},
        {"lfm2_moe", "weights over their sum + 1e-6 (here + 1e-20)"},
        {"longcat_flash", "zero experts, which return their input; " + softmax_bias},
        {"muse_spark", "norms in the latent space and after each expert"},
        {"nllb_moe", "a capacity in two passes"},
        {"phimoe", "sparsemixer in place of top-k"},
        {"switch_transformers", "relu; a capacity per sequence"},
        {"zaya", "a router that is an MLP and hands its state to the next block"}};
    return lacking;
}

}  // namespace moe::checkpoint
