// The config: Megatron's defaults, every rule both ways, reading and writing.

#include "core/config.h"

#include <nlohmann/json.hpp>

#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;

/// Reads `changes` over a config that is fine, and finalizes it.
MoEConfig changed(const json& changes) {
    json fields = {{"hidden_size", 16},
                   {"num_moe_experts", 8},
                   {"moe_ffn_hidden_size", 12},
                   {"gated_linear_unit", true},
                   {"activation_func", "silu"},
                   {"add_bias_linear", false},
                   {"moe_token_dispatcher_type", "alltoall"}};
    fields.update(changes);
    MoEConfig config = config_from_json(fields, "");
    config.finalize();
    return config;
}

/// A change that is rejected with these words, or accepted when there are none.
struct Rule {
    std::string name;
    json changes;
    std::vector<std::string> words;
    friend void PrintTo(const Rule& rule, std::ostream* out) { *out << rule.changes; }
};

const std::vector<Rule> kRules = {
    {"no_hidden", {{"hidden_size", 0}}, {"hidden_size = 0", "positive"}},
    {"huge_hidden", {{"hidden_size", INT64_MAX}}, {"hidden_size", "2^31"}},
    {"no_experts", {{"num_moe_experts", nullptr}}, {"num_moe_experts", "required"}},
    {"zero_experts", {{"num_moe_experts", 0}}, {"num_moe_experts = 0"}},
    {"negative_ffn", {{"moe_ffn_hidden_size", -4}}, {"moe_ffn_hidden_size = -4"}},
    {"topk_0", {{"moe_router_topk", 0}}, {"moe_router_topk = 0"}},
    {"topk_all", {{"moe_router_topk", 8}}, {}},
    {"topk_above", {{"moe_router_topk", 9}}, {"moe_router_topk = 9", "(8)"}},
    {"softmax_k1", {{"moe_router_topk", 1}}, {"moe_router_topk = 1", "pre_softmax"}},
    {"pre_softmax_k1", {{"moe_router_topk", 1}, {"moe_router_pre_softmax", true}}, {}},
    {"sigmoid_k1",
     {{"moe_router_topk", 1}, {"moe_router_score_function", "sigmoid"}},
     {}},
    {"sinkhorn_k1",
     {{"moe_router_topk", 1}, {"moe_router_load_balancing_type", "sinkhorn"}},
     {}},
    {"score", {{"moe_router_score_function", "tanh"}}, {"= tanh", "sqrtsoftplus"}},
    {"router_dtype", {{"moe_router_dtype", "bf16"}}, {"moe_router_dtype = bf16", "fp32"}},
    {"bias_softmax",
     {{"moe_router_enable_expert_bias", true}},
     {"sigmoid or sqrtsoftplus"}},
    {"groups_alone", {{"moe_router_group_topk", 1}}, {"needs moe_router_num_groups"}},
    {"groups_uneven",
     {{"moe_router_num_groups", 3}},
     {"must divide num_moe_experts (8)"}},
    {"groups_topk",
     {{"moe_router_num_groups", 4}, {"moe_router_group_topk", 5}, {"moe_router_topk", 5}},
     {"moe_router_group_topk = 5", "(4)"}},
    {"groups_k_below",
     {{"moe_router_num_groups", 4}, {"moe_router_group_topk", 3}},
     {"moe_router_topk = 2", "at least", "(3)"}},
    {"groups_k_above",
     {{"moe_router_num_groups", 4}, {"moe_router_group_topk", 1}, {"moe_router_topk", 3}},
     {"moe_router_topk = 3", "at most 2"}},
    {"groups_k_edge", {{"moe_router_num_groups", 4}, {"moe_router_group_topk", 1}}, {}},
    {"groups_k_odd",
     {{"moe_router_num_groups", 2}, {"moe_router_group_topk", 2}, {"moe_router_topk", 3}},
     {}},
    {"activation",
     {{"activation_func", "relu"}},
     {"activation_func = relu", "squared_relu"}},
    {"clamp_zero", {{"activation_func_clamp_value", 0.0}}, {"finite and positive"}},
    {"clamp_offset",
     {{"activation_func_clamp_value", 1.0}, {"glu_linear_offset", 1.0}},
     {"glu_linear_offset = 1", "SwiGLU"}},
    {"clamp_offset_geglu",
     {{"activation_func_clamp_value", 1.0},
      {"glu_linear_offset", 1.0},
      {"activation_func", "quick_gelu"}},
     {}},
    {"on_input_k2", {{"moe_apply_probs_on_input", true}}, {"moe_router_topk = 2"}},
    {"shared_zero", {{"moe_shared_expert_intermediate_size", 0}}, {"= 0", "positive"}},
    {"shared_bias",
     {{"moe_shared_expert_intermediate_size", 4}, {"add_bias_linear", true}},
     {"add_bias_linear = true", "must be false"}},
    {"balancing", {{"moe_router_load_balancing_type", "magic"}}, {"= magic", "sinkhorn"}},
    {"quantile",
     {{"moe_router_load_balancing_type", "quantile_balancing"}},
     {"not built"}},
    {"twice",
     {{"moe_router_load_balancing_type", {"aux_loss", "aux_loss"}},
      {"moe_aux_loss_coeff", {1, 1}}},
     {"once"}},
    {"coeff_count",
     {{"moe_router_load_balancing_type", {"aux_loss", "seq_aux_loss"}}},
     {"moe_aux_loss_coeff", "as many entries", "(2)"}},
    {"coeff_list", {{"moe_aux_loss_coeff", {0.1, 0.2}}}, {"as many entries", "(1)"}},
    {"coeff_one", {{"moe_aux_loss_coeff", {0.1}}}, {}},
    {"coeff_negative", {{"moe_aux_loss_coeff", -0.1}}, {"-0.1", "not negative"}},
    {"z_negative", {{"moe_z_loss_coeff", -1}}, {"moe_z_loss_coeff = -1"}},
    {"sinkhorn_coeff",
     {{"moe_router_load_balancing_type", "sinkhorn"}, {"moe_aux_loss_coeff", 0.1}},
     {"must be 0 with sinkhorn"}},
    {"sinkhorn_pair",
     {{"moe_router_load_balancing_type", {"sinkhorn", "aux_loss"}},
      {"moe_aux_loss_coeff", {0, 0}}},
     {"stand alone"}},
    {"sinkhorn_capacity",
     {{"moe_router_load_balancing_type", "sinkhorn"}, {"moe_expert_capacity_factor", 1}},
     {"moe_expert_capacity_factor = 1"}},
    {"pad_alone",
     {{"moe_pad_expert_input_to_capacity", true}},
     {"needs moe_expert_capacity"}},
    {"policy", {{"moe_token_drop_policy", "random"}}, {"= random", "position"}},
    {"allgather",
     {{"moe_token_dispatcher_type", "allgather"}},
     {"allgather", "alltoall"}},
    {"flex", {{"moe_token_dispatcher_type", "flex"}}, {"flex", "only alltoall"}},
    {"dispatcher", {{"moe_token_dispatcher_type", "mail"}}, {"= mail", "allgather"}},
    {"ranks_ep", {{"expert_model_parallel_size", 2}}, {"expert_model_parallel_size = 2"}},
    {"ranks_tp", {{"tensor_model_parallel_size", 2}}, {"tensor_model_parallel_size = 2"}},
    {"ranks_etp",
     {{"expert_tensor_parallel_size", 2}},
     {"expert_tensor_parallel_size = 2"}},
    {"ranks_cp", {{"context_parallel_size", 2}}, {"context_parallel_size = 2"}},
    {"unknown",
     {{"moe_router_magic", 3}},
     {"moe_router_magic = 3", "no such config field"}},
    {"float_as_int", {{"moe_router_topk", 2.5}}, {"moe_router_topk = 2.5", "integer"}},
    {"bool_as_int", {{"moe_router_topk", true}}, {"= true", "integer"}},
    {"int_as_bool",
     {{"gated_linear_unit", 1}},
     {"gated_linear_unit = 1", "true or false"}},
    {"text_as_number",
     {{"glu_linear_offset", "1"}},
     {"glu_linear_offset = \"1\"", "number"}},
    {"int_as_number", {{"glu_linear_offset", 1}, {"activation_func", "gelu"}}, {}},
    {"number_as_text", {{"activation_func", 3}}, {"activation_func = 3", "string"}},
    {"huge_int", {{"moe_router_topk", UINT64_MAX}}, {"integer"}},
    {"empty_list", {{"moe_aux_loss_coeff", json::array()}}, {"empty list"}},
    {"nested_list", {{"moe_aux_loss_coeff", {{1}}}}, {"moe_aux_loss_coeff = [[1]]"}},
    {"null_for_bool", {{"gated_linear_unit", nullptr}}, {"gated_linear_unit = null"}},
    {"null_for_optional", {{"moe_z_loss_coeff", nullptr}}, {}},
    {"one_element_list", {{"moe_router_load_balancing_type", {"none"}}}, {}},
};

