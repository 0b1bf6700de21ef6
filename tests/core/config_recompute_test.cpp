// What a config says of recompute: Megatron's rules, as far as they are this layer's.

#include "tests/core/config_support.h"

namespace moe::test {
namespace {

TEST(ConfigRules, RecomputesWhatMegatronWould) {
    const std::string selective = R"({"recompute_granularity": "selective", )";
    expect_accepted(
        {R"({"recompute_granularity": "selective"})",
         selective + R"("recompute_modules": ["moe_act"], "moe_grouped_gemm": true})",
         selective + R"("recompute_modules": ["shared_experts", "moe"],
                        "moe_shared_expert_intermediate_size": 4})",
         // Without shared experts there is nothing to overlap, and nothing to run again
         selective + R"("recompute_modules": ["shared_experts"],
                        "moe_shared_expert_overlap": true})",
         // Of layers of other kinds
         selective + R"("recompute_modules": ["core_attn", "layernorm", "mla_up_proj",
                        "mlp", "gdn_norm_out"]})",
         // As Megatron's own configs have it: without a granularity it means nothing
         R"({"recompute_modules": ["moe_act"]})"});
    expect_rejected({
        {R"({"recompute_granularity": "full"})", "recompute_granularity = full: ",
         "full would run whole transformer layers again"},
        {R"({"recompute_granularity": "selectiv"})",
         "recompute_granularity = selectiv: ", "did you mean selective?"},
        {selective + R"("recompute_modules": ["moe", "moe_acts"]})",
         "recompute_modules = moe_acts: ", "did you mean moe_act?"},
        {R"({"recompute_modules": ["attention"]})", "recompute_modules = attention: ",
         "allowed are core_attn, moe_act, layernorm, mla_up_proj, mlp, moe, "
         "shared_experts, gdn_norm_out"},
        {selective + R"("recompute_modules": ["moe_act"]})",
         "recompute_modules = moe_act: ", "needs moe_grouped_gemm"},
        {selective + R"("recompute_modules": ["shared_experts"],
                        "moe_shared_expert_intermediate_size": 4,
                        "moe_shared_expert_overlap": true})",
         "recompute_modules = shared_experts: ", "needs moe_shared_expert_overlap false"},
    });
    EXPECT_TRUE(Rejects([] { changed(R"({"moe_layer_recompute": true})"); },
                        {"moe_layer_recompute = true: not here: use "
                         "recompute_granularity selective and recompute_modules moe"}));
}

TEST(Config, SaysThatModulesNeedAGranularity) {
    const auto warnings = changed(R"({"recompute_modules": ["moe"]})").warnings();
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_EQ(warnings[0],
              "recompute_modules does nothing without recompute_granularity selective");
    EXPECT_TRUE(changed(R"({"recompute_modules": ["core_attn"]})").warnings().empty());
    EXPECT_TRUE(changed(R"({"recompute_granularity": "selective",
                            "recompute_modules": ["moe"]})")
                    .warnings()
                    .empty());
}

}  // namespace
}  // namespace moe::test
