// The config as JSON: defaults, reading with its errors, writing, and the presets.

#include <nlohmann/json.hpp>
#include <set>

#include "core/config.h"
#include "core/presets.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;

/// Every field with Megatron's default.
json megatron_defaults() {
    return json::parse(R"({
        "hidden_size": 0, "num_moe_experts": null, "ffn_hidden_size": null,
        "moe_ffn_hidden_size": null, "moe_shared_expert_intermediate_size": null,
        "moe_shared_expert_gate": false, "moe_shared_expert_overlap": false,
        "moe_latent_size": null, "moe_mlp_glu_interleave_size": null,
        "moe_shared_expert_glu_interleave_size": null,
        "gated_linear_unit": false, "activation_func": "gelu",
        "activation_func_clamp_value": null, "glu_linear_offset": 0.0,
        "add_bias_linear": true, "moe_apply_probs_on_input": false,
        "moe_grouped_gemm": false,
        "moe_router_topk": 2, "moe_router_pre_softmax": false,
        "moe_router_score_function": "softmax", "moe_router_num_groups": null,
        "moe_router_group_topk": null, "moe_router_group_score_topk": null,
        "moe_router_norm_topk_prob": true, "moe_router_hash_vocab_size": null,
        "moe_router_topk_scaling_factor": null,
        "moe_router_dtype": null, "moe_router_enable_expert_bias": false,
        "moe_router_bias_update_rate": 0.001,
        "moe_router_quantile_balancing_ema": 0.0, "moe_input_jitter_eps": null,
        "moe_router_fusion": false,
        "moe_router_force_load_balancing": false, "moe_router_force_biased": null,
        "moe_enable_routing_replay": false,
        "moe_router_load_balancing_type": ["aux_loss"], "moe_aux_loss_coeff": [0.0],
        "moe_z_loss_coeff": null, "calculate_per_token_loss": false,
        "moe_expert_capacity_factor": null, "moe_pad_expert_input_to_capacity": false,
        "moe_token_drop_policy": "probs",
        "moe_token_dispatcher_type": "allgather",
        "moe_flex_dispatcher_backend": "deepep", "moe_enable_deepep": false,
        "moe_permute_fusion": false,
        "moe_router_padding_for_quantization": false,
        "moe_router_padding_for_fp8": false, "fp8_recipe": "delayed",
        "moe_flex_peer_heap_bytes": null, "moe_flex_max_tokens_per_rank": null,
        "moe_expert_rank_capacity_factor": null,
        "recompute_granularity": null, "recompute_modules": null,
        "tensor_model_parallel_size": 1, "context_parallel_size": 1,
        "expert_model_parallel_size": 1, "expert_tensor_parallel_size": null,
        "sequence_parallel": false,
        "overlap_dispatch_backward_with_experts_wgrad": false})");
}

/// Every field with something else.
json nothing_default() {
    return json::parse(R"({
        "hidden_size": 1, "num_moe_experts": 2, "ffn_hidden_size": 3,
        "moe_ffn_hidden_size": 4, "moe_shared_expert_intermediate_size": 5,
        "moe_shared_expert_gate": true, "moe_shared_expert_overlap": true,
        "moe_latent_size": 12, "moe_mlp_glu_interleave_size": 13,
        "moe_shared_expert_glu_interleave_size": 14,
        "gated_linear_unit": true, "activation_func": "silu",
        "activation_func_clamp_value": 0.1, "glu_linear_offset": -0.2,
        "add_bias_linear": false, "moe_apply_probs_on_input": true,
        "moe_grouped_gemm": true,
        "moe_router_topk": 6, "moe_router_pre_softmax": true,
        "moe_router_score_function": "sigmoid", "moe_router_num_groups": 7,
        "moe_router_group_topk": 8, "moe_router_group_score_topk": 15,
        "moe_router_norm_topk_prob": false, "moe_router_hash_vocab_size": 16,
        "moe_router_topk_scaling_factor": 0.3,
        "moe_router_dtype": "fp64", "moe_router_enable_expert_bias": true,
        "moe_router_bias_update_rate": 0.4,
        "moe_router_quantile_balancing_ema": 0.7, "moe_input_jitter_eps": 0.8,
        "moe_router_fusion": true,
        "moe_router_force_load_balancing": true, "moe_router_force_biased": -0.9,
        "moe_enable_routing_replay": true,
        "moe_router_load_balancing_type": ["none", "aux_loss"],
        "moe_aux_loss_coeff": [0.5, 1e-300],
        "moe_z_loss_coeff": 0.6, "calculate_per_token_loss": true,
        "moe_expert_capacity_factor": 0.7, "moe_pad_expert_input_to_capacity": true,
        "moe_token_drop_policy": "position",
        "moe_token_dispatcher_type": "flex",
        "moe_flex_dispatcher_backend": "ncclep", "moe_enable_deepep": true,
        "moe_permute_fusion": true,
        "moe_router_padding_for_quantization": true,
        "moe_router_padding_for_fp8": true, "fp8_recipe": "mxfp8",
        "moe_flex_peer_heap_bytes": 8, "moe_flex_max_tokens_per_rank": 9,
        "moe_expert_rank_capacity_factor": 0.8,
        "recompute_granularity": "selective", "recompute_modules": ["moe_act"],
        "tensor_model_parallel_size": -9, "context_parallel_size": 10,
        "expert_model_parallel_size": 11,
        "expert_tensor_parallel_size": 9223372036854775807,
        "sequence_parallel": true,
        "overlap_dispatch_backward_with_experts_wgrad": true})");
}

