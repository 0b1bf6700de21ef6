// The expert bias: which tokens count, and where it moves.

#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

/// The update alone, fp32 in every supplier.
class ExpertBiasUpdate : public testing::TestWithParam<ComponentSpec> {};

TEST_P(ExpertBiasUpdate, MovesTowardsBalance) {
    const auto ops = make_router_ops(GetParam());
    const Tensor bias = Tensor::from<float>({2}, {0.5f, -0.5f});
    EXPECT_EQ(to_doubles(ops->get_updated_expert_bias(bias, {3, 1}, 0.25)),
              (Values{0.25, -0.25}));
    EXPECT_TRUE(BitwiseEqual(ops->get_updated_expert_bias(bias, {2, 2}, 0.25), bias));
    EXPECT_TRUE(BitwiseEqual(ops->get_updated_expert_bias(bias, {0, 0}, 0.25), bias));
    EXPECT_EQ(to_doubles(bias), (Values{0.5, -0.5})) << "the old one stays as it was";
    // The step is as long however far off an expert is; on the mean itself there is none.
    EXPECT_EQ(to_doubles(ops->get_updated_expert_bias(Tensor::zeros({3}, DType::f32),
                                                      {1000, 2, 501}, 0.5)),
              (Values{-0.5, 0.5, 0.0}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, ExpertBiasUpdate,
                         testing::ValuesIn(with_operations(fp32_suppliers())),
                         instance_name);

/// Three experts, K = 1; the hidden states are the logits.
class ExpertBiasTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static MoEConfig config() {
        MoEConfig c = small_config(3, 3, 1);
        c.moe_router_score_function = "sigmoid";
        c.moe_router_enable_expert_bias = true;
        c.moe_router_bias_update_rate = 0.125;
        return c;
    }
    void make(const MoEConfig& c) {
        router_ = make_router(GetParam(), c, {{"router.weight", identity_matrix(3)}});
    }
    /// One token for each of the experts.
    void forward(const std::vector<int>& experts, const Tensor& mask = {},
                 bool training = true) {
        const auto T = static_cast<std::int64_t>(experts.size());
        Tensor hidden = Tensor::zeros({T, 1, 3}, DType::f32);
        for (std::int64_t t = 0; t < T; ++t)
            hidden.data<float>()[t * 3 + experts[t]] = 1.0f;
        dense_forward(*router_, transfer(hidden, router_->placement()),
                      transfer(mask, router_->placement()), {.training = training});
    }
    Values update() { return to_doubles(router_->update_expert_bias()); }

    std::unique_ptr<Router> router_;
};

TEST_P(ExpertBiasTest, CountsFromOneUpdateToTheNext) {
    make(config());
    forward({0, 0, 0, 1});
    forward({0, 2});  // 4, 1 and 1 of 2 each
    EXPECT_EQ(update(), (Values{-0.125, 0.125, 0.125}));
    forward({1, 2, 1, 2});
    EXPECT_EQ(update(), (Values{0.0, 0.0, 0.0})) << "the old counts are forgotten";
    EXPECT_EQ(update(), (Values{0.0, 0.0, 0.0})) << "no tokens, no step";
}

TEST_P(ExpertBiasTest, LeavesOutPaddingAndEvaluation) {
    make(config());
    forward({0, 0, 1, 2}, Tensor::from<std::uint8_t>({4, 1}, {1, 0, 0, 0}));
    forward({0, 0, 1}, {}, false);
    EXPECT_EQ(update(), (Values{0.0, 0.0, 0.0}));
}

TEST_P(ExpertBiasTest, CountsWhatIsLeftAfterDropping) {
    MoEConfig c = config();
    c.moe_expert_capacity_factor = 1.0;  // two of six tokens each
    make(c);
    forward({0, 0, 0, 1, 1, 2});  // kept: 2, 2 and 1
    EXPECT_EQ(update(), (Values{-0.125, -0.125, 0.125}));
    c.moe_pad_expert_input_to_capacity = true;
    make(c);
    forward({0, 0, 0, 1, 1, 2});  // padding makes all equal
    EXPECT_EQ(update(), (Values{0.0, 0.0, 0.0}));
}

TEST_P(ExpertBiasTest, SteersTheNextChoice) {
    MoEConfig c = config();
    c.moe_router_bias_update_rate = 10.0;
    make(c);
    forward({0, 0, 0});
    EXPECT_EQ(update(), (Values{-10.0, 10.0, 10.0}));
    const Tensor hidden = Tensor::from<float>({1, 1, 3}, {1, 0, 0});
    const auto output =
        dense_forward(*router_, transfer(hidden, router_->placement()), {}, {});
    EXPECT_EQ(to_doubles(output.routing_map), (Values{0, 1, 0}));
}

TEST_P(ExpertBiasTest, IsUndefinedWhereThereIsNone) {
    MoEConfig c = config();
    c.moe_router_enable_expert_bias = false;
    make(c);
    forward({0, 1});
    EXPECT_FALSE(router_->update_expert_bias().defined());
}

INSTANTIATE_TEST_SUITE_P(Tiers, ExpertBiasTest, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
