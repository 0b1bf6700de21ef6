// Auxiliary losses, z-loss, sinkhorn and the expert bias, against brute force.

#include "reference_cpu/load_balancing.h"

#include <chrono>
#include <cmath>

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 9, kBatch = 3, kExperts = 6, kTopk = 2, kHidden = 5;

class LossesTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    LossesTest() : config_(small_config(kHidden, kExperts, kTopk, 4)) {
        config_.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss",
                                                  "global_aux_loss"};
        config_.moe_aux_loss_coeff = {0.5, 0.25, 0.125};
        config_.moe_z_loss_coeff = 0.01;
        config_.finalize();
        parameters_ = random_parameters(config_, 3);
    }

    MoELayer layer() { return {config_, ModuleSpec::uniform(GetParam()), parameters_}; }
    Losses run(MoELayer& layer, const Tensor& hidden, const Tensor& mask = {}) {
        return layer.forward(hidden, mask, {.observer = &values_}).losses;
    }
    double tolerance() const { return GetParam().dtype == DType::f64 ? 1e-6 : 5e-6; }

    MoEConfig config_;
    TensorMap parameters_;
    ValueRecorder values_;
};

/// The losses of the logits as the formulas have them, without padding: fp64 throughout.
Losses brute_force(const std::vector<double>& x, const std::vector<bool>& padding) {
    const auto E = kExperts;
    std::vector<std::vector<double>> counts(kBatch, std::vector<double>(E)),
        sums = counts;
    std::vector<double> lengths(kBatch);
    double squares = 0.0, valid = 0.0;
    for (std::int64_t t = 0; t < kSeq * kBatch; ++t) {
        if (padding[t]) continue;
        const std::int64_t b = t % kBatch;
        double total = 0.0;
        for (std::int64_t e = 0; e < E; ++e) total += std::exp(x[t * E + e]);
        squares += std::pow(std::log(total), 2);
        lengths[b] += 1.0;
        valid += 1.0;
        for (std::int64_t e = 0; e < E; ++e) {
            sums[b][e] += std::exp(x[t * E + e]) / total;
            std::int64_t better = 0;
            for (std::int64_t j = 0; j < E; ++j) better += x[t * E + j] > x[t * E + e];
            counts[b][e] += better < kTopk;
        }
    }
    double aux = 0.0, seq = 0.0;
    for (std::int64_t e = 0; e < E; ++e) {
        double n = 0.0, s = 0.0;
        for (std::int64_t b = 0; b < kBatch; ++b) {
            n += counts[b][e];
            s += sums[b][e];
            // The length of every sequence is the mean one, as Megatron has it.
            const double length = valid / kBatch;
            seq += double(E) / (kTopk * length * length) * counts[b][e] * sums[b][e] /
                   kBatch;
        }
        aux += double(E) / (kTopk * valid * valid) * n * s;
    }
    return {{"load_balancing_loss", aux},
            {"seq_load_balancing_loss", seq},
            {"global_load_balancing_loss", aux},
            {"z_loss", squares / valid}};
}

void expect_losses(const Losses& got, const Losses& expected, double tolerance) {
    ASSERT_EQ(got.size(), expected.size());
    for (const auto& [name, value] : expected)
        EXPECT_NEAR(got.at(name), value, tolerance * std::abs(value)) << name;
}

TEST_P(LossesTest, FollowTheFormulas) {
    MoELayer subject = layer();
    const Losses got = run(subject, random_tensor({kSeq, kBatch, kHidden}, 4, 1.5));
    expect_losses(
        got,
        brute_force(to_doubles(values_.at("logits")), std::vector<bool>(kSeq * kBatch)),
        tolerance());
}

TEST_P(LossesTest, LeavePaddingOut) {
    Tensor mask = Tensor::zeros({kBatch, kSeq}, DType::u8);
    std::vector<bool> padding(kSeq * kBatch);
    for (auto [b, s] : {std::pair<int, int>{0, 8}, {1, 0}, {1, 7}, {2, 3}}) {
        mask.data<std::uint8_t>()[b * kSeq + s] = 1;
        padding[s * kBatch + b] = true;
    }
    MoELayer subject = layer();
    const Losses got = run(subject, random_tensor({kSeq, kBatch, kHidden}, 4, 1.5), mask);
    expect_losses(got, brute_force(to_doubles(values_.at("logits")), padding),
                  tolerance());
}

TEST_P(LossesTest, AreZeroWithoutAValidToken) {
    Tensor mask = Tensor::zeros({kBatch, kSeq}, DType::u8);
    std::fill_n(mask.data<std::uint8_t>(), mask.numel(), 1);
    const Tensor hidden = random_tensor({kSeq, kBatch, kHidden}, 4);
    MoELayer subject = layer();
    const auto forward = subject.forward(hidden, mask, {});
    for (const auto& [name, loss] : forward.losses) EXPECT_EQ(loss, 0.0) << name;
    const auto gradients =
        subject.backward(Tensor::zeros(hidden.shape(), DType::f32), forward.saved, {});
    for (double value : to_doubles(gradients.parameters.at("router.weight")))
        EXPECT_EQ(value, 0.0);

    const auto nothing =
        subject.forward(Tensor::zeros({0, kBatch, kHidden}, DType::f32), {}, {});
    for (const auto& [name, loss] : nothing.losses) EXPECT_EQ(loss, 0.0) << name;
}

TEST_P(LossesTest, AreOneForAUniformRouter) {
    for (const char* function : {"softmax", "sigmoid", "sqrtsoftplus"}) {
        config_.moe_router_score_function = function;
        parameters_["router.weight"] = Tensor::zeros({kExperts, kHidden}, DType::f32);
        MoELayer subject = layer();
        const Losses losses = run(subject, random_tensor({kSeq, kBatch, kHidden}, 4));
        for (const char* name : {"load_balancing_loss", "seq_load_balancing_loss",
                                 "global_load_balancing_loss"})
            EXPECT_NEAR(losses.at(name), 1.0, 1e-6) << name << " " << function;
    }
}

