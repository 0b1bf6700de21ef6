// Shared experts, forward and backward, against the formulas written out.

#include <cmath>
#include <numeric>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/layer/experts_support.h"

namespace moe::test {
namespace {

class SharedExpertsTest : public MlpTest {
  protected:
    /// q (W2 act(W1 x)) with the gate q = σ(<g, x>), or 1.
    void expect_formula(MoEConfig c, std::int64_t T) {
        constexpr std::int64_t kSharedFfn = 9, H = kHidden;
        c.moe_shared_expert_intermediate_size = kSharedFfn;
        c.finalize();
        const TensorMap parameters = random_weights(c);
        const Tensor hidden = random({T, H}, 6), doutput = random({T, H}, 7);
        auto shared = tier().make_shared_experts(c, GetParam().dtype, parameters);
        const auto forward = shared->forward(hidden, {});
        TensorMap gradients;
        const Tensor before = random({T, H}, 8);
        Tensor dhidden = before.clone();
        shared->backward(dhidden, gradients, doutput, *forward.saved, {});

        const Values x = to_doubles(hidden), dout = to_doubles(doutput);
        const Values g = part(parameters, "shared_experts.gate_weight", 0, 1, H);
        Mlp mlp = make_mlp(c, parameters, "shared_experts", kSharedFfn, 0, 1);
        Values output, dx = to_doubles(before), dg(H);
        for (std::int64_t t = 0; t < T; ++t) {
            const Values x_row = row(x, t, H), dout_row = row(dout, t, H);
            const double dot = std::inner_product(g.begin(), g.end(), x_row.begin(), 0.0);
            const double q =
                c.moe_shared_expert_gate ? 1.0 / (1.0 + std::exp(-dot)) : 1.0;
            Values du = dout_row;
            for (double& value : du) value *= q;
            const Mlp::Row got = mlp.run(x_row, 1.0, du);
            // By <g, x>; 0 without a gate, where q = 1
            const double ddot =
                (1.0 - q) * std::inner_product(du.begin(), du.end(), got.y.begin(), 0.0);
            for (std::int64_t j = 0; j < H; ++j) {
                output.push_back(q * got.y[j]);
                dx[t * H + j] += got.dx[j] + ddot * g[j];
                dg[j] += ddot * x_row[j];
            }
        }

        description_ =
            " of " + c.activation_func + (c.moe_shared_expert_gate ? ", q" : "");
        expect_values(forward.output, output, "output", false);
        expect_values(dhidden, dx, "dhidden");
        expect_values(gradients.at("shared_experts.linear_fc1.weight"), mlp.dw1, "dW1");
        expect_values(gradients.at("shared_experts.linear_fc2.weight"), mlp.dw2, "dW2");
        EXPECT_EQ(gradients.size(), c.moe_shared_expert_gate ? 3u : 2u);
        if (!c.moe_shared_expert_gate) return;
        EXPECT_EQ(gradients.at("shared_experts.gate_weight").shape(), (Shape{1, H}));
        expect_values(gradients.at("shared_experts.gate_weight"), dg, "dg");
    }
};

TEST_P(SharedExpertsTest, FollowTheFormula) {
    for (bool gate : {false, true})
        for (bool gated : {false, true})
            for (const char* name :
                 {"silu", "gelu", "gelu_tanh", "quick_gelu", "squared_relu"}) {
                MoEConfig c = config();
                c.moe_shared_expert_gate = gate;
                c.gated_linear_unit = gated;
                c.activation_func = name;
                expect_formula(c, 23);
            }
}

TEST_P(SharedExpertsTest, ClampAndShiftLikeTheRoutedOnes) {
    lattice_ = true;
    MoEConfig c = config();
    c.moe_shared_expert_gate = true;
    c.activation_func = "quick_gelu";
    c.activation_func_clamp_value = 0.5;
    c.glu_linear_offset = 1.0;
    expect_formula(c, 23);
}

TEST_P(SharedExpertsTest, TakeAnyNumberOfTokens) {
    for (std::int64_t T : {0, 1, 257}) {
        MoEConfig c = config();
        c.moe_shared_expert_gate = true;
        expect_formula(c, T);
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, SharedExpertsTest,
                         testing::ValuesIn(available_suppliers()), instance_name);

}  // namespace
}  // namespace moe::test
