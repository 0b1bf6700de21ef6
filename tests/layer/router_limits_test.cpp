// The router at its limits: extreme logits, extreme sizes, and gradients that must stay
// finite there.

#include <cmath>
#include <numeric>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

const std::vector<std::string> kFunctions = {"softmax", "sigmoid", "sqrtsoftplus"};

/// Routes given logits (the weight is the identity) and takes a gradient back to them.
class RouterLimits : public testing::TestWithParam<ComponentSpec> {
  protected:
    static MoEConfig config(std::int64_t experts, std::int64_t topk,
                            const std::string& function) {
        MoEConfig c = small_config(experts, experts, topk);
        c.moe_router_score_function = function;
        return c;
    }

    struct Result {
        std::vector<double> probs, map, dlogits;
    };
    Result run(const MoEConfig& c, const Tensor& logits, const Tensor& dprobs) {
        const auto router = make_router(
            GetParam(), c, {{"router.weight", identity_matrix(c.hidden_size)}});
        const auto place = router->placement();
        const auto output = dense_forward(
            *router, transfer(logits.reshaped({logits.dim(0), 1, logits.dim(1)}), place),
            {}, {});
        Tensor dhidden =
            transfer(Tensor::zeros(logits.shape(), DType::f32), place).clone();
        TensorMap gradients;
        dense_backward(*router, dhidden, gradients, transfer(dprobs, place),
                       *output.saved, {});
        return {to_doubles(output.probs), to_doubles(output.routing_map),
                to_doubles(dhidden)};
    }
};

void expect_finite(const std::vector<double>& values, const std::string& what) {
    for (double value : values) EXPECT_TRUE(std::isfinite(value)) << what;
}

TEST_P(RouterLimits, DropTheGradientWhereSoftplusUnderflows) {
    const Tensor logits = Tensor::from<float>({2, 3}, {-120, 1, 2, -120, -120, -120});
    const Tensor dprobs = Tensor::from<float>({2, 3}, {1, 2, 3, 1, 2, 3});
    for (std::int64_t topk : {2, 3}) {
        const Result result = run(config(3, topk, "sqrtsoftplus"), logits, dprobs);
        expect_finite(result.probs, "probs");
        expect_finite(result.dlogits, "dlogits");
        EXPECT_EQ(result.dlogits[0], 0.0);
        EXPECT_NE(result.dlogits[1], 0.0);
        for (int i = 3; i < 6; ++i) EXPECT_EQ(result.dlogits[i], 0.0);
    }
}

TEST_P(RouterLimits, StayFiniteFarOut) {
    // From where nothing is special to far beyond what exp() can hold.
    for (const std::string& function : kFunctions)
        for (float size : {15.f, 25.f, 80.f, 88.f, 100.f, 104.f, 110.f, 1000.f, 1e20f})
            for (std::int64_t topk : {1, 2, 4}) {
                MoEConfig c = config(4, topk, function);
                c.moe_router_pre_softmax = topk == 1;
                const Tensor logits =
                    Tensor::from<float>({4, 4}, {size, 0, -size, 1,           //
                                                 -size, -size, -size, -size,  //
                                                 size, size, size, size,      //
                                                 -size, -0.9f * size, size, 0.9f * size});
                const Result result = run(c, logits, random_tensor({4, 4}, 1));
                const std::string what = function + " at " + std::to_string(size);
                expect_finite(result.probs, what + ", probs");
                expect_finite(result.dlogits, what + ", dlogits");
                EXPECT_EQ(std::accumulate(result.map.begin(), result.map.end(), 0.0),
                          4.0 * double(topk));
            }
}

TEST_P(RouterLimits, TieWhereTheSigmoidSaturates) {
    // All four are 1 in fp32, the precision of scores in every tier: the lower ones win.
    const Tensor logits = Tensor::from<float>({1, 5}, {30, -5, 50, 40, 60});
    const Result result = run(config(5, 2, "sigmoid"), logits, random_tensor({1, 5}, 1));
    EXPECT_EQ(result.map, (std::vector<double>{1, 0, 1, 0, 0}));
    EXPECT_EQ(result.probs[0], 0.5);
    for (double value : result.dlogits) EXPECT_EQ(value, 0.0);
}

TEST_P(RouterLimits, LetTheLargestOfTheSoftmaxTakeAll) {
    const Tensor logits = Tensor::from<float>({1, 3}, {1000, 3000, 2000});
    const Result result = run(config(3, 2, "softmax"), logits, random_tensor({1, 3}, 1));
    EXPECT_EQ(result.probs, (std::vector<double>{0, 1, 0}));
    EXPECT_EQ(result.map, (std::vector<double>{0, 1, 1}));
}

TEST_P(RouterLimits, DoNotNormaliseASingleExpert) {
    // The lone weight is the score itself, so its gradient is the score's slope.
    const Tensor logits = Tensor::from<float>({1, 2}, {0.5f, 0.25f});
    const Tensor dprobs = Tensor::from<float>({1, 2}, {2, 100});
    const double s = 1.0 / (1.0 + std::exp(-0.5)), softplus = std::log1p(std::exp(0.5));
    Result result = run(config(2, 1, "sigmoid"), logits, dprobs);
    EXPECT_NEAR(result.probs[0], s, score_bound_of(GetParam()));
    EXPECT_NEAR(result.dlogits[0], 2.0 * s * (1.0 - s), score_bound_of(GetParam()));
    EXPECT_EQ(result.dlogits[1], 0.0) << "what is not chosen has no gradient";
    result = run(config(2, 1, "sqrtsoftplus"), logits, dprobs);
    EXPECT_NEAR(result.probs[0], std::sqrt(softplus), score_bound_of(GetParam()));
    EXPECT_NEAR(result.dlogits[0], 2.0 * s / (2.0 * std::sqrt(softplus)),
                score_bound_of(GetParam()));
    EXPECT_EQ(result.dlogits[1], 0.0);
}

