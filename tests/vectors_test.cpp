// Small worked vectors that Megatron's own functions gave in fp32.

#include <fstream>
#include <nlohmann/json.hpp>

#include "core/transfer.h"
#include "reference_cpu/activation.h"
#include "reference_cpu/load_balancing.h"
#include "reference_cpu/permutation.h"
#include "reference_cpu/routing.h"
#include "reference_cpu/token_dropping.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using nlohmann::json;
constexpr std::int64_t kTokens = 6, kExperts = 4;
constexpr double kBound = 1e-6;

std::vector<double> flat(const json& rows) {
    std::vector<double> values;
    for (const json& row : rows)
        for (const json& value : row) values.push_back(value.get<double>());
    return values;
}

Tensor matrix(const json& rows) {
    const auto values = flat(rows);
    return Tensor::from<double>({std::int64_t(rows.size()), std::int64_t(rows[0].size())},
                                values);
}

template <typename Scalar>
class VectorsTest : public testing::Test {
  protected:
    VectorsTest() {
        std::ifstream(MOE_GOLDEN_DIR "/vectors.json") >> vectors_;
        logits_ =
            transfer(matrix(vectors_["logits"]), {MemorySpace::host, dtype_of<Scalar>});
        config_ = small_config(4, kExperts, 2, 4);
    }

    void expect_routing(const std::string& name, const Tensor& bias = {}) {
        config_.finalize();
        const auto routing = cpu::route<Scalar>(logits_, bias, config_);
        EXPECT_TRUE(Close(routing.probs, matrix(vectors_[name]["probs"]), kBound))
            << name;
        EXPECT_EQ(to_doubles(routing.map), flat(vectors_[name]["map"])) << name;
    }

    Losses losses(std::int64_t S, std::int64_t B, const std::uint8_t* mask = nullptr) {
        Losses result;
        cpu::GlobalTokenCounts counts;
        config_.finalize();
        cpu::auxiliary_losses_forward<Scalar>(result, counts, logits_, {S, B, mask},
                                              config_, {});
        return result;
    }

