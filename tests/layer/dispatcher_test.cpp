// The dispatcher: rows into expert order and back, in every tier.

#include <numeric>

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

class DispatcherTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    DispatcherTest() {
        MoEConfig config = small_config();
        config.finalize();
        dispatcher_ =
            find_tier("tier", GetParam().tier).make_dispatcher(config, GetParam().dtype);
    }
    Tensor placed(const Tensor& tensor) const {
        return transfer(tensor, dispatcher_->placement());
    }
    Tensor random(const Shape& shape, std::uint64_t seed) const {
        return placed(random_tensor(shape, seed));
    }
    /// Random values are exact in bf16, so that this loses nothing.
    Tensor as_probs(const Tensor& tensor) const {
        return transfer(tensor, probs_placement(dispatcher_->placement()));
    }
    TokenDispatcher::Dispatched dispatch(const Tensor& hidden, const Tensor& probs,
                                         const Tensor& map) {
        return dispatcher_->dispatch(hidden, as_probs(probs), placed(map), {});
    }

    std::unique_ptr<TokenDispatcher> dispatcher_;
};

/// A map in which every entry is 1 with probability one third; column 1 stays empty.
Tensor random_map(std::int64_t T, std::int64_t E, std::uint64_t seed) {
    Tensor map = Tensor::zeros({T, E}, DType::u8);
    const Rng rng(seed);
    for (std::int64_t i = 0; i < T * E; ++i)
        map.data<std::uint8_t>()[i] = i % E != 1 && rng.below(i, 3) == 0;
    return map;
}

TEST_P(DispatcherTest, SendsRowsInTheOrderOfExpertAndToken) {
    constexpr std::int64_t T = 65, E = 7, H = 13;
    const Tensor hidden = random({T, H}, 1), probs = random({T, E}, 2);
    const Tensor map = random_map(T, E, 3);
    const auto sent = dispatch(hidden, probs, map);
    const Values x = to_doubles(hidden), p = to_doubles(probs), routed = to_doubles(map);
    Values rows, row_probs, counts(E);
    for (std::int64_t e = 0; e < E; ++e)
        for (std::int64_t t = 0; t < T; ++t) {
            if (routed[t * E + e] == 0.0) continue;
            rows.insert(rows.end(), &x[t * H], &x[t * H] + H);
            row_probs.push_back(p[t * E + e]);
            counts[e] += 1.0;
        }
    EXPECT_EQ(to_doubles(sent.rows.values), rows);
    EXPECT_EQ(to_doubles(sent.row_probs), row_probs);
    EXPECT_EQ(to_doubles(sent.tokens_per_expert), counts);
    EXPECT_EQ(sent.tokens_per_expert.dtype(), DType::i32);
    EXPECT_EQ(sent.rows.values.shape(), (Shape{std::int64_t(row_probs.size()), H}));
}

TEST_P(DispatcherTest, SumsATokensRowsAndTheSharedOutput) {
    constexpr std::int64_t T = 33, E = 5, H = 12;
    const Tensor map = random_map(T, E, 4);
    const auto sent = dispatch(random({T, H}, 1), random({T, E}, 2), map);
    const std::int64_t N = sent.rows.values.dim(0);
    const Tensor rows = random({N, H}, 5), shared = random({T, H}, 6);
    const Values y = to_doubles(rows), routed = to_doubles(map);
    Tensor expected = Tensor::zeros({T, H}, DType::f64);
    std::int64_t r = 0;
    for (std::int64_t e = 0; e < E; ++e)
        for (std::int64_t t = 0; t < T; ++t) {
            if (routed[t * E + e] == 0.0) continue;
            for (std::int64_t j = 0; j < H; ++j)
                expected.data<double>()[t * H + j] += y[r * H + j];
            ++r;
        }
    const Tensor alone = dispatcher_->combine(rows, {}, *sent.saved, {});
    EXPECT_TRUE(Close(alone, expected, bound_of(GetParam())));
    for (std::int64_t i = 0; i < T * H; ++i)
        expected.data<double>()[i] += to_doubles(shared)[i];
    EXPECT_TRUE(Close(dispatcher_->combine(rows, shared, *sent.saved, {}), expected,
                      bound_of(GetParam())));
}