class ConfigRules : public testing::TestWithParam<Rule> {};

TEST_P(ConfigRules, Hold) {
    const Rule& rule = GetParam();
    if (rule.words.empty())
        EXPECT_NO_THROW(changed(rule.changes));
    else
        EXPECT_TRUE(Rejects([&] { changed(rule.changes); }, rule.words));
}

INSTANTIATE_TEST_SUITE_P(Config, ConfigRules, testing::ValuesIn(kRules),
                         [](const testing::TestParamInfo<Rule>& info) {
                             return info.param.name;
                         });

TEST(Config, HasMegatronsDefaults) {
    const MoEConfig c;
    EXPECT_EQ(c.moe_router_topk, 2);
    EXPECT_EQ(c.moe_router_score_function, "softmax");
    EXPECT_FALSE(c.moe_router_pre_softmax);
    EXPECT_EQ(c.moe_router_load_balancing_type, std::vector<std::string>{"aux_loss"});
    EXPECT_EQ(c.moe_aux_loss_coeff, std::vector<double>{0.0});
    EXPECT_EQ(c.moe_router_bias_update_rate, 1e-3);
    EXPECT_EQ(c.moe_token_dispatcher_type, "allgather");
    EXPECT_EQ(c.moe_token_drop_policy, "probs");
    EXPECT_EQ(c.activation_func, "gelu");
    EXPECT_FALSE(c.gated_linear_unit);
    EXPECT_TRUE(c.add_bias_linear);
}

