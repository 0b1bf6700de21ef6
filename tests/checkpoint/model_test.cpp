// model_test.cpp: config.json of models in this layer's words.

#include <gmock/gmock.h>

#include "core/checkpoint/model.h"
#include "tests/checkpoint/support.h"

namespace moe::test {
namespace {

using checkpoint::Model;
using checkpoint::read_model;
using nlohmann::json;

/// A config with every size that a model may ask for.
json fields_of(const std::string& type, const json& own = json::object()) {
    json fields = {{"model_type", type},
                   {"hidden_size", 12},
                   {"num_hidden_layers", 6},
                   {"intermediate_size", 10},
                   {"moe_intermediate_size", 9},
                   {"num_experts_per_tok", 4},
                   {"vocab_size", 17}};
    for (const auto& [name, value] : own.items()) fields[name] = value;
    const auto given = [&](const char* name) { return fields.contains(name); };
    if (!given("num_local_experts") && !given("num_experts") && !given("moe_num_experts"))
        fields["n_routed_experts"] = 8;
    return fields;
}

Model model_of(const json& fields, std::int64_t layer = 3) {
    return read_model(fields.dump(), "config.json", layer);
}

MoEConfig config_of(const std::string& type, const json& own = json::object()) {
    return model_of(fields_of(type, own)).config;
}

std::string refusal_of(const std::string& type, const json& own = json::object(),
                       std::int64_t layer = 3) {
    return message_of([&] { model_of(fields_of(type, own), layer); });
}

TEST(CheckpointModel, every_known_model_has_a_layer) {
    for (const std::string& type : checkpoint::known_models()) {
        json own = json::object();
        if (type == "llama4") own["num_experts_per_tok"] = 1;
        if (type == "dbrx")
            own = {{"d_model", 12},
                   {"ffn_config",
                    {{"moe_num_experts", 8}, {"moe_top_k", 4}, {"ffn_hidden_size", 9}}}};
        const Model model = model_of(fields_of(type, own));
        EXPECT_EQ(model.config.num_experts(), 8) << type;
        EXPECT_EQ(model.config.hidden_size, 12) << type;
        EXPECT_EQ(model.type, type);
        EXPECT_TRUE(model.config.ffn() == 9 || model.config.ffn() == 10) << type;
    }
}

TEST(CheckpointModel, softmax_is_normalised_by_the_models_default) {
    EXPECT_FALSE(config_of("mixtral").moe_router_pre_softmax);
    EXPECT_TRUE(config_of("qwen3_moe").moe_router_pre_softmax);
    EXPECT_FALSE(
        config_of("qwen3_moe", {{"norm_topk_prob", true}}).moe_router_pre_softmax);
    EXPECT_FALSE(config_of("qwen3_next").moe_router_pre_softmax);
    EXPECT_TRUE(
        config_of("qwen3_next", {{"norm_topk_prob", false}}).moe_router_pre_softmax);
    EXPECT_TRUE(config_of("jamba").moe_router_pre_softmax);
}

TEST(CheckpointModel, sigmoid_is_normalised_by_the_models_default) {
    EXPECT_TRUE(config_of("deepseek_v3").moe_router_norm_topk_prob);
    EXPECT_FALSE(config_of("dots1").moe_router_norm_topk_prob);
    EXPECT_TRUE(config_of("dots1", {{"norm_topk_prob", true}}).moe_router_norm_topk_prob);
    EXPECT_FALSE(
        config_of("kimi_linear", {{"moe_renormalize", false}}).moe_router_norm_topk_prob);
}

TEST(CheckpointModel, groups_are_scored_by_their_best_two) {
    const MoEConfig usual = config_of("deepseek_v3", {{"n_group", 4}, {"topk_group", 2}});
    EXPECT_EQ(usual.moe_router_num_groups, 4);
    EXPECT_EQ(usual.moe_router_group_topk, 2);
    EXPECT_EQ(usual.moe_router_group_score_topk, std::nullopt);  // as Megatron's 4 / 2
    const MoEConfig other = config_of("deepseek_v3", {{"n_group", 4}, {"topk_group", 3}});
    EXPECT_EQ(other.moe_router_group_score_topk, 2);
    EXPECT_EQ(config_of("deepseek_v3", {{"n_group", 1}, {"topk_group", 1}})
                  .moe_router_num_groups,
              std::nullopt);
    const json limited = {{"topk_method", "group_limited_greedy"},
                          {"n_group", 4},
                          {"topk_group", 2},
                          {"routed_scaling_factor", 16.0}};
    const MoEConfig v2 = config_of("deepseek_v2", limited);
    EXPECT_EQ(v2.moe_router_group_score_topk, 1);
    EXPECT_EQ(v2.moe_router_topk_scaling_factor, 16.0);
    EXPECT_TRUE(v2.moe_router_pre_softmax);
}

TEST(CheckpointModel, shared_experts_have_a_width_or_a_count) {
    EXPECT_EQ(config_of("deepseek_v3", {{"n_shared_experts", 2}}).shared_ffn(), 18);
    EXPECT_EQ(config_of("dots1", {{"n_shared_experts", nullptr}}).shared_ffn(), 0);
    const MoEConfig qwen =
        config_of("qwen2_moe", {{"shared_expert_intermediate_size", 14}});
    EXPECT_EQ(qwen.shared_ffn(), 14);
    EXPECT_TRUE(qwen.moe_shared_expert_gate);
    EXPECT_EQ(
        config_of("granitemoeshared", {{"shared_intermediate_size", 0}}).shared_ffn(), 0);
    EXPECT_EQ(config_of("hunyuan_v1_moe", {{"moe_topk", {3, 3, 3, 2, 3, 3}},
                                           {"num_experts_per_tok", nullptr}})
                  .moe_router_topk,
              2);
}

TEST(CheckpointModel, activations) {
    EXPECT_EQ(config_of("jamba", {{"hidden_act", "gelu_pytorch_tanh"}}).activation_func,
              "gelu_tanh");
    const MoEConfig nemotron =
        config_of("nemotron_h", {{"mlp_hidden_act", "relu2"}, {"moe_latent_size", 5}});
    EXPECT_EQ(nemotron.activation_func, "squared_relu");
    EXPECT_FALSE(nemotron.gated_linear_unit);
    EXPECT_EQ(nemotron.latent_size(), 5);
    const MoEConfig gpt = config_of("gpt_oss", {{"swiglu_limit", 6.5}});
    EXPECT_EQ(gpt.activation_func, "quick_gelu");
    EXPECT_EQ(gpt.activation_func_clamp_value, 6.5);
    EXPECT_EQ(gpt.glu_linear_offset, 1.0);
    EXPECT_TRUE(gpt.add_bias_linear);
    EXPECT_EQ(refusal_of("mixtral", {{"hidden_act", "relu"}}),
              "config.json: hidden_act = \"relu\": the layer has silu, gelu, "
              "gelu_pytorch_tanh, quick_gelu, relu2");
    EXPECT_EQ(refusal_of("gpt_oss", {{"swiglu_alpha", 1.5}}),
              "config.json: swiglu_alpha = 1.5: must be 1.702, which is quick_gelu");
}

TEST(CheckpointModel, layers_that_choose_by_token_ids) {
    const json types = {"hash_moe", "hash_moe", "hash_moe", "moe", "moe", "moe"};
    const auto vocab = [&](const json& own, std::int64_t layer) {
        return model_of(fields_of("deepseek_v4", own), layer)
            .config.moe_router_hash_vocab_size;
    };
    EXPECT_EQ(vocab({{"mlp_layer_types", types}}, 2), 17);
    EXPECT_EQ(vocab({{"mlp_layer_types", types}}, 3), std::nullopt);
    EXPECT_EQ(vocab({{"num_hash_layers", 4}}, 3), 17);
    EXPECT_EQ(vocab({}, 3), std::nullopt);
}

TEST(CheckpointModel, a_decoder_within_another_model) {
    const json text = fields_of("qwen3_5_moe_text");
    const Model nested = model_of({{"model_type", "qwen3_5_moe"}, {"text_config", text}});
    EXPECT_EQ(nested.type, "qwen3_5_moe");
    json unnamed = fields_of("", {{"model_type", nullptr}});
    EXPECT_EQ(model_of({{"model_type", "kimi_k25"}, {"text_config", unnamed}}).type,
              "kimi_k25");
    const Model omni = model_of({{"model_type", "qwen3_omni_moe"},
                                 {"thinker_config",
                                  {{"model_type", "qwen3_omni_moe_thinker"},
                                   {"text_config", fields_of("qwen3_omni_moe_text")}}}});
    EXPECT_EQ(omni.type, "qwen3_omni_moe");
    EXPECT_EQ(message_of([&] {
                  model_of({{"model_type", "llama4"},
                            {"text_config", {{"model_type", "llama4_text"}}}});
              }),
              "config.json: text_config: hidden_size = absent: required: an integer");
}

TEST(CheckpointModel, megatrons_own_fields) {
    const MoEConfig before = preset("olmoe", 16);
    json fields = json::parse(config_to_json(before).dump());
    fields["expert_model_parallel_size"] = 4;
    const Model model = model_of(fields);
    EXPECT_EQ(model.type, "megatron");
    EXPECT_EQ(model.config.expert_model_parallel_size, 1);
    EXPECT_TRUE(model.config.moe_router_pre_softmax);
}

TEST(CheckpointModel, refuses_what_is_unknown_or_lacking) {
    EXPECT_THAT(refusal_of("qwen3_mo"),
                testing::StartsWith("config.json: model_type = qwen3_mo: did you mean "
                                    "qwen3_moe? known are afmoe, "));
    EXPECT_EQ(refusal_of("phimoe"),
              "config.json: model_type = phimoe: the layer lacks sparsemixer in place of "
              "top-k");
    EXPECT_EQ(refusal_of("laguna", {{"moe_router_logit_softcapping", 30.0}}),
              "config.json: moe_router_logit_softcapping = 30.0: must be 0: the layer "
              "lacks logits within a tanh");
    EXPECT_THAT(
        refusal_of("mistral4", {{"n_group", 2}}),
        testing::StartsWith("config.json: n_group = 2: must be 1: the layer lacks "
                            "a softmax over all experts that chooses groups"));
    EXPECT_THAT(refusal_of("axk2", {{"n_group", 2}, {"topk_group", 1}}),
                testing::HasSubstr("stay eligible with a key of 0"));
    EXPECT_THAT(refusal_of("cohere2_moe", {{"num_shared_experts", 1}}),
                testing::HasSubstr("shared_expert_combination_strategy = absent: must be "
                                   "sum: the layer lacks half of the sum"));
    EXPECT_THAT(refusal_of("step3p5", {{"swiglu_limits", {0, 0, 0, 7.0, 0, 0}}}),
                testing::HasSubstr("clamped after its activation"));
    EXPECT_EQ(
        refusal_of("deepseek_v3", {{"scoring_func", "softmax"}}),
        "config.json: scoring_func = \"softmax\": must be sigmoid, as in the model's "
        "code");
    EXPECT_EQ(
        refusal_of("llama4"),
        "config.json: num_experts_per_tok = 4: must be 1: the layer weighs inputs of "
        "one expert alone");
    EXPECT_EQ(refusal_of("deepseek_v3", {{"num_experts_per_tok", 1}}),
              "config.json: experts per token = 1: must be above 1 where weights are "
              "normalised");
    EXPECT_EQ(refusal_of("mixtral", {{"num_experts_per_tok", 9}}),
              "config.json: moe_router_topk = 9: must be at most num_moe_experts (8)");
    EXPECT_EQ(refusal_of("mixtral", {{"num_experts_per_tok", "4"}}),
              "config.json: num_experts_per_tok = \"4\": must be an integer");
    EXPECT_EQ(message_of([] { read_model("[1]", "config.json", 0); }),
              "config.json = no JSON object: must be a model's config");
}

TEST(CheckpointModel, says_which_layers_are_dense) {
    const auto why = [](const json& own, std::int64_t layer) {
        const std::string line = refusal_of("mixtral", own, layer);
        const std::string start = fmt::format(
            "layer = {}: must be a layer of experts, which it is not: config.json: ",
            layer);
        return line.starts_with(start) ? line.substr(start.size()) : line;
    };
    const json types = {"dense", "sparse", "dense", "sparse", "sparse", "sparse"};
    EXPECT_EQ(why({{"mlp_layer_types", types}, {"first_k_dense_replace", 5}}, 2),
              "mlp_layer_types[2] is dense");
    EXPECT_EQ(why({{"mlp_layer_types", types}, {"first_k_dense_replace", 5}}, 3), "");
    EXPECT_EQ(why({{"first_k_dense_replace", 3}}, 2), "first_k_dense_replace is 3");
    EXPECT_EQ(why({{"first_k_dense_replace", 3}}, 3), "");
    EXPECT_EQ(why({{"num_dense_layers", 1}}, 0), "num_dense_layers is 1");
    EXPECT_EQ(why({{"mlp_only_layers", {1, 4}}}, 4), "mlp_only_layers names it");
    EXPECT_EQ(why({{"mlp_only_layers", {1, 4}}}, 3), "");
    EXPECT_EQ(why({{"decoder_sparse_step", 2}}, 2), "decoder_sparse_step is 2");
    EXPECT_EQ(why({{"decoder_sparse_step", 2}}, 3), "");
    EXPECT_EQ(why({{"moe_layers", {1, 3}}}, 2), "moe_layers does not name it");
    EXPECT_EQ(why({{"moe_layers", {1, 3}}, {"interleave_moe_layer_step", 9}}, 3), "");
    EXPECT_EQ(why({{"interleave_moe_layer_step", 2}}, 2),
              "interleave_moe_layer_step is 2");
    EXPECT_EQ(why({{"moe_layers_enum", "3,4"}}, 2), "moe_layers_enum does not name it");
    EXPECT_EQ(why({{"moe_layers_enum", "3,4"}}, 4), "");
    EXPECT_EQ(why({{"moe_layer_freq", 2}}, 3), "moe_layer_freq is 2");
    EXPECT_EQ(why({{"moe_layer_freq", {0, 1, 1, 0, 1, 1}}}, 3), "moe_layer_freq[3] is 0");
    EXPECT_EQ(why({{"moe_layer_freq", {0, 1, 1, 0, 1, 1}}}, 4), "");
    EXPECT_EQ(why({{"expert_layer_period", 2}, {"expert_layer_offset", 1}}, 2),
              "expert_layer_period is 2");
    EXPECT_EQ(why({{"expert_layer_period", 2}, {"expert_layer_offset", 1}}, 3), "");
    EXPECT_EQ(why({{"moe_layer_start_index", 2}, {"moe_layer_end_index", -1}}, 1),
              "moe_layer_start_index is 2");
    EXPECT_EQ(why({{"moe_layer_start_index", 2}}, 2), "");
    EXPECT_EQ(why({{"hybrid_override_pattern", "M-EE*E"}}, 4),
              "hybrid_override_pattern has no E there");
    EXPECT_EQ(why({{"hybrid_override_pattern", "M-EE*E"}}, 3), "");
    const json blocks = {"mamba", "moe", "attention", "moe", "moe", "moe"};
    EXPECT_EQ(why({{"layers_block_type", blocks}}, 2),
              "layers_block_type[2] is attention");
    EXPECT_EQ(why({{"layers_block_type", blocks}}, 1), "");
}

}  // namespace
}  // namespace moe::test
