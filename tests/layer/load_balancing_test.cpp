// Auxiliary losses and z-loss, against brute force.

#include <cmath>
#include <limits>

#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 9, kBatch = 3, kExperts = 6, kTopk = 2, kHidden = 5;
constexpr std::int64_t kTokens = kSeq * kBatch;
const std::vector<std::string> kFunctions = {"softmax", "sigmoid", "sqrtsoftplus"};
using Padding = std::vector<bool>;  // by token t = s B + b

MoEConfig all_losses() {
    MoEConfig c = small_config(kHidden, kExperts, kTopk);
    c.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss", "global_aux_loss"};
    c.moe_aux_loss_coeff = {0.5, 0.25, 0.125};
    c.moe_z_loss_coeff = 0.01;
    return c;
}

/// A router of its own for each config, and what it showed.
class LossesTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    void make(const MoEConfig& config, TensorMap parameters = {}) {
        parameters.try_emplace("router.weight",
                               random_tensor({kExperts, kHidden}, 3, 0.5));
        router_ = make_router(GetParam(), config, parameters);
    }
    Losses forward(const Tensor& hidden = random_tensor({kSeq, kBatch, kHidden}, 4, 1.5),
                   const Padding& padding = {}, RunContext context = {}) {
        Tensor mask;
        if (!padding.empty()) {
            mask = Tensor::zeros({kSeq, kBatch}, DType::u8);
            for (std::int64_t t = 0; t < kTokens; ++t)
                mask.data<std::uint8_t>()[t] = padding[t];
        }
        context.observer = &values_;
        output_ = dense_forward(*router_, transfer(hidden, router_->placement()),
                                transfer(mask, router_->placement()), context);
        return output_.losses.read();
    }
    /// dlogits of the losses alone: the main loss has no gradient.
    Tensor backward(RunContext context = {}) {
        context.observer = &values_;
        Tensor zeros = Tensor::zeros(output_.probs.shape(), DType::f32);
        Tensor dhidden = Tensor::zeros({output_.probs.dim(0), kHidden}, DType::f32);
        dhidden = transfer(dhidden, router_->placement());
        TensorMap gradients;
        dense_backward(*router_, dhidden, gradients,
                       transfer(zeros, router_->placement()), *output_.saved, context);
        EXPECT_TRUE(BitwiseEqual(values_.at("d_logits"), values_.at("d_logits_losses")));
        return values_.at("d_logits_losses");
    }
    std::unique_ptr<Router> router_;
    Router::Output output_;
    ValueRecorder values_;
};

/// Scores of one token: softmax, or others shared out over all experts.
std::vector<double> aux_scores(const std::string& function, const double* x) {
    std::vector<double> s(kExperts);
    double total = 0.0;
    for (std::int64_t e = 0; e < kExperts; ++e) {
        s[e] = function == "softmax"   ? std::exp(x[e])
               : function == "sigmoid" ? 1.0 / (1.0 + std::exp(-x[e]))
                                       : std::sqrt(std::log1p(std::exp(x[e])));
        total += s[e];
    }
    for (double& value : s) value /= total;
    return s;
}

/// The losses of logits as the formulas have them, fp64 throughout. `global_counts` are
/// those of the micro-batches so far, averaged; empty: those of this one.
Losses brute_force(const std::vector<double>& x, const std::string& function,
                   const Padding& padding, std::vector<double> global_counts = {}) {
    std::vector<std::vector<double>> counts(kBatch, std::vector<double>(kExperts));
    std::vector<std::vector<double>> sums = counts;
    double squares = 0.0, valid = 0.0;
    for (std::int64_t t = 0; t < kTokens; ++t) {
        if (!padding.empty() && padding[t]) continue;
        const std::vector<double> s = aux_scores(function, &x[t * kExperts]);
        double total = 0.0;
        for (std::int64_t e = 0; e < kExperts; ++e) {
            total += std::exp(x[t * kExperts + e]);
            std::int64_t better = 0;
            for (std::int64_t j = 0; j < kExperts; ++j) better += s[j] > s[e];
            sums[t % kBatch][e] += s[e];
            counts[t % kBatch][e] += better < kTopk;
        }
        squares += std::pow(std::log(total), 2);
        valid += 1.0;
    }
    double aux = 0.0, seq = 0.0, global = 0.0;
    for (std::int64_t e = 0; e < kExperts; ++e) {
        double n = 0.0, s = 0.0;
        for (std::int64_t b = 0; b < kBatch; ++b) {
            n += counts[b][e];
            s += sums[b][e];
            // The length of every sequence is the mean one, as Megatron has it.
            const double length = valid / kBatch;
            seq +=
                kExperts / (kTopk * length * length) * counts[b][e] * sums[b][e] / kBatch;
        }
        aux += kExperts / (kTopk * valid * valid) * n * s;
        global += kExperts / (kTopk * valid * valid) * s *
                  (global_counts.empty() ? n : global_counts[e]);
    }
    return {{"load_balancing_loss", aux},
            {"seq_load_balancing_loss", seq},
            {"global_load_balancing_loss", global},
            {"z_loss", squares / valid}};
}