TEST(Config, DerivesWhatIsNotGiven) {
    MoEConfig c = changed({{"moe_ffn_hidden_size", nullptr}});
    EXPECT_EQ(c.ffn(), 64);  // 4 H
    EXPECT_EQ(changed({{"moe_ffn_hidden_size", nullptr}, {"ffn_hidden_size", 7}}).ffn(),
              7);
    EXPECT_FALSE(
        changed({{"moe_expert_capacity_factor", -1}}).moe_expert_capacity_factor);
    EXPECT_EQ(c.aux_loss_coeff("seq_aux_loss"), 0.0);
    c = changed({{"moe_router_load_balancing_type", {"aux_loss", "seq_aux_loss"}},
                 {"moe_aux_loss_coeff", {0.5, 0.25}}});
    EXPECT_EQ(c.aux_loss_coeff("seq_aux_loss"), 0.25);
}

TEST(Config, ComesBackFromJson) {
    for (const std::string& name : preset_names()) {
        MoEConfig config = preset(name, 4);
        config.finalize();
        const auto written = config_to_json(config);
        EXPECT_EQ(written.size(), config_fields().size());
        EXPECT_EQ(config_to_json(config_from_json(json(written), "")), written) << name;
    }
    EXPECT_TRUE(Rejects([] { config_from_json(json::array({1}), "f.json"); },
                        {"f.json", "JSON object"}));
}

TEST(Presets, ShrinkWidthsOnly) {
    for (const std::string& name : preset_names()) {
        const MoEConfig full = preset(name, 1), small = preset(name, 16);
        EXPECT_EQ(small.hidden_size, full.hidden_size / 16);
        EXPECT_EQ(small.ffn(), full.ffn() / 16);
        EXPECT_EQ(small.num_experts(), full.num_experts());
        EXPECT_EQ(small.moe_router_topk, full.moe_router_topk);
    }
    EXPECT_TRUE(Rejects([] { preset("gpt5", 1); }, {"preset = gpt5", "mixtral_8x7b"}));
    EXPECT_TRUE(Rejects([] { preset("olmoe", 0); }, {"scale = 0"}));
    EXPECT_TRUE(Rejects([] { preset("olmoe", 2000); }, {"scale = 2000", "1024"}));
}

TEST(Config, WarnsOfManyExpertsInLowPrecision) {
    EXPECT_TRUE(changed(json::object()).warnings().empty());
    EXPECT_EQ(changed({{"num_moe_experts", 32}}).warnings().size(), 1u);
    EXPECT_TRUE(changed({{"num_moe_experts", 32}, {"moe_router_dtype", "fp32"}})
                    .warnings()
                    .empty());
}

}  // namespace
}  // namespace moe::test