TEST(ConfigJson, HasMegatronsDefaults) {
    EXPECT_EQ(json(config_to_json(MoEConfig{})), megatron_defaults());
}

TEST(ConfigJson, CarriesEveryField) {
    const json fields = nothing_default(), defaults = megatron_defaults();
    EXPECT_EQ(fields.size(), defaults.size());
    for (const auto& [name, value] : fields.items()) EXPECT_NE(value, defaults.at(name));
    EXPECT_EQ(json(config_to_json(config_from_json(fields, ""))), fields);

    // One at a time: the others stay as they were.
    for (const auto& [name, value] : fields.items()) {
        json expected = defaults;
        expected[name] = value;
        EXPECT_EQ(json(config_to_json(config_from_json({{name, value}}, ""))), expected);
    }
}

TEST(ConfigJson, ListsItsFieldsInOrder) {
    const auto written = config_to_json(MoEConfig{});
    ASSERT_EQ(written.size(), config_fields().size());
    std::size_t i = 0;
    std::set<std::string> helps;
    for (const auto& [name, value] : written.items()) {
        const FieldInfo& field = config_fields()[i++];
        EXPECT_EQ(field.name, name);
        EXPECT_FALSE(field.help.empty()) << name;
        helps.insert(field.help);
        const json full = nothing_default().at(name);
        EXPECT_EQ(field.kind, full.is_boolean()          ? FieldKind::boolean
                              : full.is_number_integer() ? FieldKind::integer
                              : full.is_number()         ? FieldKind::number
                              : full.is_string()         ? FieldKind::text
                                                         : FieldKind::list)
            << name;
    }
    EXPECT_EQ(helps.size(), written.size()) << "two fields say the same of themselves";
}

TEST(ConfigJson, TakesOneElementForAList) {
    const MoEConfig config = config_from_json(
        {{"moe_router_load_balancing_type", "none"}, {"moe_aux_loss_coeff", 1}}, "");
    EXPECT_EQ(config.moe_router_load_balancing_type, std::vector<std::string>{"none"});
    EXPECT_EQ(config.moe_aux_loss_coeff, std::vector<double>{1.0});
}

TEST(ConfigJson, TakesNullForWhatMayBeAbsentOnly) {
    const json defaults = megatron_defaults();
    for (const FieldInfo& field : config_fields()) {
        const auto read = [&] { return config_from_json({{field.name, nullptr}}, ""); };
        if (defaults.at(field.name).is_null())
            EXPECT_EQ(json(config_to_json(read())), defaults) << field.name;
        else
            EXPECT_TRUE(Rejects(read, {field.name + " = null: must "}));
    }
    // Null also takes back what was given before.
    MoEConfig config = config_from_json(nothing_default(), "");
    set_field(config, "moe_z_loss_coeff", nullptr, "");
    EXPECT_FALSE(config.moe_z_loss_coeff);
}

