// What a config says of flex: Megatron's back-ends, and fields that are flex's alone.

#include "tests/core/config_support.h"

namespace moe::test {
namespace {

TEST(ConfigRules, BackEndsOfFlexAreMegatrons) {
    const std::string flex =
        R"({"num_moe_experts": 6, "expert_model_parallel_size": 3,
            "moe_token_dispatcher_type": "flex", )";
    expect_accepted({flex + R"("moe_enable_deepep": true})",
                     flex + R"("moe_flex_dispatcher_backend": "hybridep",
                               "moe_expert_capacity_factor": 1.0})",
                     flex + R"("moe_flex_dispatcher_backend": "ncclep"})",
                     R"({"moe_flex_dispatcher_backend": "hybridep"})"});
    expect_rejected({
        {flex + R"("moe_flex_dispatcher_backend": "nvep"})",
         "moe_flex_dispatcher_backend = nvep: ", "deepep, hybridep, ncclep"},
        {R"({"moe_enable_deepep": true})",
         "moe_enable_deepep = true: ", "needs moe_token_dispatcher_type flex"},
        {R"({"moe_flex_dispatcher_backend": "ncclep"})",
         "moe_flex_dispatcher_backend = ncclep: ", "moe_token_dispatcher_type flex"},
        {flex +
             R"("moe_enable_deepep": true, "moe_flex_dispatcher_backend": "hybridep"})",
         "moe_enable_deepep = true: ",
         "must be false with moe_flex_dispatcher_backend hybridep"},
        {flex + R"("moe_flex_dispatcher_backend": "ncclep",
                   "moe_expert_capacity_factor": 1.5})",
         "moe_expert_capacity_factor = 1.5: ",
         "must be left out with moe_flex_dispatcher_backend ncclep"},
        {flex + R"("moe_flex_dispatcher_backend": "hybridep",
                   "moe_expert_capacity_factor": 1.5,
                   "moe_pad_expert_input_to_capacity": true})",
         "moe_pad_expert_input_to_capacity = true: ", "HybridEP"},
    });
}

TEST(Config, SaysWhatABackEndMeansHere) {
    const auto warnings = [](const std::string& fields) {
        return changed(R"({"num_moe_experts": 6, "expert_model_parallel_size": 3,
                           "moe_token_dispatcher_type": "flex")" +
                       fields + "}")
            .warnings();
    };
    EXPECT_TRUE(warnings("").empty());
    const auto deprecated = warnings(R"(, "moe_enable_deepep": true)");
    ASSERT_EQ(deprecated.size(), 1u);
    EXPECT_NE(deprecated[0].find("use moe_flex_dispatcher_backend deepep"),
              std::string::npos);
    const auto rules = warnings(R"(, "moe_flex_dispatcher_backend": "ncclep")");
    ASSERT_EQ(rules.size(), 1u);
    EXPECT_NE(rules[0].find("own kernels"), std::string::npos);
}

TEST(Config, TakesAnotherDispatcherWithoutWhatIsFlexs) {
    MoEConfig config = changed(R"({"num_moe_experts": 6, "expert_model_parallel_size": 3,
        "moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "ncclep",
        "moe_flex_peer_heap_bytes": 5})");
    EXPECT_EQ(config_to_json(config.with_dispatcher("flex")), config_to_json(config));
    MoEConfig other = config.with_dispatcher("allgather");
    other.finalize();
    config = changed(R"({"num_moe_experts": 6, "expert_model_parallel_size": 3,
        "moe_token_dispatcher_type": "allgather"})");
    EXPECT_EQ(config_to_json(other), config_to_json(config));
    config = changed(R"({"num_moe_experts": 6, "expert_model_parallel_size": 3,
        "moe_token_dispatcher_type": "flex", "moe_enable_deepep": true})");
    EXPECT_NO_THROW(config.with_dispatcher("alltoall").finalize());
}

}  // namespace
}  // namespace moe::test
