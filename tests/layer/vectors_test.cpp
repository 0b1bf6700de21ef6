// Small worked vectors that Megatron's own functions gave in fp32: six tokens, four
// experts.

#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;
using Values = std::vector<double>;
constexpr std::int64_t kTokens = 6, kExperts = 4;
constexpr double kBound = 1e-6;

const json& vectors() {
    static const json all = [] {
        json read;
        std::ifstream(golden_folder() + "/vectors.json") >> read;
        return read;
    }();
    return all;
}

Values flat(const json& rows) {
    Values values;
    for (const json& row : rows)
        for (const json& value : row) values.push_back(value.get<double>());
    return values;
}

Tensor matrix(const json& rows) {
    return Tensor::from({std::int64_t(rows.size()), std::int64_t(rows[0].size())},
                        flat(rows));
}

// A vector that comes to the file must come to a test.
TEST(Vectors, AreAllKnownHere) {
    std::set<std::string> names;
    for (const auto& [name, value] : vectors().items()) names.insert(name);
    EXPECT_EQ(names, (std::set<std::string>{"logits",
                                            "softmax_post",
                                            "softmax_pre",
                                            "sigmoid",
                                            "sqrtsoftplus",
                                            "sigmoid_bias_scale2.5",
                                            "pre_group2_top1",
                                            "sigmoid_k1",
                                            "sinkhorn",
                                            "z_loss_1e-3",
                                            "aux_softmax",
                                            "aux_sigmoid",
                                            "aux_sqrtsoftplus",
                                            "seq_aux_S3B2_coeff0.01",
                                            "aux_softmax_pad_last2",
                                            "z_pad_last2",
                                            "capacity_T6K2E4_cf0.7",
                                            "drop_probs_cf0.7_padFalse",
                                            "drop_probs_cf0.7_padTrue",
                                            "permute_pre",
                                            "permute_droppad",
                                            "wswiglu",
                                            "wswiglu_clamp0.4",
                                            "wquickgeglu_off1",
                                            "wsqrelu",
                                            "pad_routing_map_4",
                                            "qb_beta0"}));
}

/// Routes the vectors' logits: the weight is the identity, so they arrive as they are.
class VectorsTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    Router::Output route(std::int64_t S = kTokens, std::int64_t B = 1,
                         const Tensor& mask = {}, TensorMap parameters = {}) {
        parameters["router.weight"] = identity_matrix(kExperts);
        const auto router = make_router(GetParam(), config_, parameters);
        const Tensor hidden = transfer(matrix(vectors()["logits"]), router->placement());
        return router->forward(hidden.reshaped({S, B, kExperts}),
                               transfer(mask, router->placement()),
                               {.observer = &values_});
    }

    void expect_routing(const std::string& name, const TensorMap& parameters = {}) {
        const auto output = route(kTokens, 1, {}, parameters);
        EXPECT_TRUE(Close(output.probs, matrix(vectors()[name]["probs"]), bound_))
            << name;
        EXPECT_EQ(to_doubles(output.routing_map), flat(vectors()[name]["map"])) << name;
    }

    MoEConfig config_ = small_config(kExperts, kExperts, 2);
    ValueRecorder values_;
    // The vectors have eight digits; a tier in bf16 does not.
    const double bound_ = size_of(GetParam().dtype) < 4 ? bound_of(GetParam()) : kBound;
};

TEST_P(VectorsTest, Routing) {
    expect_routing("softmax_post");
    config_.moe_router_pre_softmax = true;
    expect_routing("softmax_pre");
    config_.moe_router_num_groups = 2;
    config_.moe_router_group_topk = 1;
    expect_routing("pre_group2_top1");
    config_ = small_config(kExperts, kExperts, 2);
    config_.moe_router_score_function = "sqrtsoftplus";
    expect_routing("sqrtsoftplus");
    config_.moe_router_score_function = "sigmoid";
    expect_routing("sigmoid");
    config_.moe_router_enable_expert_bias = true;
    config_.moe_router_topk_scaling_factor = 2.5;
    expect_routing(
        "sigmoid_bias_scale2.5",
        {{"router.expert_bias", Tensor::from<float>({4}, {0.0f, 0.3f, 0.2f, -0.4f})}});
    config_ = small_config(kExperts, kExperts, 1);
    config_.moe_router_score_function = "sigmoid";
    expect_routing("sigmoid_k1");
}