/// Half padding in one sequence, little in the others.
Padding some_padding() {
    Padding padding(kTokens);
    for (auto [s, b] :
         {std::pair<int, int>{8, 0}, {0, 1}, {3, 2}, {4, 2}, {7, 2}, {8, 2}})
        padding[s * kBatch + b] = true;
    return padding;
}

void expect_losses(const Losses& got, const Losses& expected, double tolerance) {
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [name, value] : expected)
        EXPECT_NEAR(got.at(name), value, tolerance * std::abs(value)) << name;
}

TEST_P(LossesTest, FollowTheFormulas) {
    for (const std::string& function : kFunctions)
        for (const Padding& padding : {Padding{}, some_padding()}) {
            MoEConfig c = all_losses();
            c.moe_router_score_function = function;
            // Concerns the weights alone: the losses' scores are normalised
            c.moe_router_norm_topk_prob = function == "softmax" || padding.empty();
            make(c);
            const Losses got =
                forward(random_tensor({kSeq, kBatch, kHidden}, 4, 1.5), padding);
            expect_losses(
                got, brute_force(to_doubles(values_.at("logits")), function, padding),
                score_bound_of(GetParam()));
        }
}

TEST_P(LossesTest, HaveTheGradientOfTheFormulas) {
    for (const std::string& function : kFunctions)
        for (const Padding& padding : {Padding{}, some_padding()}) {
            MoEConfig c = all_losses();
            c.moe_router_score_function = function;
            // Concerns the weights alone: the losses' scores are normalised
            c.moe_router_norm_topk_prob = function == "softmax" || padding.empty();
            make(c);
            forward(random_tensor({kSeq, kBatch, kHidden}, 4, 1.5), padding);
            const Tensor got = backward();

            // Central differences of the weighted sum.
            std::vector<double> x = to_doubles(values_.at("logits"));
            const auto weighted = [&] {
                const Losses l = brute_force(x, function, padding);
                return 0.5 * l.at("load_balancing_loss") +
                       0.25 * l.at("seq_load_balancing_loss") +
                       0.125 * l.at("global_load_balancing_loss") + 0.01 * l.at("z_loss");
            };
            Tensor expected = Tensor::empty(got.shape(), DType::f64);
            for (std::size_t i = 0; i < x.size(); ++i) {
                const double middle = x[i];
                x[i] = middle + 1e-5;
                const double above = weighted();
                x[i] = middle - 1e-5;
                expected.data<double>()[i] = (above - weighted()) / 2e-5;
                x[i] = middle;
            }
            EXPECT_TRUE(Close(got, expected, score_bound_of(GetParam()))) << function;
            const auto gradient = to_doubles(got);
            for (std::size_t i = 0; i < gradient.size(); ++i)
                EXPECT_TRUE(padding.empty() || !padding[i / kExperts] ||
                            gradient[i] == 0.0);
        }
}

TEST_P(LossesTest, LookAtScoresOfTheirOwn) {
    MoEConfig c = all_losses();
    c.moe_router_score_function = "sigmoid";
    make(c);
    const Losses plain = forward();
    // Nothing that steers the routing steers them.
    c.moe_router_enable_expert_bias = true;
    c.moe_router_num_groups = 3;
    c.moe_router_group_topk = 1;
    c.moe_router_topk_scaling_factor = 2.5;
    c.moe_expert_capacity_factor = 0.5;
    make(c, {{"router.expert_bias", random_tensor({kExperts}, 5)}});
    EXPECT_EQ(forward(), plain);
}

