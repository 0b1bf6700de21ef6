// Token dropping: who stays, by policy; ties; padding to capacity.

#include "core/rng.h"
#include "core/transfer.h"
#include "tests/layer/ops.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using Values = std::vector<double>;

/// Which entries stay, column by column: an entry's rank is the number of entries before
/// it. With padding, unrouted ones fill up.
Values brute_force(const Values& probs, const Values& routed, std::int64_t E,
                   std::int64_t C, bool by_probs, bool pad) {
    const std::int64_t T = std::int64_t(probs.size()) / E;
    const Values& keys = by_probs ? probs : routed;
    Values kept(probs.size());
    for (std::int64_t t = 0; t < T; ++t)
        for (std::int64_t e = 0; e < E; ++e) {
            std::int64_t rank = 0;
            for (std::int64_t other = 0; other < T; ++other) {
                const double a = keys[other * E + e], b = keys[t * E + e];
                rank += a > b || (a == b && other < t);
            }
            kept[t * E + e] = rank < C && (pad || routed[t * E + e] != 0.0);
        }
    return kept;
}

MoEConfig dropping_config(std::int64_t experts, double factor, const std::string& policy,
                          bool pad, std::int64_t topk = 1) {
    MoEConfig config = small_config(experts, experts, topk);
    config.moe_expert_capacity_factor = factor;
    config.moe_token_drop_policy = policy;
    config.moe_pad_expert_input_to_capacity = pad;
    return config;
}

class DroppingTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    /// Probabilities with their map: routed where the probability was given as >= 0.
    DroppedRouting drop(const Values& entries, std::int64_t experts, double factor,
                        const std::string& policy, bool pad) {
        const auto T = static_cast<std::int64_t>(entries.size()) / experts;
        Values probs(entries.size());
        std::vector<std::uint8_t> map(entries.size());
        for (std::size_t i = 0; i < entries.size(); ++i) {
            probs[i] = std::max(entries[i], 0.0);
            map[i] = entries[i] >= 0.0;
        }
        return ops_->apply_token_dropping(Tensor::from({T, experts}, probs),
                                          Tensor::from({T, experts}, map),
                                          dropping_config(experts, factor, policy, pad));
    }
    const std::unique_ptr<RouterOps> ops_ = make_router_ops(GetParam());
};

constexpr double kNot = -1.0;  // not routed

// Six tokens, two experts, K = 1: an even share is 3, so factor 2/3 gives C = 2.
const Values kEntries = {0.5,  kNot, 0.75, kNot, 0.25, kNot,
                         0.75, kNot, 0.5,  kNot, kNot, 0.125};