TEST(ConfigJson, RejectsOtherTypes) {
    const std::map<FieldKind, std::pair<std::vector<std::string>, std::string>> wrong = {
        {FieldKind::boolean, {{"0", "1.0", "\"true\"", "[true]", "{}"}, "true or false"}},
        {FieldKind::integer,
         {{"true", "2.0", "2.5", "\"2\"", "[2]", "{\"2\": 2}", "18446744073709551615",
           "9223372036854775808", "1e3"},
          "an integer"}},
        {FieldKind::number, {{"true", "\"1\"", "[1]", "{}"}, "a number"}},
        {FieldKind::text, {{"true", "1", "[\"a\"]", "{}"}, "a string"}},
    };
    for (const FieldInfo& field : config_fields()) {
        if (field.kind == FieldKind::list) continue;
        const auto& [values, allowed] = wrong.at(field.kind);
        for (const std::string& value : values) {
            const std::string text = json::parse(value).dump();
            EXPECT_TRUE(Rejects(
                [&] {
                    config_from_json({{field.name, json::parse(value)}}, "a.json");
                },
                {"a.json: " + field.name + " = " + text + ": must be " + allowed}))
                << field.name;
        }
    }
    const auto rejects_list = [](const std::string& name, const std::string& value,
                                 const std::string& allowed) {
        return Rejects(
            [&] {
                config_from_json({{name, json::parse(value)}}, "");
            },
            {name + " = ", allowed});
    };
    for (const char* value :
         {"true", "\"1\"", "{\"0\": 1}", "[[1]]", "[1, \"1\"]", "[null]"})
        EXPECT_TRUE(rejects_list("moe_aux_loss_coeff", value, "a number")) << value;
    for (const char* value : {"1", "{}", "[[\"none\"]]", "[\"none\", 3]", "null"})
        EXPECT_TRUE(rejects_list("moe_router_load_balancing_type", value, "a string"));
    EXPECT_TRUE(rejects_list("moe_aux_loss_coeff", "[]", "empty list"));
    EXPECT_TRUE(rejects_list("moe_router_load_balancing_type", "[]", "empty list"));
}

TEST(ConfigJson, NamesUnknownFieldsAndOtherJunk) {
    const auto rejects = [](const std::string& text, const std::string& message) {
        return Rejects([&] { config_from_json(json::parse(text), "a.json"); }, {message});
    };
    EXPECT_TRUE(rejects(R"({"moe_router_topk": 2, "moe_magic": {"a": [1]}})",
                        R"(a.json: moe_magic = {"a":[1]}: no such config field)"));
    EXPECT_TRUE(rejects(R"({"Hidden_size": 2})", "a.json: Hidden_size = 2: no such"));
    EXPECT_TRUE(rejects(R"({"": 2})", "a.json:  = 2: no such config field"));
    EXPECT_TRUE(rejects("[1]", "a.json = [1]: must be a JSON object"));
    EXPECT_TRUE(rejects("null", "a.json = null: must be a JSON object"));
    EXPECT_TRUE(Rejects([] { config_from_json(3, ""); }, {"config = 3: must be a JSON"}));
    // Values are shown in plain ASCII, on one line.
    EXPECT_TRUE(rejects(R"({"activation_func": ["x\ny"]})", R"(["x\ny"])"));
    EXPECT_TRUE(rejects(R"({"gated_linear_unit": "ü"})", R"("\u00fc": must be true)"));
    EXPECT_TRUE(rejects(R"({"moe_magic": "ü"})", R"("\u00fc": no such)"));
}

// A message is one line, whatever the name holds.
TEST(ConfigJson, KeepsToOneLine) {
    EXPECT_TRUE(Rejects(
        [] {
            config_from_json({{"moe\nmagic", 2}}, "");
        },
        {"magic = 2: no such config field"}));
}