TEST_P(LossesTest, AreOnesForAUniformRouter) {
    for (const std::string& function : kFunctions) {
        MoEConfig c = all_losses();
        c.moe_router_score_function = function;
        make(c, {{"router.weight", Tensor::zeros({kExperts, kHidden}, DType::f32)}});
        const Losses losses = forward();
        for (const char* name : {"load_balancing_loss", "seq_load_balancing_loss",
                                 "global_load_balancing_loss"})
            EXPECT_NEAR(losses.at(name), 1.0, score_bound_of(GetParam()))
                << name << " " << function;
        EXPECT_NEAR(losses.at("z_loss"), std::pow(std::log(6.0), 2),
                    4.0 * score_bound_of(GetParam()));
    }
}

TEST_P(LossesTest, AreThoseThatAreAskedFor) {
    const auto names = [&](MoEConfig c) {
        make(c);
        std::vector<std::string> list;
        for (const auto& [name, loss] : forward()) list.push_back(name);
        return list;
    };
    using Names = std::vector<std::string>;
    MoEConfig c = all_losses();
    c.moe_aux_loss_coeff = {0.0, 0.25, 0.0};
    EXPECT_EQ(names(c), (Names{"seq_load_balancing_loss", "z_loss"}));
    c.moe_z_loss_coeff.reset();
    EXPECT_EQ(names(c), (Names{"seq_load_balancing_loss"}));
    c.moe_router_load_balancing_type = {"none"};
    c.moe_aux_loss_coeff = {0.0};
    EXPECT_EQ(names(c), Names{});
    for (double value : to_doubles(backward())) EXPECT_EQ(value, 0.0);
    c.moe_z_loss_coeff = 0.0;  // logged, but without a pull
    EXPECT_EQ(names(c), Names{"z_loss"});
    for (double value : to_doubles(backward())) EXPECT_EQ(value, 0.0);
    // Outside training there are none.
    make(all_losses());
    EXPECT_TRUE(
        forward(random_tensor({kSeq, kBatch, kHidden}, 4), {}, {.training = false})
            .empty());
    for (double value : to_doubles(backward({.training = false}))) EXPECT_EQ(value, 0.0);
}

TEST_P(LossesTest, AreZeroWithoutAValidToken) {
    for (const std::string& function : kFunctions) {
        MoEConfig c = all_losses();
        c.moe_router_score_function = function;
        make(c);
        const Tensor hidden = random_tensor({kSeq, kBatch, kHidden}, 4);
        const Losses masked = forward(hidden, Padding(kTokens, true));
        for (double value : to_doubles(backward())) EXPECT_EQ(value, 0.0);
        const Losses nothing = forward(Tensor::zeros({0, kBatch, kHidden}, DType::f32));
        EXPECT_EQ(backward().shape(), (Shape{0, kExperts}));
        for (const Losses& losses : {masked, nothing}) {
            EXPECT_EQ(losses.size(), 4u);
            for (const auto& [name, loss] : losses) EXPECT_EQ(loss, 0.0) << name;
        }
        // The empty batches count as micro-batches, without tokens.
        const auto x = [&] { return to_doubles(values_.at("logits")); };
        const Losses third = forward(hidden);
        EXPECT_NEAR(third.at("global_load_balancing_loss"),
                    brute_force(x(), function, {}).at("load_balancing_loss") / 3.0,
                    score_bound_of(GetParam()));
    }
}

TEST_P(LossesTest, AverageGlobalCountsOverMicroBatches) {
    const Tensor first = random_tensor({kSeq, kBatch, kHidden}, 4, 1.5);
    const Tensor second = random_tensor({kSeq, kBatch, kHidden}, 5, 1.5);
    const std::string global = "global_load_balancing_loss";
    const auto counts_of = [&] {
        std::vector<double> counts(kExperts);
        for (double e : to_doubles(values_.at("topk_idx"))) counts[std::size_t(e)] += 1.0;
        return counts;
    };
    make(all_losses());
    forward(first);
    const std::vector<double> n1 = counts_of();
    const double loss = forward(second).at(global);
    std::vector<double> mean = counts_of();
    for (std::int64_t e = 0; e < kExperts; ++e) mean[e] = (mean[e] + n1[e]) / 2.0;
    const auto x = to_doubles(values_.at("logits"));
    EXPECT_NEAR(loss, brute_force(x, "softmax", {}, mean).at(global),
                score_bound_of(GetParam()));
    const double alone = brute_force(x, "softmax", {}).at(global);
    EXPECT_GT(std::abs(loss - alone), 1e-3) << "the mean must matter";
    // Evaluation leaves the counts alone; the next step starts anew.
    forward(first, {}, {.training = false});
    router_->reset_global_aux_loss_tracker();
    EXPECT_NEAR(forward(second).at(global), alone, score_bound_of(GetParam()));
}

