// The layer as a whole: mixed precisions, threads, padding, evaluation, and what must not
// change the result. That it is the sum of its experts is in experts_test.cpp, its losses
// are in load_balancing_test.cpp, dropping is in moe_layer_capacity_test.cpp.

#include "core/moe_layer.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>

#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/layer/layer_support.h"

namespace moe::test {
namespace {

// ------------------------------------------------------------------- precisions, threads

// Every mix of the tier's own precision and the fp64 reference over the four components.
TEST_P(LayerTest, MixesSuppliers) {
    MoEConfig config = rich_config();
    config.finalize();
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    const ComponentSpec reference{"reference_cpu", DType::f64};
    MoELayer fp64(config, ModuleSpec::uniform(reference), parameters);
    const LayerRun expected = run(fp64, hidden, doutput);
    for (int mix = 0; mix < 16; ++mix) {
        SCOPED_TRACE(mix);
        const auto pick = [&](int bit) {
            return mix & (1 << bit) ? GetParam() : reference;
        };
        const ModuleSpec spec{pick(0), pick(1), pick(2), pick(3)};
        MoELayer mixed(config, spec, parameters);
        const LayerRun got = run(mixed, hidden, doutput);
        const auto dtype = [&](const std::string& name) {
            return got.gradients.parameters.at(name).dtype();
        };
        EXPECT_EQ(got.output.dtype(), spec.dispatcher.dtype);
        EXPECT_EQ(dtype("router.weight"), mixed.spec().router.dtype);
        EXPECT_EQ(dtype("experts.linear_fc1.weight"), spec.experts.dtype);
        EXPECT_EQ(dtype("shared_experts.gate_weight"), spec.shared_experts.dtype);
        EXPECT_EQ(got.value("routing_map"), expected.value("routing_map"));
        EXPECT_EQ(first_deviation(got, expected, mixed.spec().coarsest_dtype()), "");
        expect_close(got, expected);
        for (const auto& [name, loss] : expected.losses)
            EXPECT_NEAR(got.losses.at(name), loss, bound() * loss) << name;
    }
}

TEST_P(LayerTest, RaisesTheRouterToItsDtype) {
    MoEConfig config = rich_config();
    config.moe_router_dtype = "fp64";
    MoELayer subject = layer(config, parameters_of(config));
    EXPECT_EQ(subject.spec().router.dtype, DType::f64);
    EXPECT_EQ(subject.spec().experts.dtype, GetParam().dtype);
    const Tensor hidden = random_tensor(kShape, 1);
    const LayerRun raised = run(subject, hidden, hidden);
    EXPECT_EQ(raised.values.at("logits").dtype(), DType::f64);
    EXPECT_EQ(raised.output.dtype(), GetParam().dtype);
}

#ifdef _OPENMP
/// Sets the number of threads; the one that was set before comes back at the end.
class Threads {
  public:
    explicit Threads(int count) { omp_set_num_threads(count); }
    ~Threads() { omp_set_num_threads(before_); }