TEST(Presets, AreThePublishedLayers) {
    // What each sets; the rest are Megatron's defaults.
    const std::map<std::string, std::string> published = {
        {"mixtral_8x7b", R"({"hidden_size": 4096, "num_moe_experts": 8,
            "moe_ffn_hidden_size": 14336, "moe_aux_loss_coeff": [0.01]})"},
        {"mixtral_8x22b", R"({"hidden_size": 6144, "num_moe_experts": 8,
            "moe_ffn_hidden_size": 16384, "moe_aux_loss_coeff": [0.01]})"},
        {"qwen3_30b_a3b", R"({"hidden_size": 2048, "num_moe_experts": 128,
            "moe_router_topk": 8, "moe_ffn_hidden_size": 768, "moe_router_dtype": "fp32",
            "moe_aux_loss_coeff": [0.001]})"},
        {"qwen3_235b_a22b", R"({"hidden_size": 4096, "num_moe_experts": 128,
            "moe_router_topk": 8, "moe_ffn_hidden_size": 1536, "moe_router_dtype": "fp32",
            "moe_aux_loss_coeff": [0.001]})"},
        {"qwen3_next_80b", R"({"hidden_size": 2048, "num_moe_experts": 512,
            "moe_router_topk": 10, "moe_ffn_hidden_size": 512, "moe_router_dtype": "fp32",
            "moe_shared_expert_intermediate_size": 512, "moe_shared_expert_gate": true,
            "moe_router_load_balancing_type": ["global_aux_loss"],
            "moe_aux_loss_coeff": [0.001]})"},
        {"deepseek_v3", R"({"hidden_size": 7168, "num_moe_experts": 256,
            "moe_router_topk": 8, "moe_ffn_hidden_size": 2048, "moe_router_dtype": "fp32",
            "moe_shared_expert_intermediate_size": 2048,
            "moe_router_score_function": "sigmoid", "moe_router_num_groups": 8,
            "moe_router_group_topk": 4, "moe_router_topk_scaling_factor": 2.5,
            "moe_router_enable_expert_bias": true,
            "moe_router_load_balancing_type": ["seq_aux_loss"],
            "moe_aux_loss_coeff": [0.0001]})"},
        {"deepseek_v4_flash", R"({"hidden_size": 4096, "num_moe_experts": 256,
            "moe_router_topk": 6, "moe_ffn_hidden_size": 2048, "moe_router_dtype": "fp32",
            "moe_shared_expert_intermediate_size": 2048,
            "activation_func_clamp_value": 10.0,
            "moe_router_score_function": "sqrtsoftplus",
            "moe_router_topk_scaling_factor": 1.5, "moe_router_enable_expert_bias": true,
            "moe_router_load_balancing_type": ["none"]})"},
        {"glm_4_5", R"({"hidden_size": 5120, "num_moe_experts": 160,
            "moe_router_topk": 8, "moe_ffn_hidden_size": 1536, "moe_router_dtype": "fp32",
            "moe_shared_expert_intermediate_size": 1536,
            "moe_router_score_function": "sigmoid",
            "moe_router_topk_scaling_factor": 2.5, "moe_router_enable_expert_bias": true,
            "moe_router_load_balancing_type": ["seq_aux_loss"],
            "moe_aux_loss_coeff": [0.001]})"},
        {"minimax_m2", R"({"hidden_size": 3072, "num_moe_experts": 256,
            "moe_router_topk": 8, "moe_ffn_hidden_size": 1536, "moe_router_dtype": "fp32",
            "moe_router_score_function": "sigmoid", "moe_router_enable_expert_bias": true,
            "moe_aux_loss_coeff": [0.008]})"},
        {"nemotron_3_super", R"({"hidden_size": 4096, "num_moe_experts": 512,
            "moe_router_topk": 22, "moe_ffn_hidden_size": 2688,
            "gated_linear_unit": false, "activation_func": "squared_relu",
            "moe_latent_size": 1024, "moe_shared_expert_intermediate_size": 5376,
            "moe_router_dtype": "fp32", "moe_router_score_function": "sigmoid",
            "moe_router_topk_scaling_factor": 5.0, "moe_router_enable_expert_bias": true,
            "moe_router_load_balancing_type": ["seq_aux_loss"],
            "moe_aux_loss_coeff": [0.0001]})"},
        {"olmoe", R"({"hidden_size": 2048, "num_moe_experts": 64, "moe_router_topk": 8,
            "moe_ffn_hidden_size": 1024, "moe_router_dtype": "fp32",
            "moe_router_pre_softmax": true, "moe_aux_loss_coeff": [0.01],
            "moe_z_loss_coeff": 0.001})"},
        {"gpt_oss_20b", R"({"hidden_size": 2880, "num_moe_experts": 32,
            "moe_router_topk": 4, "moe_ffn_hidden_size": 2880, "moe_router_dtype": "fp32",
            "activation_func": "quick_gelu", "glu_linear_offset": 1.0,
            "activation_func_clamp_value": 7.0, "add_bias_linear": true,
            "moe_router_load_balancing_type": ["none"]})"},
        {"gpt_oss_120b", R"({"hidden_size": 2880, "num_moe_experts": 128,
            "moe_router_topk": 4, "moe_ffn_hidden_size": 2880, "moe_router_dtype": "fp32",
            "activation_func": "quick_gelu", "glu_linear_offset": 1.0,
            "activation_func_clamp_value": 7.0, "add_bias_linear": true,
            "moe_router_load_balancing_type": ["none"]})"},
        {"llama4_scout", R"({"hidden_size": 5120, "num_moe_experts": 16,
            "moe_router_topk": 1, "moe_ffn_hidden_size": 8192,
            "moe_shared_expert_intermediate_size": 8192,
            "moe_router_score_function": "sigmoid", "moe_apply_probs_on_input": true,
            "moe_router_dtype": "fp32",
            "moe_router_load_balancing_type": ["seq_aux_loss"],
            "moe_aux_loss_coeff": [0.001]})"}};
    EXPECT_EQ(preset_names().size(), published.size());
    for (const std::string& name : preset_names()) {
        json expected = megatron_defaults();
        expected.update(
            json::parse(R"({"gated_linear_unit": true, "activation_func": "silu",
            "add_bias_linear": false, "moe_token_dispatcher_type": "alltoall",
            "moe_permute_fusion": true, "moe_router_fusion": true,
            "moe_grouped_gemm": true})"));
        expected.update(json::parse(published.at(name)));
        MoEConfig config = preset(name, 1);
        EXPECT_EQ(json(config_to_json(config)), expected) << name;
        EXPECT_NE(preset_source(name).find(": "), std::string::npos) << name;
        config.finalize();
        EXPECT_TRUE(config.warnings().empty()) << name;
        const auto written = config_to_json(config);
        EXPECT_EQ(config_to_json(config_from_json(json(written), "")), written) << name;
    }
}