    json vectors_;
    Tensor logits_;
    MoEConfig config_;
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(VectorsTest, Scalars);

TYPED_TEST(VectorsTest, Routing) {
    MoEConfig& c = this->config_;
    this->expect_routing("softmax_post");
    c.moe_router_pre_softmax = true;
    this->expect_routing("softmax_pre");
    c.moe_router_num_groups = 2;
    c.moe_router_group_topk = 1;
    this->expect_routing("pre_group2_top1");
    c = small_config(4, kExperts, 2, 4);
    c.moe_router_score_function = "sqrtsoftplus";
    this->expect_routing("sqrtsoftplus");
    c.moe_router_score_function = "sigmoid";
    this->expect_routing("sigmoid");
    c.moe_router_enable_expert_bias = true;
    c.moe_router_topk_scaling_factor = 2.5;
    this->expect_routing("sigmoid_bias_scale2.5",
                         Tensor::from<float>({4}, {0.0f, 0.3f, 0.2f, -0.4f}));
    c = small_config(4, kExperts, 1, 4);
    c.moe_router_score_function = "sigmoid";
    this->expect_routing("sigmoid_k1");
}

TYPED_TEST(VectorsTest, Sinkhorn) {
    EXPECT_TRUE(Close(cpu::sinkhorn<TypeParam>(this->logits_),
                      matrix(this->vectors_["sinkhorn"]), 1e-5));
}

TYPED_TEST(VectorsTest, Losses) {
    MoEConfig& c = this->config_;
    const json& v = this->vectors_;
    const auto expect = [&](double got, double expected) {
        EXPECT_NEAR(got, expected, 1e-6 * expected);
    };
    c.moe_z_loss_coeff = 1e-3;
    c.moe_router_load_balancing_type = {"aux_loss"};
    c.moe_aux_loss_coeff = {0.01};
    const std::string aux = "load_balancing_loss", seq = "seq_load_balancing_loss";
    expect(1e-3 * this->losses(6, 1).at("z_loss"), v["z_loss_1e-3"]);
    for (const char* function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        c.moe_router_score_function = function;
        expect(0.01 * this->losses(6, 1).at(aux),
               v[std::string("aux_") + function]["loss_coeff0.01"]);
    }
    c.moe_router_score_function = "softmax";
    const std::uint8_t last_two[6] = {0, 0, 0, 0, 1, 1};
    expect(1e-3 * this->losses(6, 1, last_two).at("z_loss"), v["z_pad_last2"]);
    expect(0.01 * this->losses(6, 1, last_two).at(aux), v["aux_softmax_pad_last2"]);
    c.moe_router_load_balancing_type = {"seq_aux_loss"};
    expect(0.01 * this->losses(3, 2).at(seq), v["seq_aux_S3B2_coeff0.01"]);
}

TYPED_TEST(VectorsTest, DroppingAndPermutation) {
    MoEConfig& c = this->config_;
    const json& v = this->vectors_;
    c.moe_router_pre_softmax = true;
    c.moe_expert_capacity_factor = 0.7;
    EXPECT_EQ(get_capacity(c, kTokens), v["capacity_T6K2E4_cf0.7"].get<std::int64_t>());
    const auto routing = cpu::route<TypeParam>(this->logits_, {}, c);
    auto kept = cpu::apply_token_dropping<TypeParam>(routing.probs, routing.map, c);
    EXPECT_TRUE(
        Close(kept.probs, matrix(v["drop_probs_cf0.7_padFalse"]["probs"]), kBound));
    EXPECT_EQ(to_doubles(kept.routing_map), flat(v["drop_probs_cf0.7_padFalse"]["map"]));
    // Which token fills a padded slot carries no meaning; the probabilities do.
    c.moe_pad_expert_input_to_capacity = true;
    kept = cpu::apply_token_dropping<TypeParam>(routing.probs, routing.map, c);
    EXPECT_TRUE(
        Close(kept.probs, matrix(v["drop_probs_cf0.7_padTrue"]["probs"]), kBound));

    const cpu::RowMap map = cpu::make_row_map(routing.map);
    EXPECT_EQ(map.row_token, v["permute_pre"]["rows"].get<std::vector<std::int64_t>>());
    EXPECT_EQ(map.tokens_per_expert,
              v["permute_pre"]["tokens_per_expert"].get<std::vector<std::int64_t>>());
    const auto probs = v["permute_pre"]["probs"].get<std::vector<double>>();
    EXPECT_TRUE(Close(cpu::permute_probs<TypeParam>(routing.probs, map),
                      Tensor::from<double>({12}, probs), kBound));
}

TYPED_TEST(VectorsTest, Activations) {
    using Row = cpu::RowArray<TypeParam>;
    const auto expect = [&](const std::string& name, const Row& z, TypeParam p) {
        const std::int64_t ffn =
            this->config_.gated_linear_unit ? z.size() / 2 : z.size();
        const cpu::ExpertActivation<TypeParam> activation(this->config_, ffn);
        const json& v = this->vectors_[name];
        Row a(ffn), dz(z.size()), g(2);
        g << 1, -2;
        activation.forward(a, z, p);
        for (std::int64_t f = 0; f < ffn; ++f)
            EXPECT_NEAR(a[f], v["fwd"][0][f].get<double>(), 1e-6) << name;
        if (!v.contains("dx")) return;
        EXPECT_NEAR(activation.backward(dz, z, g, p), v["dw"][0][0].get<double>(), 1e-6);
        for (std::int64_t i = 0; i < z.size(); ++i)
            EXPECT_NEAR(dz[i], v["dx"][0][i].get<double>(), 1e-6) << name;
    };
    Row z(4), short_z(2);
    z << 0.5, -1, 2, 0.25;
    short_z << 0.5, -1;
    MoEConfig& c = this->config_;
    const auto p = TypeParam(0.7f);
    expect("wswiglu", z, p);
    c.activation_func_clamp_value = 0.4;
    expect("wswiglu_clamp0.4", z, p);
    c.activation_func_clamp_value.reset();
    c.activation_func = "quick_gelu";
    c.glu_linear_offset = 1.0;
    expect("wquickgeglu_off1", z, p);
    c.activation_func = "squared_relu";
    c.gated_linear_unit = false;
    expect("wsqrelu", short_z, p);
}

}  // namespace
}  // namespace moe::test