TEST_P(RouterLimits, RejectLogitsThatAreNotFinite) {
    const auto router_with_bias = [&](const Tensor& bias) {
        MoEConfig c = small_config(4, 5, 2);
        c.add_bias_linear = true;
        return make_router(
            GetParam(), c,
            {{"router.weight", random_tensor({5, 4}, 1)}, {"router.bias", bias}});
    };
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        const auto rejects = [&](const Tensor& hidden, const Tensor& bias,
                                 const std::string& which) {
            const auto router = router_with_bias(bias);
            const Tensor placed = transfer(hidden, router->placement());
            return Rejects(
                [&] { dense_forward(*router, placed, {}, {.training = false}); },
                {which, "must be finite"});
        };
        Tensor hidden = random_tensor({3, 1, 4}, 2), bias = random_tensor({5}, 3);
        bias.data<float>()[3] = bad;
        EXPECT_TRUE(rejects(hidden, bias, "logits[token 0, expert 3] = "));
        bias = random_tensor({5}, 3);
        hidden.data<float>()[2 * 4 + 1] = bad;
        EXPECT_TRUE(rejects(hidden, bias, "logits[token 2, expert 0] = "));
    }
}

TEST_P(RouterLimits, DoNotTurnALargeLogitIntoANaN) {
    // Finite in fp64, infinite in fp32, where the scores are. It may be rejected.
    const Tensor logits = Tensor::from<double>({1, 3}, {1e39, 0, 2e39});
    for (const std::string& function : kFunctions) try {
            const Result result =
                run(config(3, 2, function), logits, random_tensor({1, 3}, 1));
            expect_finite(result.probs, function + ", probs");
            expect_finite(result.dlogits, function + ", dlogits");
        } catch (const InputError& error) {
            EXPECT_NE(std::string(error.what()).find("token 0"), std::string::npos);
        }
}

TEST_P(RouterLimits, TakeNoTokens) {
    for (const std::string& function : kFunctions) {
        const Tensor none = Tensor::zeros({0, 5}, DType::f32);
        const Result result = run(config(5, 2, function), none, none);
        EXPECT_TRUE(result.probs.empty());
        EXPECT_TRUE(result.dlogits.empty());
    }
}

TEST_P(RouterLimits, TakeOneExpertAndAllExperts) {
    const Tensor one = Tensor::from<float>({1, 1}, {0.5f});
    EXPECT_NEAR(run(config(1, 1, "sigmoid"), one, one).probs[0], 0.622459331,
                score_bound_of(GetParam()));
    MoEConfig pre_softmax = config(1, 1, "softmax");
    pre_softmax.moe_router_pre_softmax = true;
    EXPECT_EQ(run(pre_softmax, one, one).probs[0], 1.0);

    const Tensor logits = random_tensor({7, 4}, 9);
    for (const std::string& function : kFunctions) {
        const Result result = run(config(4, 4, function), logits, logits);
        for (double routed : result.map) EXPECT_EQ(routed, 1.0);
    }
}

// What the router adds to the hidden states' gradient, and what it gives its parameters,
// follows from dlogits: dX = dlogits W, dW = dlogitsᵀ X, db = Σ dlogits.
TEST_P(RouterLimits, AddTheirGradientToWhatIsThere) {
    constexpr std::int64_t T = 21, E = 5, H = 13;
    MoEConfig c = small_config(H, E, 2);
    c.add_bias_linear = true;
    const Tensor weight = random_tensor({E, H}, 1), hidden = random_tensor({T, H}, 2);
    const auto router =
        make_router(GetParam(), c,
                    {{"router.weight", weight}, {"router.bias", random_tensor({E}, 3)}});
    const auto place = router->placement();
    ValueRecorder values;
    const RunContext context{.observer = &values};
    const auto output =
        dense_forward(*router, transfer(hidden.reshaped({7, 3, H}), place), {}, context);
    const Tensor before = random_tensor({T, H}, 4);
    Tensor dhidden = transfer(before, place).clone();
    TensorMap gradients;
    dense_backward(*router, dhidden, gradients, transfer(random_tensor({T, E}, 5), place),
                   *output.saved, context);

    const auto g = to_doubles(values.at("d_logits")), w = to_doubles(weight),
               x = to_doubles(hidden);
    Tensor dx = transfer(before, {MemorySpace::host, DType::f64});
    Tensor dw = Tensor::zeros({E, H}, DType::f64), db = Tensor::zeros({E}, DType::f64);
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t e = 0; e < E; ++e) {
            db.data<double>()[e] += g[t * E + e];
            for (std::int64_t h = 0; h < H; ++h) {
                dx.data<double>()[t * H + h] += g[t * E + e] * w[e * H + h];
                dw.data<double>()[e * H + h] += g[t * E + e] * x[t * H + h];
            }
        }
    const double bound = 10.0 * bound_of(GetParam());  // sums that cancel
    EXPECT_TRUE(Close(dhidden, dx, bound));
    EXPECT_TRUE(Close(gradients.at("router.weight"), dw, bound));
    EXPECT_TRUE(Close(gradients.at("router.bias"), db, bound));
    EXPECT_EQ(gradients.size(), 2u);
}

INSTANTIATE_TEST_SUITE_P(Tiers, RouterLimits, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