TEST_P(DispatcherTest, SumsInTheOrderOfTheExperts) {
    // One token with three experts: only in their order does the small one survive.
    const double large = GetParam().dtype == DType::f64 ? 0x1p60 : 0x1p30;
    const auto sent = dispatch(random({1, 1}, 1), random({1, 4}, 2),
                               Tensor::from<std::uint8_t>({1, 4}, {1, 1, 0, 1}));
    const Tensor rows = placed(Tensor::from<double>({3, 1}, {large, -large, 1.0}));
    EXPECT_EQ(to_doubles(dispatcher_->combine(rows, {}, *sent.saved, {})), Values{1.0});
}

TEST_P(DispatcherTest, RoundsATokensSumOnce) {
    // In bf16 256 + 1 is 256: only a sum in fp32 gets to 258, which bf16 has.
    const auto sent = dispatch(random({1, 1}, 1), random({1, 3}, 2),
                               Tensor::from<std::uint8_t>({1, 3}, {1, 1, 1}));
    const Tensor rows = placed(Tensor::from<double>({3, 1}, {256.0, 1.0, 1.0}));
    EXPECT_EQ(to_doubles(dispatcher_->combine(rows, {}, *sent.saved, {})), Values{258.0});
}

TEST_P(DispatcherTest, IsIdentityWithEqualWeights) {
    constexpr std::int64_t T = 129, E = 6, H = 20;
    for (std::int64_t K : {1, 2, 4}) {
        Tensor map = Tensor::zeros({T, E}, DType::u8);
        for (std::int64_t t = 0; t < T; ++t)
            for (std::int64_t k = 0; k < K; ++k)
                map.data<std::uint8_t>()[t * E + (t + k) % E] = 1;
        const Tensor hidden = random({T, H}, 1);
        const auto sent = dispatch(hidden, random({T, E}, 2), map);
        Values rows = to_doubles(sent.rows.values);
        for (double& value : rows) value /= double(K);  // exact: powers of two
        const Tensor back = placed(Tensor::from<double>(sent.rows.values.shape(), rows));
        EXPECT_TRUE(
            BitwiseEqual(dispatcher_->combine(back, {}, *sent.saved, {}), hidden));
        // And the gradient on its way is the same sum.
        const auto gradients =
            dispatcher_->dispatch_backward(back, sent.row_probs, *sent.saved, {});
        EXPECT_TRUE(BitwiseEqual(gradients.dhidden, hidden));
    }
}

TEST_P(DispatcherTest, HasAdjointBackwards) {
    constexpr std::int64_t T = 37, E = 5, H = 11;
    const Tensor map = random_map(T, E, 3), hidden = random({T, H}, 4);
    const Tensor probs = random({T, E}, 5);
    const auto sent = dispatch(hidden, probs, map);
    const std::int64_t N = sent.rows.values.dim(0);
    const Tensor drows = random({N, H}, 6), dp = as_probs(random({N}, 7)),
                 y = random({N, H}, 8);
    const auto product = [](const Tensor& a, const Tensor& b) {
        EXPECT_EQ(a.shape(), b.shape());
        const Values u = to_doubles(a), v = to_doubles(b);
        return std::inner_product(u.begin(), u.end(), v.begin(), 0.0);
    };
    // Sums of some hundred products of size 1.
    const double tolerance = 1000.0 * bound_of(GetParam());
    const auto gradients = dispatcher_->dispatch_backward(drows, dp, *sent.saved, {});
    EXPECT_NEAR(product(sent.rows.values, drows), product(hidden, gradients.dhidden),
                tolerance);
    EXPECT_NEAR(product(sent.row_probs, dp), product(probs, gradients.dprobs), tolerance);
    const Values dprobs = to_doubles(gradients.dprobs), routed = to_doubles(map);
    for (std::size_t i = 0; i < dprobs.size(); ++i)
        EXPECT_TRUE(routed[i] != 0.0 || dprobs[i] == 0.0);
    const Tensor doutput = random({T, H}, 9);
    EXPECT_NEAR(
        product(dispatcher_->combine(y, {}, *sent.saved, {}), doutput),
        product(y, dispatcher_->combine_backward(doutput, *sent.saved, {}).values),
        tolerance);
}

