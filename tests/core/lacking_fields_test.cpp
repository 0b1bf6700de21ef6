// A run's own config: fields of Megatron's that are not here, and other programs' names.

#include "core/lacking_fields.h"

#include <nlohmann/json.hpp>

#include "core/config.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;

MoEConfig read_text(const std::string& text) {
    return config_from_json(json::parse(text), "c.json");
}

TEST(LackingFields, AreTakenWhereTheyAreOff) {
    // As Megatron-Core 0.19.2 has them when nobody says a word
    const json defaults = json::parse(R"({
        "use_grouped_gemm_for_shared_expert": false, "moe_layer_freq": 1,
        "moe_router_topk_limited_devices": null,
        "use_grouped_gemm_for_dense_mlp": false, "moe_single_grouped_weight": false,
        "moe_single_grouped_bias": false, "moe_token_dropping": false,
        "moe_permute_fusion_into_hybridep": false,
        "moe_hybridep_pad_uneven_dispatch_inputs": false,
        "moe_per_layer_logging": false,
        "moe_pad_experts_for_cuda_graph_inference": false, "moe_layer_recompute": false,
        "moe_flex_dispatcher_num_sms": null, "moe_deepep_num_sms": null,
        "moe_hybridep_num_sms": null, "moe_hybridep_num_blocks_permute": null,
        "moe_hybridep_num_blocks_unpermute": null,
        "moe_hybridep_num_sms_preprocessing": 108, "moe_ncclep_static_shape": false,
        "moe_ncclep_zero_copy": false,
        "inference_moe_disable_fused_quant_kernels": false,
        "inference_moe_token_dispatcher_type": "nvls", "moe_paged_stash": false,
        "moe_paged_stash_page_size": 64, "moe_paged_stash_buffer_size_factor_cuda": 1.10,
        "moe_paged_stash_buffer_size_factor_cpu": 0.0,
        "expert_tensor_parallel_num_weight_shards": null,
        "expert_gtp_weight_remat_size": 1, "moe_grad_scale_func": null,
        "overlap_moe_expert_parallel_comm": false, "moe_use_upcycling": false,
        "moe_upcycling_granularity": 1})");
    EXPECT_EQ(config_to_json(config_from_json(defaults, "")),
              config_to_json(MoEConfig{}));
    for (const auto& [name, value] : defaults.items()) {
        EXPECT_TRUE(is_off(name, value)) << name;
        EXPECT_TRUE(is_off(name, nullptr)) << name;
        EXPECT_FALSE(is_off(name, 3)) << name;
        EXPECT_TRUE(Rejects(
            [&] {
                config_from_json({{name, 3}}, "c.json");
            },
            {"c.json: " + name + " = 3: not here: "}));
    }
    EXPECT_FALSE(is_off("moe_magic", nullptr));
    for (const FieldInfo& field : config_fields()) {
        EXPECT_EQ(why_not_here(field.name), "") << "it is here";
        EXPECT_FALSE(is_off(field.name, nullptr)) << field.name;
    }
}

TEST(LackingFields, AreRefusedWithWhatTheyWouldDo) {
    EXPECT_TRUE(Rejects([] { read_text(R"({"moe_paged_stash": true})"); },
                        {"c.json: moe_paged_stash = true: not here: it would keep "
                         "experts' activations in pages until the backward; leave it "
                         "out"}));
    EXPECT_TRUE(Rejects([] { read_text(R"({"moe_layer_freq": [0, 1]})"); },
                        {"moe_layer_freq = [0,1]: not here: it would say which layers"}));
    EXPECT_NE(why_not_here("moe_permute_fusion_into_hybridep").find("moe_permute_fusion"),
              std::string::npos);
}

// One go: who mends the first is not to meet the next.
TEST(LackingFields, AreRefusedTogether) {
    EXPECT_TRUE(Rejects(
        [] {
            read_text(R"({"num_layers": 2, "hidden_size": "x", "moe_paged_stash": true,
                          "seq_length": 8, "moe_router_topk": 2,
                          "moe_per_layer_logging": true, "num_experts": 8})");
        },
        {"c.json: hidden_size = \"x\": must be an integer; "
         "moe_paged_stash = true: not here: it would keep experts' activations in pages "
         "until the backward; leave it out; "
         "moe_per_layer_logging = true: not here: it would log the losses layer by "
         "layer; "
         "leave it out; "
         "num_experts = 8: not here: Megatron's field is num_moe_experts; "
         "num_layers = 2, seq_length = 8: no such config field here"}));
    json many;
    for (int i = 10; i < 30; ++i) many["unknown_" + std::to_string(i)] = i;
    EXPECT_TRUE(Rejects([&] { config_from_json(many, ""); },
                        {"unknown_10 = 10, ", "unknown_21 = 21 and 8 more: no such"}));
}

TEST(OtherNames, LeadToMegatrons) {
    for (const auto& [name, field] :
         {std::pair{"num_experts", "num_moe_experts"},
          {"num_experts_per_tok", "moe_router_topk"},
          {"moe_intermediate_size", "moe_ffn_hidden_size"},
          {"n_group", "moe_router_num_groups"},
          {"disable_bias_linear", "add_bias_linear, the other way round"}})
        EXPECT_TRUE(Rejects(
            [&] {
                config_from_json({{name, 1}}, "c.json");
            },
            {std::string("c.json: ") + name + " = 1: not here: Megatron's field is " +
             field}));
}

}  // namespace
}  // namespace moe::test