TEST_P(LossesTest, ScaleTheirGradientAsTheScheduleSays) {
    for (const Padding& padding : {Padding{}, some_padding()}) {
        const Tensor hidden = random_tensor({kSeq, kBatch, kHidden}, 4, 1.5);
        MoEConfig c = all_losses();
        make(c);
        const Losses losses = forward(hidden, padding);
        const Tensor once = backward();
        const auto times = [&](double factor) {
            Tensor scaled = transfer(once, {MemorySpace::host, DType::f64}).clone();
            for (std::int64_t i = 0; i < scaled.numel(); ++i)
                scaled.data<double>()[i] *= factor;
            return scaled;
        };
        EXPECT_TRUE(Close(backward({.main_loss_backward_scale = 3.0}), times(3.0),
                          score_bound_of(GetParam())));
        EXPECT_TRUE(Close(backward({.main_loss_backward_scale = 0.0}), times(0.0), 0.0));
        const Tensor there = transfer(Tensor::from<float>({1}, {3.0f}),
                                      {router_->placement().space, DType::f32});
        EXPECT_TRUE(BitwiseEqual(backward({.main_loss_backward_scale = there}),
                                 backward({.main_loss_backward_scale = 3.0})));

        // Summed over tokens instead of averaged: by the number of valid ones.
        c.calculate_per_token_loss = true;
        make(c);
        EXPECT_EQ(forward(hidden, padding), losses);
        EXPECT_TRUE(Close(backward(), times(padding.empty() ? 27.0 : 21.0),
                          score_bound_of(GetParam())));
    }
}

TEST_P(LossesTest, TakeLogitsThatExpCannotHold) {
    MoEConfig c = all_losses();
    make(c, {{"router.weight", random_tensor({kExperts, kHidden}, 3, 1000.0)}});
    const Losses losses = forward();
    const auto x = to_doubles(values_.at("logits"));
    double squares = 0.0;  // so far apart that the largest is all of the sum
    for (std::int64_t t = 0; t < kTokens; ++t)
        squares += std::pow(*std::max_element(&x[t * 6], &x[t * 6] + 6), 2);
    EXPECT_NEAR(losses.at("z_loss"), squares / kTokens, 1e-3 * squares / kTokens);
    for (double value : to_doubles(backward())) EXPECT_TRUE(std::isfinite(value));
}

/// The operations alone, on given logits, without a router around them.
class LossesAlone : public LossesTest {};

TEST_P(LossesAlone, NeedNoRouter) {
    const auto ops = make_router_ops(GetParam());
    const auto reference = make_router_ops({"reference_cpu", DType::f64});
    const Tensor logits = random_tensor({kTokens, kExperts}, 6, 1.5);
    for (const std::string& function : kFunctions)
        for (const Padding& padding : {Padding{}, some_padding()}) {
            MoEConfig c = all_losses();
            c.moe_router_score_function = function;
            c.finalize();
            Tensor mask;
            if (!padding.empty())
                mask = Tensor::from<std::uint8_t>({kSeq, kBatch},
                                                  {padding.begin(), padding.end()});
            const auto got = ops->auxiliary_losses(logits, kSeq, kBatch, mask, c, 3.0);
            expect_losses(got.losses, brute_force(to_doubles(logits), function, padding),
                          score_bound_of(GetParam()));
            const auto expected =
                reference->auxiliary_losses(logits, kSeq, kBatch, mask, c, 3.0);
            EXPECT_TRUE(Close(got.dlogits, expected.dlogits, score_bound_of(GetParam())))
                << function;
        }
}

// docs/definitions.md: N is this micro-batch's alone, so that even scores give N̄ / N.
TEST_P(LossesTest, OfUnevenMicroBatchesTheGlobalLossIsNotOne) {
    MoEConfig c = all_losses();
    c.moe_router_load_balancing_type = {"global_aux_loss"};
    c.moe_aux_loss_coeff = {1.0};
    make(c);
    const auto loss = [&](std::int64_t S) {
        return forward(Tensor::zeros({S, kBatch, kHidden}, DType::f32))
            .at("global_load_balancing_loss");
    };
    EXPECT_NEAR(loss(5 * kSeq), 1.0, 1e-6);
    EXPECT_NEAR(loss(kSeq), 3.0, 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Tiers, LossesTest, testing::ValuesIn(router_suppliers()),
                         instance_name);
INSTANTIATE_TEST_SUITE_P(Tiers, LossesAlone,
                         testing::ValuesIn(with_operations(router_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