  private:
    const int before_ = omp_get_max_threads();
};

TEST_P(LayerTest, GivesTheSameBitsWithAnyNumberOfThreads) {
    // Enough rows for one expert that they are cut into two blocks.
    MoEConfig few = small_config(kHidden, 2, 2, 13);
    few.add_bias_linear = true;
    for (auto [config, shape] :
         {std::pair{rich_config(), kShape}, {few, {311, 3, kHidden}}}) {
        const TensorMap parameters = parameters_of(config);
        const Tensor hidden = random_tensor(shape, 1), doutput = random_tensor(shape, 2);
        const auto run_with = [&](int count) {
            const Threads threads(count);
            return run(config, parameters, hidden, doutput);
        };
        const LayerRun one = run_with(1);
        for (int count : {2, 3, 8}) {
            const LayerRun many = run_with(count);
            EXPECT_TRUE(BitwiseEqual(many.output, one.output));
            EXPECT_TRUE(
                BitwiseEqual(many.gradients.hidden_states, one.gradients.hidden_states));
            for (const auto& [name, value] : one.values.values)
                EXPECT_TRUE(BitwiseEqual(many.values.at(name), value)) << name;
            for (const auto& [name, gradient] : one.gradients.parameters)
                EXPECT_TRUE(BitwiseEqual(many.gradients.parameters.at(name), gradient))
                    << name;
            EXPECT_EQ(many.losses, one.losses);
        }
    }
}
#endif

// ------------------------------------------------------ what must not change the result

TEST_P(LayerTest, ComputesEachTokenByItself) {
    const MoEConfig config = dropless(rich_config());
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor({6, 3, kHidden}, 1);
    const LayerRun together = run(config, parameters, hidden, hidden);
    for (std::int64_t t = 0; t < 18; ++t) {
        const Tensor token = tokens(hidden, t, t + 1);
        const LayerRun alone = run(config, parameters, token, token);
        EXPECT_TRUE(Close(alone.output, tokens(together.output, t, t + 1), bound()))
            << "token " << t;
    }
}

TEST_P(LayerTest, FollowsItsExpertsWhenTheyAreRenamed) {
    const std::vector<std::int64_t> order = {3, 0, 4, 1, 2};  // new expert e was order[e]
    const auto rename = [&](const Tensor& tensor) {
        const Values old = to_doubles(tensor);
        const std::int64_t size = tensor.numel() / 5;
        Values renamed;
        for (std::int64_t e : order)
            renamed.insert(renamed.end(), old.begin() + e * size,
                           old.begin() + (e + 1) * size);
        return Tensor::from(tensor.shape(), renamed);
    };
    MoEConfig config = small_config(kHidden, 5, 2, 6);
    config.moe_expert_capacity_factor = 1.0;
    const TensorMap parameters = parameters_of(config);
    TensorMap renamed;
    for (const auto& [name, tensor] : parameters) renamed[name] = rename(tensor);
    const Tensor hidden = random_tensor(kShape, 1), doutput = random_tensor(kShape, 2);
    LayerRun before = run(config, parameters, hidden, doutput);
    const LayerRun after = run(config, renamed, hidden, doutput);

    const Tensor counts = before.values.at("tokens_per_expert");
    EXPECT_EQ(after.value("tokens_per_expert"), to_doubles(rename(counts)));
    EXPECT_NE(after.value("tokens_per_expert"), to_doubles(counts));
    for (auto& [name, gradient] : before.gradients.parameters)
        gradient = rename(gradient);
    expect_close(after, before);
}

TEST_P(LayerTest, TreatsMaskedTokensAsAbsentInLossesOnly) {
    const MoEConfig config = dropless(rich_config());
    const TensorMap parameters = parameters_of(config);
    const Shape whole = {12, 3, kHidden}, valid = {7, 3, kHidden};
    Tensor hidden = random_tensor(whole, 1), doutput = random_tensor(whole, 2);
    std::fill(doutput.data<float>() + num_elements(valid),
              doutput.data<float>() + num_elements(whole), 0.0f);
    Tensor mask = Tensor::zeros({3, 12}, DType::u8);
    for (std::int64_t b = 0; b < 3; ++b)
        std::fill_n(mask.data<std::uint8_t>() + b * 12 + 7, 5, 1);
    const auto head = [&](const Tensor& all) { return tokens(all, 0, 7 * 3); };

    MoELayer subject = layer(config, parameters), shorter = layer(config, parameters);
    const LayerRun masked = run(subject, hidden, doutput, mask);
    const LayerRun truncated =
        run(shorter, head(hidden).reshaped(valid), head(doutput).reshaped(valid));
    EXPECT_EQ(masked.losses.size(), 4u);
    for (const auto& [name, loss] : truncated.losses)
        EXPECT_NEAR(masked.losses.at(name), loss, bound() * loss) << name;
    // How a matrix product rounds may depend on the number of rows; choices do not.
    for (const char* name : {"topk_idx", "routing_map", "probs"})
        EXPECT_TRUE(Close(head(masked.values.at(name)),
                          tokens(truncated.values.at(name), 0, 7 * 3),
                          name == std::string("probs") ? bound() : 0.0))
            << name;
    EXPECT_TRUE(BitwiseEqual(subject.update_expert_bias(), shorter.update_expert_bias()));
    // Nobody asked for a gradient of the padding, so all gradients agree.
    const Tensor dhidden = masked.gradients.hidden_states;
    expect_close({{"hidden_states", head(dhidden)}},
                 {{"hidden_states", head(truncated.gradients.hidden_states)}});
    expect_zero(tokens(dhidden, 7 * 3, 12 * 3), "hidden_states of padding");
    expect_close(masked.gradients.parameters, truncated.gradients.parameters);

    const Tensor mask_there = transfer(mask, placement_of(GetParam()));
    const LayerRun there = run(config, parameters, hidden, doutput, mask_there);
    EXPECT_TRUE(BitwiseEqual(there.gradients.hidden_states, dhidden));
    EXPECT_EQ(there.losses, masked.losses);

    // Otherwise padding is a token like any other.
    const LayerRun unmasked = run(config, parameters, hidden, doutput);
    EXPECT_TRUE(BitwiseEqual(masked.output, unmasked.output));
    EXPECT_EQ(masked.value("routing_map"), unmasked.value("routing_map"));
    for (const auto& [name, loss] : unmasked.losses)
        EXPECT_GT(std::abs(loss - masked.losses.at(name)), 1e-3) << name;
}

// ------------------------------------------------------- evaluation, counts for the bias

TEST_P(LayerTest, LeavesNoTraceOfEvaluation) {
    const MoEConfig config = dropless(rich_config());
    const TensorMap parameters = parameters_of(config);
    const Tensor hidden = random_tensor(kShape, 1), other = random_tensor(kShape, 3);
    const Tensor zero = Tensor::zeros(kShape, DType::f32);
    MoELayer subject = layer(config, parameters), fresh = layer(config, parameters);
    const LayerRun evaluated = run(subject, other, zero, {}, /*training=*/false);
    EXPECT_TRUE(evaluated.losses.empty());
    expect_zero(evaluated.gradients.hidden_states, "hidden_states");
    for (const auto& [name, gradient] : evaluated.gradients.parameters)
        expect_zero(gradient, name);

    // In training the losses have a gradient of their own; it reaches the router only.
    const LayerRun after = run(subject, hidden, zero);
    const LayerRun expected = run(fresh, hidden, zero);
    EXPECT_EQ(after.losses.size(), 4u);
    EXPECT_EQ(after.losses, expected.losses);
    for (const auto& [name, gradient] : after.gradients.parameters)
        if (name != "router.weight") expect_zero(gradient, name);
    EXPECT_NE(to_doubles(after.gradients.parameters.at("router.weight")), Values(200));
    const LayerRun again = run(subject, hidden, zero, {}, /*training=*/false);
    EXPECT_TRUE(BitwiseEqual(again.output, after.output));
    EXPECT_TRUE(BitwiseEqual(subject.update_expert_bias(), fresh.update_expert_bias()));
}

TEST_P(LayerTest, UpdatesTheExpertBiasFromAllMicroBatches) {
    MoEConfig config = small_config(2, 2, 1, 4);
    config.moe_router_score_function = "sigmoid";
    config.moe_router_enable_expert_bias = true;
    config.moe_router_bias_update_rate = 0.125;
    TensorMap parameters = parameters_of(config);
    parameters["router.weight"] = Tensor::from<float>({2, 2}, {1, 0, 0, 1});
    parameters["router.expert_bias"] = Tensor::zeros({2}, DType::f32);
    MoELayer subject = layer(config, parameters);
    // σ(4) and σ(-4) are far enough apart for the choice to outlast the updates.
    const Tensor first = Tensor::from<float>({1, 1, 2}, {4, -4});
    const Tensor second = Tensor::from<float>({1, 1, 2}, {-4, 4});
    const Tensor padding = Tensor::from<std::uint8_t>({1, 1}, {1});

    for (int i = 0; i < 3; ++i) subject.forward(first, {}, {});
    subject.forward(second, {}, {});
    for (int i = 0; i < 5; ++i) {
        subject.forward(second, padding, {});              // padding does not count,
        subject.forward(second, {}, {.training = false});  // nor does evaluation
    }
    EXPECT_EQ(to_doubles(subject.update_expert_bias()), (Values{-0.125, 0.125}));
    // The counts start anew, and equal ones move nothing.
    subject.forward(first, {}, {});
    subject.forward(second, {}, {});
    EXPECT_EQ(to_doubles(subject.update_expert_bias()), (Values{-0.125, 0.125}));
    subject.forward(second, {}, {});
    EXPECT_EQ(to_doubles(subject.update_expert_bias()), (Values{0, 0}));
}

// ------------------------------------------------------------------- odd and bad input

TEST_P(LayerTest, TakesNoTokens) {
    for (const MoEConfig& config : {rich_config(), dropless(rich_config())})
        for (const Shape& shape : {Shape{0, 3, kHidden}, {5, 0, kHidden}}) {
            const Tensor nothing = Tensor::zeros(shape, DType::f32);
            const LayerRun none = run(config, parameters_of(config), nothing, nothing);
            EXPECT_EQ(none.output.shape(), shape);
            EXPECT_EQ(none.gradients.hidden_states.shape(), shape);
            EXPECT_EQ(none.value("tokens_per_expert"), Values(10));
            EXPECT_EQ(none.losses.size(), 4u);
            for (const auto& [name, loss] : none.losses) EXPECT_EQ(loss, 0.0) << name;
            EXPECT_EQ(none.gradients.parameters.size(), 6u);
            for (const auto& [name, gradient] : none.gradients.parameters)
                expect_zero(gradient, name);
        }
}

TEST_P(LayerTest, NamesWhatIsWrongWithItsInput) {
    const MoEConfig config = rich_config();
    TensorMap parameters = parameters_of(config);
    const Tensor good = random_tensor(kShape, 1);
    const auto rejected = [&](const std::vector<std::string>& fragments,
                              const Tensor& hidden, const Tensor& doutput,
                              const Tensor& mask = {}) {
        const auto action = [&] { run(config, parameters, hidden, doutput, mask); };
        EXPECT_TRUE(Rejects(action, fragments));
    };
    const Tensor narrow = random_tensor({43, 3, 19}, 1),
                 flat = random_tensor({129, 20}, 1);
    const Tensor integers = Tensor::zeros(kShape, DType::i64);
    rejected({"hidden_states", "(43, 3, 19)", "(43, 3, 20)"}, narrow, good);
    rejected({"hidden_states", "(129, 20)"}, flat, good);
    rejected({"hidden_states", "int64"}, integers, good);
    rejected({"grad_output", "(43, 3, 19)", "(43, 3, 20)"}, good, narrow);
    const Tensor transposed = Tensor::zeros({43, 3}, DType::u8);
    rejected({"padding_mask", "(43, 3)", "(3, 43)"}, good, good, transposed);
    rejected({"padding_mask", "fp32"}, good, good, Tensor::zeros({3, 43}, DType::f32));
    for (float bad : {NAN, INFINITY}) {
        Tensor broken = good.clone();
        broken.data<float>()[5 * kHidden] = bad;
        rejected({"logits[token 5", "finite"}, broken, good);
    }
    const std::string fc1 = "experts.linear_fc1.weight";
    parameters[fc1] = random_tensor({10, 20, 26}, 1);
    rejected({fc1, "(10, 20, 26)", "(10, 26, 20)"}, good, good);
    parameters.erase(fc1);
    rejected({fc1 + " = absent", "(10, 26, 20)"}, good, good);
}

INSTANTIATE_TEST_SUITE_P(Tiers, LayerTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