TEST_P(DroppingTest, KeepsTheLargestProbabilities) {
    const auto kept = drop(kEntries, 2, 2.0 / 3.0, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (Values{0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
    EXPECT_EQ(to_doubles(kept.probs),
              (Values{0, 0, 0.75, 0, 0, 0, 0.75, 0, 0, 0, 0, 0.125}));
}

TEST_P(DroppingTest, KeepsTheFirstTokens) {
    const auto kept = drop(kEntries, 2, 2.0 / 3.0, "position", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (Values{1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1}));
}

TEST_P(DroppingTest, GivesTiesToTheEarlierToken) {
    // C = 3: of the two with 0.5, token 0 stays and token 4 goes.
    const auto kept = drop(kEntries, 2, 1.0, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (Values{1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
}

TEST_P(DroppingTest, LetsAZeroProbabilityCompeteWithUnroutedTokens) {
    // Token 3 is routed with probability 0; tokens 0 and 1 tie with it and come first.
    const Values entries = {kNot, kNot, 0.5, 0.0};
    auto kept = drop(entries, 1, 0.5, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (Values{0, 0, 1, 0}));
    // By position it is the second of its expert, whatever its probability.
    kept = drop(entries, 1, 0.5, "position", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (Values{0, 0, 1, 1}));
}

TEST_P(DroppingTest, FillsUpWithTheLowestUnroutedTokens) {
    for (const char* policy : {"probs", "position"}) {
        const auto kept = drop(kEntries, 2, 1.0, policy, true);
        // Expert 1 has one token of its own, 5; tokens 0 and 1 fill up with probability
        // 0.
        const auto map = to_doubles(kept.routing_map), p = to_doubles(kept.probs);
        for (std::int64_t t = 0; t < 6; ++t) {
            EXPECT_EQ(map[2 * t + 1], t < 2 || t == 5) << policy << t;
            EXPECT_EQ(p[2 * t + 1], t == 5 ? 0.125 : 0.0) << policy << t;
        }
    }
}

TEST_P(DroppingTest, AgreesWithBruteForce) {
    // Probabilities in eighths and zeros: many ties.
    const Rng rng(1);
    std::uint64_t draw = 0;
    for (auto [T, E] : {std::pair<std::int64_t, std::int64_t>{1, 3}, {17, 5}, {65, 2}})
        for (double factor : {0.0, 0.3, 0.7, 1.0, 1.9})
            for (bool by_probs : {true, false})
                for (bool pad : {true, false}) {
                    Values entries(T * E), probs(T * E), routed(T * E);
                    for (std::int64_t i = 0; i < T * E; ++i) {
                        entries[i] = (double(rng.below(draw++, 14)) - 5.0) / 8.0;
                        routed[i] = entries[i] >= 0.0;
                        probs[i] = std::max(entries[i], 0.0);
                    }
                    const std::string policy = by_probs ? "probs" : "position";
                    const std::int64_t C =
                        get_capacity(dropping_config(E, factor, policy, pad), T);
                    const auto kept = drop(entries, E, factor, policy, pad);
                    const Values expected =
                        brute_force(probs, routed, E, C, by_probs, pad);
                    ASSERT_EQ(to_doubles(kept.routing_map), expected);
                    for (std::int64_t i = 0; i < T * E; ++i) probs[i] *= expected[i];
                    ASSERT_EQ(to_doubles(kept.probs), probs);
                }
}

TEST_P(DroppingTest, KeepsAllOrNothingAtTheEnds) {
    for (const char* policy : {"probs", "position"}) {
        // An even share is 3: from twice that on, everybody stays.
        for (double factor : {2.0, 2.1, 100.0, 1e300}) {
            const auto all =
                to_doubles(drop(kEntries, 2, factor, policy, false).routing_map);
            for (std::size_t i = 0; i < all.size(); ++i)
                EXPECT_EQ(all[i], kEntries[i] >= 0.0) << policy << factor;
        }
        for (bool pad : {false, true})
            for (double entry :
                 to_doubles(drop(kEntries, 2, 0.0, policy, pad).routing_map))
                EXPECT_EQ(entry, 0.0);
        EXPECT_EQ(drop({}, 2, 1.0, policy, true).probs.shape(), (Shape{0, 2}));
    }
}

TEST_P(DroppingTest, RejectsPaddingBeyondTheTokens) {
    EXPECT_TRUE(Rejects([&] { drop(kEntries, 2, 2.5, "probs", true); },
                        {"moe_expert_capacity_factor = 2.5", "capacity (8)", "(6)"}));
    const auto full = drop(kEntries, 2, 2.0, "probs", true);
    for (double entry : to_doubles(full.routing_map)) EXPECT_EQ(entry, 1.0);
}

TEST_P(DroppingTest, BackwardKeepsTheGradientOfWhatWasKept) {
    const auto kept = drop(kEntries, 2, 2.0 / 3.0, "probs", false);
    const Tensor dprobs =
        transfer(random_tensor({6, 2}, 3), {MemorySpace::host, GetParam().dtype});
    const auto map = to_doubles(kept.routing_map), all = to_doubles(dprobs);
    const auto got =
        to_doubles(ops_->apply_token_dropping_backward(dprobs, kept.routing_map));
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], all[i] * map[i]);
    EXPECT_EQ(to_doubles(dprobs), all) << "what came in stays as it was";
}

INSTANTIATE_TEST_SUITE_P(Tiers, DroppingTest,
                         testing::ValuesIn(with_operations(router_suppliers())),
                         instance_name);

/// Dropping within the router; the hidden states are the logits.
class RouterDropping : public testing::TestWithParam<ComponentSpec> {};

TEST_P(RouterDropping, AgreesWithBruteForce) {
    constexpr std::int64_t T = 65, E = 7;
    const Tensor logits = random_tensor({T, E}, 2), dprobs = random_tensor({T, E}, 3);
    for (double factor : {0.0, 0.5, 0.9, 2.5})
        for (const char* policy : {"probs", "position"})
            for (bool pad : {false, true}) {
                MoEConfig c = dropping_config(E, factor, policy, pad, 2);
                const auto router =
                    make_router(GetParam(), c, {{"router.weight", identity_matrix(E)}});
                const auto place = router->placement();
                ValueRecorder values;
                const RunContext context{.observer = &values};
                const auto output = dense_forward(
                    *router, transfer(logits.reshaped({T, 1, E}), place), {}, context);

                Values probs = to_doubles(values.at("topk_probs")), routed(T * E);
                const Values chosen = to_doubles(values.at("topk_idx"));
                for (std::size_t i = 0; i < chosen.size(); ++i)
                    routed[i / 2 * E + std::size_t(chosen[i])] = 1.0;
                const std::int64_t C = get_capacity(c, T);
                const Values kept =
                    brute_force(probs, routed, E, C, policy == std::string("probs"), pad);
                for (std::int64_t i = 0; i < T * E; ++i) probs[i] *= kept[i];
                EXPECT_EQ(to_doubles(output.probs), probs) << factor << policy << pad;
                const Values map = to_doubles(output.routing_map);
                // Which tokens fill an expert up carries no meaning, only how many.
                for (std::int64_t e = 0; pad && e < E; ++e) {
                    double count = 0.0;
                    for (std::int64_t t = 0; t < T; ++t) count += map[t * E + e];
                    EXPECT_EQ(count, double(C));
                }
                for (std::int64_t i = 0; i < T * E; ++i)
                    EXPECT_EQ(map[i] * routed[i], kept[i] * routed[i]);

                Tensor dhidden =
                    transfer(Tensor::zeros({T, E}, DType::f32), place).clone();
                TensorMap gradients;
                dense_backward(*router, dhidden, gradients, transfer(dprobs, place),
                               *output.saved, context);
                const Values g = to_doubles(dprobs),
                             got = to_doubles(values.at("d_topk_probs"));
                for (std::int64_t i = 0; i < T * E; ++i) EXPECT_EQ(got[i], g[i] * map[i]);
            }
}

TEST_P(RouterDropping, KeepsADroppedChoiceInItsTokensSum) {
    // Both tokens choose experts 0 and 1; C = 1, so token 1 loses both, and in the
    // weights of the first nothing is made up for it.
    MoEConfig c = dropping_config(3, 0.75, "position", false, 2);
    const auto router =
        make_router(GetParam(), c, {{"router.weight", identity_matrix(3)}});
    const auto place = router->placement();
    const Tensor logits = Tensor::from<float>({2, 1, 3}, {1, 1, -9, 1, 1, -9});
    const auto output = dense_forward(*router, transfer(logits, place), {}, {});
    EXPECT_EQ(to_doubles(output.probs), (Values{0.5, 0.5, 0, 0, 0, 0}));
    // Of token 0 only p_0 has a gradient: dx_0 = p_0 (1 - p_0), dx_1 = -p_0 p_1.
    Tensor dhidden = transfer(Tensor::zeros({2, 3}, DType::f32), place).clone();
    TensorMap gradients;
    dense_backward(*router, dhidden, gradients,
                   transfer(Tensor::from<float>({2, 3}, {1, 0, 0, 1, 1, 1}), place),
                   *output.saved, {});
    EXPECT_EQ(to_doubles(dhidden), (Values{0.25, -0.25, 0, 0, 0, 0}));
}

INSTANTIATE_TEST_SUITE_P(Tiers, RouterDropping, testing::ValuesIn(router_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