TEST_P(DispatcherTest, TakesNoTokensAndNoRows) {
    const auto none =
        dispatch(random({0, 3}, 1), random({0, 4}, 1), Tensor::zeros({0, 4}, DType::u8));
    EXPECT_EQ(none.rows.values.shape(), (Shape{0, 3}));
    EXPECT_EQ(to_doubles(none.tokens_per_expert), Values(4));
    EXPECT_EQ(dispatcher_->combine(none.rows.values, {}, *none.saved, {}).shape(),
              (Shape{0, 3}));
    EXPECT_EQ(
        dispatcher_->dispatch_backward(none.rows.values, none.row_probs, *none.saved, {})
            .dprobs.shape(),
        (Shape{0, 4}));

    const auto unrouted =
        dispatch(random({5, 3}, 1), random({5, 4}, 1), Tensor::zeros({5, 4}, DType::u8));
    EXPECT_EQ(unrouted.rows.values.shape(), (Shape{0, 3}));
    const Tensor shared = random({5, 3}, 2);
    EXPECT_EQ(
        to_doubles(dispatcher_->combine(unrouted.rows.values, {}, *unrouted.saved, {})),
        Values(15));
    EXPECT_TRUE(BitwiseEqual(
        dispatcher_->combine(unrouted.rows.values, shared, *unrouted.saved, {}), shared));
    EXPECT_EQ(to_doubles(dispatcher_
                             ->dispatch_backward(unrouted.rows.values, unrouted.row_probs,
                                                 *unrouted.saved, {})
                             .dhidden),
              Values(15));
}

TEST_P(DispatcherTest, TakesEverybodyToOneExpertAndToAll) {
    const Tensor hidden = random({9, 3}, 1), probs = random({9, 4}, 2);
    Tensor map = Tensor::zeros({9, 4}, DType::u8);
    for (std::int64_t t = 0; t < 9; ++t) map.data<std::uint8_t>()[t * 4 + 2] = 1;
    const auto one = dispatch(hidden, probs, map);
    EXPECT_TRUE(BitwiseEqual(one.rows.values, hidden));
    EXPECT_EQ(to_doubles(one.tokens_per_expert), (Values{0, 0, 9, 0}));
    std::fill_n(map.data<std::uint8_t>(), map.numel(), 1);
    const auto all = dispatch(hidden, probs, map);
    EXPECT_EQ(to_doubles(all.tokens_per_expert), (Values{9, 9, 9, 9}));
    EXPECT_EQ(all.rows.values.shape(), (Shape{36, 3}));
}

TEST_P(DispatcherTest, SendsAPaddedRowWithProbabilityZero) {
    // Padding to capacity routes tokens that did not ask for it; they keep their place.
    const auto sent = dispatch(random({3, 2}, 1),
                               placed(Tensor::from<float>({3, 1}, {0.5f, 0.0f, 0.25f})),
                               Tensor::from<std::uint8_t>({3, 1}, {1, 1, 1}));
    EXPECT_EQ(to_doubles(sent.row_probs), (Values{0.5, 0.0, 0.25}));
    EXPECT_EQ(to_doubles(sent.tokens_per_expert), Values{3});
}

TEST_P(DispatcherTest, ShowsWhereItsRowsComeFrom) {
    const Tensor map = random_map(17, 4, 5);
    ValueRecorder values;
    const RunContext context{.observer = &values};
    const auto sent = dispatcher_->dispatch(
        random({17, 3}, 1), as_probs(random({17, 4}, 2)), placed(map), context);
    Values tokens;
    for (std::int64_t e = 0; e < 4; ++e)
        for (std::int64_t t = 0; t < 17; ++t)
            if (map.data<std::uint8_t>()[t * 4 + e]) tokens.push_back(double(t));
    EXPECT_EQ(to_doubles(values.at("row_token")), tokens);
    EXPECT_TRUE(BitwiseEqual(values.at("dispatched_hidden_states"), sent.rows.values));
    EXPECT_TRUE(BitwiseEqual(values.at("dispatched_probs"), sent.row_probs));
    EXPECT_TRUE(BitwiseEqual(values.at("tokens_per_expert"), sent.tokens_per_expert));
}

INSTANTIATE_TEST_SUITE_P(Tiers, DispatcherTest,
                         testing::ValuesIn(suppliers_of(ComponentKind::dispatcher)),
                         instance_name);

}  // namespace
}  // namespace moe::test
