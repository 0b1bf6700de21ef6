// Capacity in the layer as a whole: what dropping and padding do to tokens and counts.

#include <algorithm>
#include <cmath>

#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

class LayerCapacity : public LayerTest {};

TEST_P(LayerCapacity, DropsDownToTheCapacityAndPadsUpToIt) {
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const double routed = 43 * 3 * 3, capacity = std::ceil(routed / 10 * 0.9);
    for (const char* policy : {"probs", "position"})
        for (bool bias : {false, true}) {
            MoEConfig config = dropless(rich_config());
            config.add_bias_linear = bias;
            if (bias) config.moe_shared_expert_intermediate_size.reset();
            const TensorMap parameters = parameters_of(config);
            const LayerRun all = run(config, parameters, hidden, doutput);
            EXPECT_EQ(total(all.value("tokens_per_expert")), routed);

            config.moe_expert_capacity_factor = 0.9;
            config.moe_token_drop_policy = policy;
            const LayerRun dropped = run(config, parameters, hidden, doutput);
            const Values counts = dropped.value("tokens_per_expert");
            EXPECT_EQ(*std::max_element(counts.begin(), counts.end()), capacity);
            EXPECT_LT(total(counts), 10 * capacity);

            // Padding fills the rest, and changes nothing.
            config.moe_pad_expert_input_to_capacity = true;
            const LayerRun padded = run(config, parameters, hidden, doutput);
            EXPECT_EQ(padded.value("tokens_per_expert"), Values(10, capacity));
            expect_close(padded, dropped);
            EXPECT_EQ(padded.losses, dropped.losses);
        }
}

TEST_P(LayerCapacity, GivesExactlyZeroForATokenThatEveryExpertDrops) {
    MoEConfig config = small_config(kHidden, 5, 2, 6);
    config.moe_expert_capacity_factor = 0.4;
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const LayerRun got = run(config, parameters_of(config), hidden, doutput);
    const Tensor& map = got.values.at("routing_map");
    std::int64_t dropped = 0;
    for (std::int64_t t = 0; t < 43 * 3; ++t) {
        const bool stays = total(to_doubles(tokens(map, t, t + 1))) > 0.0;
        dropped += !stays;
        for (const Tensor& tensor : {got.output, got.gradients.hidden_states})
            for (double value : to_doubles(tokens(tensor, t, t + 1)))
                ASSERT_EQ(value != 0.0, stays) << "token " << t;
    }
    EXPECT_GT(dropped, 10);
    EXPECT_LT(dropped, 100);

    config.moe_expert_capacity_factor = 0.0;
    const LayerRun nothing = run(config, parameters_of(config), hidden, doutput);
    expect_zero(nothing.output, "output");
    expect_zero(nothing.gradients.hidden_states, "hidden_states");
}

TEST_P(LayerCapacity, CountsForTheExpertBiasWhatIsLeftAfterDropping) {
    MoEConfig config = rich_config();
    config.moe_expert_capacity_factor = 0.8;
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1);
    MoELayer dropping = layer(config, parameters);
    const LayerRun got = run(dropping, hidden, hidden);
    const auto signs_of = [](const Values& counts) {
        Values signs;
        for (double n : counts)
            signs.push_back((total(counts) > 10 * n) - (total(counts) < 10 * n));
        return signs;
    };
    const Values signs = signs_of(got.value("tokens_per_expert"));
    Values before_dropping(10),
        expected = to_doubles(parameters.at("router.expert_bias"));
    for (double e : got.value("topk_idx")) before_dropping[std::size_t(e)] += 1.0;
    EXPECT_NE(signs, signs_of(before_dropping)) << "the same either way: tests nothing";
    for (std::size_t e = 0; e < 10; ++e) expected[e] += 1e-3 * signs[e];
    EXPECT_TRUE(Close(dropping.update_expert_bias(), Tensor::from({10}, expected), 1e-6));

    // Padded to capacity, every expert has as many as any other.
    config.moe_pad_expert_input_to_capacity = true;
    MoELayer padding = layer(config, parameters);
    run(padding, hidden, hidden);
    EXPECT_TRUE(
        BitwiseEqual(padding.update_expert_bias(), parameters.at("router.expert_bias")));
}

INSTANTIATE_TEST_SUITE_P(Tiers, LayerCapacity, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