TEST_P(VectorsTest, QuantileBalancing) {
    config_.moe_router_load_balancing_type = {"quantile_balancing"};
    route();
    const json& expected = vectors()["qb_beta0"];
    EXPECT_EQ(to_doubles(values_.at("topk_idx")), flat(expected["indices"]));
    EXPECT_TRUE(Close(values_.at("qb_beta_local"),
                      Tensor::from({kExperts}, expected["beta_local"].get<Values>()),
                      bound_));
}

TEST_P(VectorsTest, AuxiliaryLosses) {
    const json& v = vectors();
    const auto expect = [&](double got, const json& expected) {
        EXPECT_NEAR(got, expected.get<double>(), bound_ * expected.get<double>());
    };
    const std::string aux = "load_balancing_loss", seq = "seq_load_balancing_loss";
    config_.moe_z_loss_coeff = 1e-3;
    config_.moe_router_load_balancing_type = {"aux_loss"};
    config_.moe_aux_loss_coeff = {0.01};
    expect(1e-3 * route().losses.read().at("z_loss"), v["z_loss_1e-3"]);
    for (const std::string function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        config_.moe_router_score_function = function;
        const json& expected = v["aux_" + function];
        expect(0.01 * route().losses.read().at(aux), expected["loss_coeff0.01"]);
        const Tensor& scores = values_.at("aux_scores");
        EXPECT_TRUE(Close(scores, matrix(expected["scores"]), bound_)) << function;
        // Their own top two, whatever the routing chose.
        const Values s = to_doubles(scores), map = flat(expected["map"]);
        for (std::size_t i = 0; i < s.size(); ++i) {
            int better = 0;
            for (int e = 0; e < kExperts; ++e) better += s[i / 4 * 4 + e] > s[i];
            EXPECT_EQ(map[i], better < 2) << function << i;
        }
    }
    config_.moe_router_score_function = "softmax";
    const Tensor last_two = Tensor::from<std::uint8_t>({6, 1}, {0, 0, 0, 0, 1, 1});
    const Losses padded = route(kTokens, 1, last_two).losses.read();
    expect(1e-3 * padded.at("z_loss"), v["z_pad_last2"]);
    expect(0.01 * padded.at(aux), v["aux_softmax_pad_last2"]);
    config_.moe_router_load_balancing_type = {"seq_aux_loss"};
    expect(0.01 * route(3, 2).losses.read().at(seq), v["seq_aux_S3B2_coeff0.01"]);
}

TEST_P(VectorsTest, Dropping) {
    config_.moe_router_pre_softmax = true;
    config_.moe_expert_capacity_factor = 0.7;
    EXPECT_EQ(get_capacity(config_, kTokens),
              vectors()["capacity_T6K2E4_cf0.7"].get<std::int64_t>());
    expect_routing("drop_probs_cf0.7_padFalse");
    // Which token fills a padded slot carries no meaning; the probabilities do.
    config_.moe_pad_expert_input_to_capacity = true;
    EXPECT_TRUE(Close(route().probs,
                      matrix(vectors()["drop_probs_cf0.7_padTrue"]["probs"]), bound_));
}

TEST_P(VectorsTest, Permutation) {
    config_.finalize();
    const auto dispatcher =
        find_tier("tier", GetParam().tier).make_dispatcher(config_, GetParam().dtype);
    const auto place = dispatcher->placement();
    // Tokens whose only value is their number.
    const Tensor numbers =
        transfer(Tensor::from<float>({6, 1}, {0, 1, 2, 3, 4, 5}), place);
    const auto expect = [&](const json& routed, const json& expected) {
        const Values map = flat(routed["map"]);
        const auto sent = dispatcher->dispatch(
            numbers, transfer(matrix(routed["probs"]), place),
            transfer(Tensor::from<std::uint8_t>({6, 4}, {map.begin(), map.end()}), place),
            {});
        EXPECT_EQ(to_doubles(sent.rows.values), expected["rows"].get<Values>());
        EXPECT_TRUE(Close(sent.row_probs,
                          Tensor::from({12}, expected["probs"].get<Values>()),
                          bound_of(GetParam())));
        EXPECT_EQ(to_doubles(sent.tokens_per_expert),
                  expected.value("tokens_per_expert", Values(4, 3.0)));
    };
    expect(vectors()["softmax_pre"], vectors()["permute_pre"]);
    expect(vectors()["drop_probs_cf0.7_padTrue"], vectors()["permute_droppad"]);
}

