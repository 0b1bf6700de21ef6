// Experts that somebody else gives: the fields, the table among the parameters, and what
// is refused before a token is seen.

#include "core/given_experts.h"

#include <nlohmann/json.hpp>
#include <set>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;

/// A layer of eight experts with these fields, finalized.
MoEConfig eight_experts(const std::string& fields) {
    json all = json::parse(R"({"hidden_size": 8, "num_moe_experts": 8})");
    all.update(json::parse(fields));
    MoEConfig config = config_from_json(all, "");
    config.finalize();
    return config;
}

TEST(GivenExpertsConfig, LeavesTheChoiceToNobodyElse) {
    for (const char* fields :
         {R"({"moe_router_hash_vocab_size": 1})",
          R"({"moe_router_hash_vocab_size": 9, "moe_router_fusion": true,
              "moe_enable_routing_replay": true, "moe_aux_loss_coeff": 0.5,
              "moe_expert_capacity_factor": 1})",
          R"({"moe_enable_routing_replay": true, "moe_router_num_groups": 4,
              "moe_router_group_topk": 2, "moe_router_score_function": "sigmoid",
              "moe_router_enable_expert_bias": true})"})
        EXPECT_NO_THROW(eight_experts(fields)) << fields;
    const auto rejects = [](const std::string& fields, const std::string& words) {
        return Rejects([&] { eight_experts(fields); }, {words});
    };
    EXPECT_TRUE(rejects(R"({"moe_router_hash_vocab_size": 0})",
                        "moe_router_hash_vocab_size = 0: must be positive"));
    const std::string hash = R"({"moe_router_hash_vocab_size": 9, )";
    const std::string refused = "moe_router_hash_vocab_size = 9: must be left out with ";
    EXPECT_TRUE(rejects(hash + R"("moe_router_num_groups": 4})",
                        refused + "moe_router_num_groups: "));
    EXPECT_TRUE(rejects(hash + R"("moe_router_score_function": "sigmoid",
                                  "moe_router_enable_expert_bias": true})",
                        refused + "moe_router_enable_expert_bias: "));
    for (const std::string type : {"sinkhorn", "quantile_balancing"}) {
        const std::string balanced =
            R"("moe_router_load_balancing_type": ")" + type + "\"}";
        EXPECT_TRUE(rejects(hash + balanced, refused + type));
        EXPECT_TRUE(
            rejects(R"({"moe_enable_routing_replay": true, )" + balanced,
                    "moe_enable_routing_replay = true: must be false with " + type));
    }
}

TEST(GivenExpertsConfig, DrawsATableOfDifferentExperts) {
    const MoEConfig config =
        eight_experts(R"({"moe_router_hash_vocab_size": 1001, "moe_router_topk": 3})");
    EXPECT_EQ(parameter_shapes(config).at(kTid2Eid), (Shape{1001, 3}));
    EXPECT_TRUE(is_buffer(kTid2Eid));
    const TensorMap parameters = random_parameters(config, 1);
    EXPECT_NO_THROW(check_parameters(config, parameters, ""));
    const Tensor& table = parameters.at(kTid2Eid);
    EXPECT_EQ(table.dtype(), DType::i64);
    EXPECT_TRUE(BitwiseEqual(table, random_parameters(config, 1).at(kTid2Eid)));
    EXPECT_FALSE(BitwiseEqual(table, random_parameters(config, 2).at(kTid2Eid)));
    // Every expert in every place, about as often: five standard deviations
    for (std::int64_t k = 0; k < 3; ++k) {
        std::vector<int> counts(8);
        for (std::int64_t v = 0; v < 1001; ++v)
            ++counts[table.data<std::int64_t>()[v * 3 + k]];
        for (const int count : counts) EXPECT_NEAR(count, 1001 / 8.0, 5 * 10.5);
    }
}

TEST(GivenExpertsConfig, ChecksTheTable) {
    const MoEConfig config = eight_experts(R"({"moe_router_hash_vocab_size": 3})");
    TensorMap parameters = random_parameters(config, 1);
    const auto rejects = [&](const Tensor& table, const std::string& words) {
        parameters[kTid2Eid] = table;
        return Rejects([&] { check_parameters(config, parameters, "f"); }, {words});
    };
    EXPECT_TRUE(rejects(Tensor::from<std::int64_t>({3, 2}, {0, 1, 2, 3, 7, 8}),
                        "f: router.tid2eid[2, 1] = 8: must be an expert, from 0 to 7"));
    EXPECT_TRUE(rejects(Tensor::from<std::int32_t>({3, 2}, {0, 1, 2, 2, 7, 0}),
                        "f: router.tid2eid[1, 1] = 2: must not name an expert of its row "
                        "again"));
    EXPECT_TRUE(rejects(Tensor::zeros({3, 2}, DType::f32), "f: router.tid2eid = fp32"));
    EXPECT_TRUE(rejects(Tensor::zeros({2, 3}, DType::i64),
                        "f: router.tid2eid = shape (2, 3): must have shape (3, 2)"));
    parameters[kTid2Eid] = Tensor::from<std::int32_t>({3, 2}, {0, 1, 2, 1, 7, 0});
    EXPECT_NO_THROW(check_parameters(config, parameters, "f"));
    parameters.erase(kTid2Eid);
    EXPECT_TRUE(Rejects([&] { check_parameters(config, parameters, "f"); },
                        {"f: router.tid2eid = absent: required, with shape (3, 2)"}));
}

}  // namespace
}  // namespace moe::test