TEST(Presets, ShrinkInWidthOnly) {
    for (const std::string& name : preset_names()) {
        const MoEConfig full = preset(name, 1);
        MoEConfig small = preset(name, 48);
        EXPECT_EQ(small.hidden_size, full.hidden_size / 48);
        EXPECT_EQ(small.ffn(), full.ffn() / 48);
        EXPECT_EQ(small.shared_ffn(), full.shared_ffn() / 48);
        EXPECT_EQ(small.latent_size(), full.latent_size() / 48);
        small.hidden_size = full.hidden_size;
        small.moe_ffn_hidden_size = full.moe_ffn_hidden_size;
        small.moe_latent_size = full.moe_latent_size;
        small.moe_shared_expert_intermediate_size =
            full.moe_shared_expert_intermediate_size;
        EXPECT_EQ(config_to_json(small), config_to_json(full)) << "other fields stay";
    }
    EXPECT_EQ(preset("olmoe", 1024).ffn(), 1);
    EXPECT_TRUE(Rejects([] { preset("olmoe", 1025); },
                        {"scale = 1025: ", "moe_ffn_hidden_size = 1024"}));
    EXPECT_TRUE(Rejects([] { preset("mixtral_8x7b", 4097); },
                        {"scale = 4097: ", "hidden_size = 4096"}));
    EXPECT_TRUE(Rejects([] { preset("olmoe", 0); }, {"scale = 0: must be at least 1"}));
    EXPECT_TRUE(Rejects([] { preset("olmoe", -2); }, {"scale = -2: "}));
    EXPECT_TRUE(
        Rejects([] { preset("gpt5", 1); },
                {"preset = gpt5: ", "mixtral_8x7b, mixtral_8x22b, qwen3_30b_a3b"}));
    EXPECT_TRUE(Rejects([] { preset_source("gpt5"); }, {"preset = gpt5: "}));
    EXPECT_TRUE(Rejects([] { preset("", 1); }, {"preset = : "}));
}

}  // namespace
}  // namespace moe::test