INSTANTIATE_TEST_SUITE_P(Tiers, VectorsTest, testing::ValuesIn(precise_suppliers()),
                         instance_name);

// Steps within a component, one by one.
class SinkhornVector : public testing::TestWithParam<ComponentSpec> {};

TEST_P(SinkhornVector, IsMegatrons) {
    const auto ops = make_router_ops(GetParam());
    EXPECT_TRUE(Close(ops->sinkhorn(matrix(vectors()["logits"])),
                      matrix(vectors()["sinkhorn"]), 1e-5));
}

INSTANTIATE_TEST_SUITE_P(Tiers, SinkhornVector,
                         testing::ValuesIn(with_operations(router_suppliers())),
                         instance_name);

class PaddingVector : public testing::TestWithParam<ComponentSpec> {};

TEST_P(PaddingVector, IsMegatrons) {
    const Values map = flat(vectors()["softmax_pre"]["map"]);
    const Tensor routing_map =
        Tensor::from<std::uint8_t>({kTokens, kExperts}, {map.begin(), map.end()});
    const auto ops = make_row_ops(GetParam());
    EXPECT_EQ(to_doubles(ops->pad_routing_map(routing_map, 4)),
              flat(vectors()["pad_routing_map_4"]));
    EXPECT_EQ(to_doubles(ops->pad_routing_map(routing_map, 1)), map);
    const Tensor none = Tensor::zeros({0, kExperts}, DType::u8);
    EXPECT_EQ(ops->pad_routing_map(none, 4).shape(), none.shape());
}

INSTANTIATE_TEST_SUITE_P(Tiers, PaddingVector,
                         testing::ValuesIn(with_operations(available_suppliers())),
                         instance_name);

class ActivationVectors : public testing::TestWithParam<ComponentSpec> {};

TEST_P(ActivationVectors, AreMegatrons) {
    const auto ops = make_row_ops(GetParam());
    const double bound = GetParam().dtype == DType::bf16 ? bound_of(GetParam()) : kBound;
    MoEConfig c = small_config();
    const Tensor p = Tensor::from<float>({1}, {0.7f});
    const Tensor g = Tensor::from<float>({1, 2}, {1, -2});
    const auto expect_row = [&](const Tensor& got, const json& row,
                                const std::string& name) {
        const Values values = to_doubles(got);
        ASSERT_EQ(values.size(), row.size()) << name;
        for (std::size_t i = 0; i < values.size(); ++i)
            EXPECT_NEAR(values[i], row[i].get<double>(), bound) << name << i;
    };
    const auto expect = [&](const std::string& name, const Tensor& z) {
        const json& v = vectors()[name];
        expect_row(ops->activation_forward(c, z, p), v["fwd"][0], name);
        if (!v.contains("dx")) return;
        const auto gradients = ops->activation_backward(c, z, g, p);
        expect_row(gradients.dp, v["dw"][0], name);
        expect_row(gradients.dh, v["dx"][0], name);
    };
    const Tensor z = Tensor::from<float>({1, 4}, {0.5f, -1, 2, 0.25f});
    const Tensor short_z = Tensor::from<float>({1, 2}, {0.5f, -1});
    expect("wswiglu", z);
    c.activation_func_clamp_value = 0.4;
    expect("wswiglu_clamp0.4", z);
    c.activation_func_clamp_value.reset();
    c.activation_func = "quick_gelu";
    c.glu_linear_offset = 1.0;
    expect("wquickgeglu_off1", z);
    c.activation_func = "squared_relu";
    c.gated_linear_unit = false;
    expect("wsqrelu", short_z);
    // Its backward by hand: a_f = p max(z, 0)², so dz = 2 p g max(z, 0).
    const auto gradients = ops->activation_backward(c, short_z, g, p);
    EXPECT_NEAR(to_doubles(gradients.dp)[0], 0.25, bound);
    EXPECT_NEAR(to_doubles(gradients.dh)[0], 0.7, bound);
    EXPECT_EQ(to_doubles(gradients.dh)[1], 0.0);
}

INSTANTIATE_TEST_SUITE_P(Tiers, ActivationVectors,
                         testing::ValuesIn(with_operations(available_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