TEST_P(LossesTest, AverageGlobalCountsOverMicroBatches) {
    const Tensor first = random_tensor({kSeq, kBatch, kHidden}, 4, 1.5);
    const Tensor second = random_tensor({kSeq, kBatch, kHidden}, 5, 1.5);
    const std::string global = "global_load_balancing_loss";
    // Counts and score sums of a batch, from the aux loss of the batch itself.
    const auto statistics = [&](const Tensor& hidden) {
        MoELayer subject = layer();
        run(subject, hidden);
        const auto scores = to_doubles(values_.at("aux_scores"));
        const auto map = to_doubles(values_.at("topk_idx"));
        std::vector<double> n(kExperts), s(kExperts);
        for (double e : map) n[std::size_t(e)] += 1.0;
        for (std::size_t i = 0; i < scores.size(); ++i) s[i % kExperts] += scores[i];
        return std::pair(n, s);
    };
    const auto [n1, s1] = statistics(first);
    const auto [n2, s2] = statistics(second);
    const double tokens = kSeq * kBatch;
    const auto loss = [&](const std::vector<double>& n, const std::vector<double>& s) {
        double sum = 0.0;
        for (std::int64_t e = 0; e < kExperts; ++e)
            sum += n[e] * s[e] * kExperts / (kTopk * tokens * tokens);
        return sum;
    };
    std::vector<double> mean(kExperts);
    for (std::int64_t e = 0; e < kExperts; ++e) mean[e] = (n1[e] + n2[e]) / 2.0;

    MoELayer subject = layer();
    EXPECT_NEAR(run(subject, first).at(global), loss(n1, s1), 1e-5);
    EXPECT_NEAR(run(subject, second).at(global), loss(mean, s2), 1e-5);
    EXPECT_GT(std::abs(loss(mean, s2) - loss(n2, s2)), 1e-4) << "the mean must matter";
    subject.reset_global_aux_loss_tracker();
    EXPECT_NEAR(run(subject, second).at(global), loss(n2, s2), 1e-5);
}

TEST_P(LossesTest, HaveAGradientWithoutAMainLossAndNoneOutsideTraining) {
    const Tensor hidden = random_tensor({kSeq, kBatch, kHidden}, 4);
    const Tensor zero = Tensor::zeros(hidden.shape(), DType::f32);
    MoELayer subject = layer();
    const auto norm = [&](const RunContext& context) {
        const auto forward = subject.forward(hidden, {}, context);
        EXPECT_EQ(forward.losses.empty(), !context.training);
        double sum = 0.0;
        const auto gradients = subject.backward(zero, forward.saved, context);
        for (double value : to_doubles(gradients.parameters.at("router.weight")))
            sum += value * value;
        return std::sqrt(sum);
    };
    const double once = norm({});
    EXPECT_GT(once, 1e-4);
    EXPECT_EQ(norm({.training = false}), 0.0);
    subject.reset_global_aux_loss_tracker();
    EXPECT_NEAR(norm({.main_loss_backward_scale = 3.0}), 3.0 * once, 1e-5 * once);
}

INSTANTIATE_TEST_SUITE_P(Tiers, LossesTest, testing::ValuesIn(available_suppliers()),
                         instance_name);

template <typename Scalar>
class SinkhornTest : public testing::Test {};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(SinkhornTest, Scalars);

TYPED_TEST(SinkhornTest, BalancesRowsAndColumns) {
    constexpr std::int64_t T = 21, E = 5;
    const Tensor logits =
        transfer(random_tensor({T, E}, 1), {MemorySpace::host, dtype_of<TypeParam>});
    const auto d = to_doubles(cpu::sinkhorn<TypeParam>(logits));
    std::vector<double> rows(T), columns(E);
    for (std::int64_t i = 0; i < T * E; ++i) rows[i / E] += d[i], columns[i % E] += d[i];
    for (double row : rows) EXPECT_NEAR(row, 1.0 / T, 1e-3 / T);
    for (double column : columns) EXPECT_NEAR(column, 1.0 / E, 1e-5);
}

TYPED_TEST(SinkhornTest, RejectsWhatWouldOverflowOrNeverSettle) {
    Tensor large = Tensor::zeros({2, 2}, dtype_of<TypeParam>);
    large.template data<TypeParam>()[0] = 90;
    EXPECT_TRUE(Rejects([&] { cpu::sinkhorn<TypeParam>(large); }, {"logits = 90", "88"}));

    // Tiny affinities drown in the loop's epsilon; it must end all the same.
    const auto start = std::chrono::steady_clock::now();
    Tensor tiny = Tensor::zeros({9, 3}, dtype_of<TypeParam>);
    for (std::int64_t i = 0; i < 27; ++i)
        tiny.template data<TypeParam>()[i] = TypeParam(-20 - (7 * i) % 11);
    try {
        cpu::sinkhorn<TypeParam>(tiny);
    } catch (const InputError&) {
    }
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
}

TEST(ExpertBias, MovesTowardsBalance) {
    const Tensor bias = Tensor::from<float>({2}, {0.5f, -0.5f});
    EXPECT_EQ(to_doubles(cpu::get_updated_expert_bias(bias, {3, 1}, 0.25)),
              (std::vector<double>{0.25, -0.25}));
    EXPECT_TRUE(BitwiseEqual(cpu::get_updated_expert_bias(bias, {2, 2}, 0.25), bias));
}

}  // namespace
}  // namespace moe::test
