// Token dropping: who stays, by policy, and ties.

#include "reference_cpu/token_dropping.h"

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

template <typename Scalar>
class DroppingTest : public testing::Test {
  protected:
    /// Probabilities with their map: routed where the probability was given as >= 0.
    cpu::DroppedRouting drop(const std::vector<double>& entries, std::int64_t experts,
                             double factor, const std::string& policy, bool pad) {
        const auto T = static_cast<std::int64_t>(entries.size()) / experts;
        Tensor probs = Tensor::zeros({T, experts}, dtype_of<Scalar>);
        Tensor map = Tensor::zeros({T, experts}, DType::u8);
        for (std::size_t i = 0; i < entries.size(); ++i) {
            if (entries[i] < 0.0) continue;
            probs.data<Scalar>()[i] = static_cast<Scalar>(entries[i]);
            map.data<std::uint8_t>()[i] = 1;
        }
        MoEConfig config;
        config.num_moe_experts = experts;
        config.moe_router_topk = 1;
        config.moe_expert_capacity_factor = factor;
        config.moe_token_drop_policy = policy;
        config.moe_pad_expert_input_to_capacity = pad;
        return cpu::apply_token_dropping<Scalar>(probs, map, config);
    }
};
using Scalars = testing::Types<float, double>;
TYPED_TEST_SUITE(DroppingTest, Scalars);

constexpr double kNot = -1.0;  // not routed

// Six tokens, two experts, K = 1: an even share is 3, so factor 2/3 gives C = 2.
const std::vector<double> kEntries = {0.5,  kNot, 0.75, kNot, 0.25, kNot,
                                      0.75, kNot, 0.5,  kNot, kNot, 0.125};

TYPED_TEST(DroppingTest, KeepsTheLargestProbabilities) {
    const auto kept = this->drop(kEntries, 2, 2.0 / 3.0, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map),
              (std::vector<double>{0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
    EXPECT_EQ(to_doubles(kept.probs),
              (std::vector<double>{0, 0, 0.75, 0, 0, 0, 0.75, 0, 0, 0, 0, 0.125}));
}

TYPED_TEST(DroppingTest, KeepsTheFirstTokens) {
    const auto kept = this->drop(kEntries, 2, 2.0 / 3.0, "position", false);
    EXPECT_EQ(to_doubles(kept.routing_map),
              (std::vector<double>{1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1}));
}

TYPED_TEST(DroppingTest, GivesTiesToTheEarlierToken) {
    // C = 3: of the two with 0.5, token 0 stays and token 4 goes.
    const auto kept = this->drop(kEntries, 2, 1.0, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map),
              (std::vector<double>{1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1}));
}

TYPED_TEST(DroppingTest, LetsAZeroProbabilityCompeteWithUnroutedTokens) {
    // Token 3 is routed with probability 0; tokens 0 and 1 tie with it and come first.
    const auto kept = this->drop({kNot, kNot, 0.5, 0.0}, 1, 0.5, "probs", false);
    EXPECT_EQ(to_doubles(kept.routing_map), (std::vector<double>{0, 0, 1, 0}));
}

TYPED_TEST(DroppingTest, PadsEveryExpertToItsCapacity) {
    for (const char* policy : {"probs", "position"}) {
        const auto kept = this->drop(kEntries, 2, 1.0, policy, true);
        const auto map = to_doubles(kept.routing_map), p = to_doubles(kept.probs);
        double first = 0.0, second = 0.0;
        for (std::size_t i = 0; i < map.size(); ++i) (i % 2 ? second : first) += map[i];
        EXPECT_EQ(first, 3.0) << policy;
        EXPECT_EQ(second, 3.0) << policy;
        // Expert 1 has one token of its own; the lowest unrouted ones fill up with 0.
        EXPECT_EQ(map[1] + map[3] + map[11], 3.0) << policy;
        EXPECT_EQ(p[1] + p[3], 0.0);
        EXPECT_EQ(p[11], 0.125);
    }
}

TYPED_TEST(DroppingTest, KeepsAllOrNothingAtTheEnds) {
    const auto all = this->drop(kEntries, 2, 100.0, "probs", false);
    double routed = 0.0;
    for (double entry : to_doubles(all.routing_map)) routed += entry;
    EXPECT_EQ(routed, 6.0);
    for (double entry :
         to_doubles(this->drop(kEntries, 2, 0.0, "probs", false).routing_map))
        EXPECT_EQ(entry, 0.0);
}

TYPED_TEST(DroppingTest, RejectsPaddingBeyondTheTokens) {
    EXPECT_TRUE(Rejects([&] { this->drop(kEntries, 2, 2.5, "probs", true); },
                        {"moe_expert_capacity_factor = 2.5", "capacity (8)", "(6)"}));
    EXPECT_NO_THROW(this->drop(kEntries, 2, 2.0, "probs", true));
}

TYPED_TEST(DroppingTest, BackwardKeepsTheGradientOfWhatWasKept) {
    const auto kept = this->drop(kEntries, 2, 2.0 / 3.0, "probs", false);
    const Tensor dprobs =
        transfer(random_tensor({6, 2}, 3), {MemorySpace::host, dtype_of<TypeParam>});
    const auto got = to_doubles(
        cpu::apply_token_dropping_backward<TypeParam>(dprobs, kept.routing_map));
    const auto map = to_doubles(kept.routing_map), all = to_doubles(dprobs);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_EQ(got[i], all[i] * map[i]);
}

// Python's floats decide: (T K / E) * factor, rounded up.
TEST(Capacity, RoundsAsMegatronDoes) {
    const auto capacity = [](std::int64_t T, std::int64_t K, std::int64_t E,
                             double factor) {
        MoEConfig config;
        config.num_moe_experts = E;
        config.moe_router_topk = K;
        config.moe_expert_capacity_factor = factor;
        return get_capacity(config, T);
    };
    EXPECT_EQ(capacity(25, 2, 4, 1.2), 15);
    EXPECT_EQ(capacity(45, 2, 3, 1.1), 33);
    EXPECT_EQ(capacity(6, 2, 4, 0.7), 3);
    EXPECT_EQ(capacity(6, 2, 4, 0.0), 0);
    EXPECT_EQ(capacity(0, 2, 4, 1.0), 0);
    EXPECT_GT(capacity(6, 2, 4, 1e300), 1'000'000);
}

}  // namespace
}  // namespace moe::test
