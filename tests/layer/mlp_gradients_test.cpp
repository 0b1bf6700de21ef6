// Gradients of the experts and of the shared experts alone, against finite differences in
// fp64 of f = Σ output · doutput.

#include "tests/layer/gradients_support.h"

namespace moe::test {
namespace {

const std::vector<Case> kMlpCases = {
    {"silu", {act("silu"), not_gated}},
    {"gelu", {act("gelu"), not_gated}},
    {"gelu_tanh", {act("gelu_tanh"), not_gated}},
    {"quick_gelu", {act("quick_gelu"), not_gated}},
    {"squared_relu", {act("squared_relu"), not_gated}},
    {"swiglu", {act("silu")}},
    {"geglu", {act("gelu")}},
    {"tanh_geglu", {act("gelu_tanh")}},
    {"quick_geglu", {act("quick_gelu")}},
    {"squared_reglu", {act("squared_relu")}},
    {"swiglu_clamp", {act("silu"), clamp}},
    {"swiglu_offset", {act("silu"), offset}},
    {"geglu_clamp_offset", {act("gelu"), clamp, offset}},
    {"tanh_geglu_clamp_offset", {act("gelu_tanh"), clamp, offset}},
    {"quick_geglu_clamp_offset", {act("quick_gelu"), clamp, offset}},
    {"squared_reglu_clamp_offset", {act("squared_relu"), clamp, offset}},
    {"probs_on_input", {sigmoid, k1, on_input}},
};

class MlpGradients : public GradientsTest {};

TEST_P(MlpGradients, OfTheExpertsAreTheirSlopes) {
    MoEConfig config = case_.config();
    config.add_bias_linear = true;
    use(config);
    const Tensor counts = counts_tensor({3, 0, 4, 1, 0, 1});
    Tensor rows = random64({9, shape_[2]}, 1), row_probs = random64({9}, 2);
    const Tensor doutput = random64({9, shape_[2]}, 3);
    const auto make = [&] {
        return tier().make_experts(config_, DType::f64, parameters_);
    };
    const Function f = [&] {
        PatternRecorder recorder(config_);
        const auto result = make()->forward(rows, counts, row_probs, context(&recorder));
        return Point{dot(result.rows, doutput), recorder.pattern};
    };
    const auto experts = make();
    const auto result = experts->forward(rows, counts, row_probs, {});
    TensorMap gradients;
    const auto inputs = experts->backward(gradients, doutput, *result.saved, {});

    expect_slopes(f, rows, inputs.drows, kFine, "rows");
    expect_slopes(f, row_probs, inputs.drow_probs, kFine, "row_probs");
    EXPECT_EQ(gradients.size(), 4u);
    for (const auto& [name, gradient] : gradients)
        expect_slopes(f, parameters_.at(name), gradient, kFine, name);
}

TEST_P(MlpGradients, OfTheSharedExpertsAreTheirSlopes) {
    for (bool with_gate : {false, true}) {
        MoEConfig config = case_.config();
        shared(config);
        config.moe_shared_expert_gate = with_gate;
        use(config);
        Tensor tokens = random64({num_tokens_, shape_[2]}, 1);
        const Tensor doutput = random64(tokens.shape(), 3);
        const auto make = [&] {
            return tier().make_shared_experts(config_, DType::f64, parameters_);
        };
        // Which side of a kink an activation is on does not show; few are that close.
        const Function f = [&] {
            return Point{dot(make()->forward(tokens, {}).output, doutput), {}};
        };
        const auto shared_experts = make();
        const auto result = shared_experts->forward(tokens, {});
        TensorMap gradients;
        const Tensor before = random64(tokens.shape(), 4);
        Tensor dtokens = before.clone();  // shared experts add to it
        shared_experts->backward(dtokens, gradients, doutput, *result.saved, {});

        expect_slopes(f, tokens, sum(dtokens, -1.0, before), kFine, "tokens");
        EXPECT_EQ(gradients.size(), with_gate ? 3u : 2u);
        for (const auto& [name, gradient] : gradients)
            expect_slopes(f, parameters_.at(name), gradient, kFine, name);
    }
}

INSTANTIATE_TEST_SUITE_P(Fp64, MlpGradients, in_fp64(kMlpCases), case_and_supplier);

}  // namespace
}  // namespace moe::test
