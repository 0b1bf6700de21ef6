// Gate and up rows in turn: a layer of such weights is the layer of the plain ones, to
// the last bit, and its gradients lie as its weights do.

#include "core/glu_interleaving.h"

#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

/// Rows of plain weights (R, 2F, C), gates and then ups, in turn in blocks of `block`.
Tensor interleaved(const Tensor& plain, std::int64_t R, std::int64_t F,
                   std::int64_t block) {
    const std::int64_t C = plain.numel() / (R * 2 * F);
    const Values from = to_doubles(plain);
    Values to;
    for (std::int64_t r = 0; r < R; ++r)
        for (std::int64_t first = 0; first < F; first += block)
            for (std::int64_t half = 0; half < 2; ++half)
                for (std::int64_t row = first; row < first + block; ++row) {
                    const auto at = from.begin() + ((r * 2 + half) * F + row) * C;
                    to.insert(to.end(), at, at + C);
                }
    return Tensor::from<double>(plain.shape(), to);
}

TEST(GluInterleaving, TakesBlocksApartAndBack) {
    MoEConfig c = small_config(4, 1, 1, 6);
    c.moe_router_pre_softmax = true;
    c.moe_mlp_glu_interleave_size = 2;
    c.finalize();
    // Gates are 0 to 5, ups 10 to 15
    const TensorMap stored = {
        {"experts.linear_fc1.bias",
         Tensor::from<double>({1, 12}, {0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15})},
        {"router.bias", Tensor::from<double>({1}, {7})}};
    const TensorMap plain = remove_glu_interleaving(c, stored);
    EXPECT_EQ(to_doubles(plain.at("experts.linear_fc1.bias")),
              (Values{0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15}));
    EXPECT_EQ(to_doubles(plain.at("router.bias")), Values{7});
    const TensorMap again = restore_glu_interleaving(c, plain);
    EXPECT_TRUE(BitwiseEqual(again.at("experts.linear_fc1.bias"),
                             stored.at("experts.linear_fc1.bias")));
    EXPECT_TRUE(has_glu_interleaving(c));
    c.gated_linear_unit = false;
    EXPECT_FALSE(has_glu_interleaving(c));
}

class GluInterleavingTest : public LayerTest {
  protected:
    static void expect_same(const MoEConfig& plain, std::int64_t block,
                            std::int64_t shared_block) {
        MoEConfig config = plain;
        config.moe_mlp_glu_interleave_size = block;
        const std::int64_t shared = plain.moe_shared_expert_intermediate_size.value_or(0);
        if (shared > 0) config.moe_shared_expert_glu_interleave_size = shared_block;
        const std::int64_t E = *plain.num_moe_experts, F = *plain.moe_ffn_hidden_size;
        const auto reorder = [&](TensorMap tensors) {
            for (auto& [name, tensor] : tensors) {
                if (name.starts_with("experts.linear_fc1"))
                    tensor = interleaved(tensor, E, F, block);
                if (name.starts_with("shared_experts.linear_fc1"))
                    tensor = interleaved(tensor, 1, shared, shared_block);
            }
            return tensors;
        };
        const TensorMap parameters = parameters_of(plain);
        const Tensor hidden = random_tensor(kShape, 1),
                     doutput = random_tensor(kShape, 2);
        const LayerRun expected = run(plain, parameters, hidden, doutput);
        const LayerRun got = run(config, reorder(parameters), hidden, doutput);
        EXPECT_TRUE(BitwiseEqual(got.output, expected.output));
        EXPECT_TRUE(
            BitwiseEqual(got.gradients.hidden_states, expected.gradients.hidden_states));
        const TensorMap gradients = reorder(expected.gradients.parameters);
        EXPECT_EQ(got.gradients.parameters.size(), gradients.size());
        for (const auto& [name, gradient] : gradients)
            EXPECT_TRUE(Close(got.gradients.parameters.at(name), gradient, 0.0)) << name;
    }
};

TEST_P(GluInterleavingTest, ChangesNoBit) {
    MoEConfig shared = rich_config();
    shared.moe_ffn_hidden_size = 12;
    expect_same(shared, 3, 9);
    MoEConfig biased = small_config(kHidden, 5, 2, 24);
    biased.add_bias_linear = true;
    biased.moe_latent_size = 7;
    biased.activation_func_clamp_value = 1.0;
    biased.activation_func = "gelu";
    biased.glu_linear_offset = 0.5;
    expect_same(biased, 8, 1);  // blocks of 16 bytes, or of 14 and so on
}

INSTANTIATE_TEST_SUITE_P(Tiers, GluInterleavingTest,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
