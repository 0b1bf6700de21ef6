// Who has which tokens, and what must cross each link for a routing map: by hand.

#include "cli/ranks/routes.h"
#include "cli/ranks/run.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::ParallelSizes;
using Tokens = std::vector<std::int64_t>;

ParallelSizes sizes_of(int world, int tp, int cp, int ep, int etp) {
    ParallelSizes sizes;
    sizes.world = world;
    sizes.tensor = tp;
    sizes.context = cp;
    sizes.expert = ep;
    sizes.expert_tensor = etp;
    return sizes;
}

MoEConfig config_of(std::int64_t E, std::int64_t K, const ParallelSizes& sizes,
                    const std::string& dispatcher) {
    MoEConfig config;
    config.hidden_size = 5;
    config.num_moe_experts = E;
    config.moe_router_topk = K;
    config.moe_ffn_hidden_size = 6;
    config.add_bias_linear = false;
    config.tensor_model_parallel_size = sizes.tensor;
    config.sequence_parallel = sizes.tensor > 1;
    config.expert_model_parallel_size = sizes.expert;
    config.expert_tensor_parallel_size = sizes.expert_tensor;
    config.moe_token_dispatcher_type = dispatcher;
    config.finalize();
    return config;
}

TEST(RankTokens, AreReplicasThenPartsThenShards) {
    // Ranks count along TP first: 0 and 1 share the first sequence, 2 and 3 the second.
    const RankTokens dp = split_tokens(sizes_of(4, 2, 1, 1, 1), 4, 2);
    EXPECT_EQ(dp.of_rank, (std::vector<Tokens>{{0, 2}, {4, 6}, {1, 3}, {5, 7}}));
    EXPECT_EQ(dp.seq_len, 2);
    EXPECT_EQ(dp.micro_batch, 1);
    // A context part is cut into the shards of its tensor ranks.
    const RankTokens cp = split_tokens(sizes_of(4, 2, 2, 1, 1), 4, 1);
    EXPECT_EQ(cp.of_rank, (std::vector<Tokens>{{0}, {1}, {2}, {3}}));

    const Tensor whole = random_tensor({8, 3}, 1);
    std::vector<Tensor> parts;
    for (const Tokens& mine : dp.of_rank) parts.push_back(take_rows(whole, mine));
    EXPECT_TRUE(BitwiseEqual(join_rows(parts, dp), whole));
    EXPECT_FALSE(BitwiseEqual(take_rows(whole, {0, 1}), parts[0]));
}

// Two ranks with two tokens and two experts each.
class RoutesTest : public testing::Test {
  protected:
    const ParallelSizes sizes_ = sizes_of(2, 1, 1, 2, 1);
    const RankTokens tokens_{2, 1, {{0, 1}, {2, 3}}};
    const Tensor map_ = Tensor::from<std::uint8_t>({4, 4}, {1, 0, 1, 0,    //
                                                            0, 0, 1, 1,    //
                                                            1, 1, 0, 0,    //
                                                            1, 1, 0, 0});  //
    Links rows(const std::string& dispatcher) const {
        return dispatched_rows(config_of(4, 2, sizes_, dispatcher), sizes_, tokens_,
                               map_);
    }
    Links bytes(const std::string& dispatcher, DType dtype) const {
        return exchanged_bytes(config_of(4, 2, sizes_, dispatcher), sizes_,
                               rows(dispatcher), Step::dispatch, {dtype});
    }
};

TEST_F(RoutesTest, CountRowsByHand) {
    EXPECT_EQ(rows("allgather"), (Links{{0, 2}, {2, 0}}));
    EXPECT_EQ(rows("alltoall"), (Links{{0, 3}, {4, 0}}));  // t0→e2 t1→e2 t1→e3
    EXPECT_EQ(rows("flex"), (Links{{0, 2}, {2, 0}}));      // t0 t1
    const MoEConfig config = config_of(4, 2, sizes_, "alltoall");
    EXPECT_TRUE(BitwiseEqual(rows_per_expert(config, sizes_, tokens_, map_),
                             Tensor::from<std::int64_t>({2, 2}, {3, 2, 2, 1})));
    EXPECT_DOUBLE_EQ(counted_hit(config, map_), 1.25);
}

TEST_F(RoutesTest, PaddingTakesWhatTokensARankHas) {
    const auto padded = [&](const std::string& dispatcher) {
        MoEConfig config = config_of(4, 2, sizes_, dispatcher);
        config.moe_router_padding_for_quantization = true;
        return config;
    };
    // Two tokens of a rank are all there are for an expert of its choice
    EXPECT_EQ(dispatched_rows(padded("alltoall"), sizes_, tokens_, map_),
              (Links{{0, 4}, {4, 0}}));
    EXPECT_TRUE(BitwiseEqual(rows_per_expert(padded("alltoall"), sizes_, tokens_, map_),
                             Tensor::from<std::int64_t>({2, 2}, {4, 2, 2, 2})));
    // Flex sends what it did, and pads nothing where it has received so little
    EXPECT_EQ(dispatched_rows(padded("flex"), sizes_, tokens_, map_), rows("flex"));
    EXPECT_TRUE(BitwiseEqual(rows_per_expert(padded("flex"), sizes_, tokens_, map_),
                             Tensor::from<std::int64_t>({2, 2}, {3, 2, 2, 1})));
}

TEST_F(RoutesTest, CountBytesByHand) {
    // H = 5; a probability is fp32 also beside bf16 rows, an integer 4 bytes; but for
    // flex's counts, of 8.
    EXPECT_EQ(bytes("allgather", DType::f32)[0][1], 2 * (5 * 4 + 4 * (4 + 1)));
    const MoEConfig choices = config_of(4, 2, sizes_, "allgather");
    EXPECT_EQ(exchanged_bytes(choices, sizes_, rows("allgather"), Step::dispatch,
                              {DType::bf16, false})[0][1],
              2 * (5 * 2 + 2 * (4 + 4)));
    EXPECT_EQ(bytes("alltoall", DType::f32)[0][1], 3 * (5 * 4 + 4) + 4 * 4);
    EXPECT_EQ(bytes("alltoall", DType::bf16)[1][0], 4 * (5 * 2 + 4) + 4 * 4);
    EXPECT_EQ(bytes("flex", DType::f64)[0][1], 2 * (5 * 8 + 2 * (4 + 8) + 8) + 2 * 8);
    EXPECT_EQ(bytes("alltoall", DType::f32)[0][0], 0);
    MoEConfig latent = config_of(4, 2, sizes_, "alltoall");  // ℓ = 3
    latent.moe_latent_size = 3;
    EXPECT_EQ(exchanged_bytes(latent, sizes_, rows("alltoall"), Step::dispatch,
                              {DType::bf16})[1][0],
              4 * (3 * 2 + 4) + 4 * 4);
    EXPECT_EQ(exchanged_bytes(latent, sizes_, rows("alltoall"), Step::combine,
                              {DType::bf16})[1][0],
              3 * 3 * 2);
    // With slots for each source ranks tell how many tokens they have, unless they know
    MoEConfig slots = config_of(4, 2, sizes_, "flex");
    for (const std::int64_t once : {8, 0}) {
        EXPECT_EQ(exchanged_bytes(slots, sizes_, rows("flex"), Step::dispatch,
                                  {DType::bf16, false, true})[0][1],
                  2 * (5 * 2 + 2 * (4 + 4) + 8) + once);
        slots.moe_flex_max_tokens_per_rank = 2;
    }
}

TEST_F(RoutesTest, ShardsOfAnExpertGetItsRowsFromTheirOwn) {
    // Two shards of all four experts: AlltoAll has one rank in ep and copies everything.
    const ParallelSizes shards = sizes_of(2, 1, 1, 1, 2);
    const auto count = [&](const std::string& dispatcher) {
        return dispatched_rows(config_of(4, 2, shards, dispatcher), shards, tokens_,
                               map_);
    };
    EXPECT_EQ(count("alltoall"), (Links{{0, 4}, {4, 0}}));
    EXPECT_EQ(count("flex"), (Links{{0, 2}, {2, 0}}));
}

TEST(RankTheory, IsThatOfBalancedRouting) {
    const ParallelSizes four = sizes_of(4, 1, 1, 4, 1);
    EXPECT_DOUBLE_EQ(balanced_rows_per_token(config_of(8, 2, four, "allgather")), 3.0);
    EXPECT_DOUBLE_EQ(balanced_rows_per_token(config_of(8, 2, four, "alltoall")), 1.5);
    // 4 (1 - C(6, 2) / C(8, 2)) = 4 * 13 / 28 ranks, of which 3/4 are others
    const MoEConfig flex = config_of(8, 2, four, "flex");
    EXPECT_DOUBLE_EQ(balanced_hit(flex), 13.0 / 7.0);
    EXPECT_DOUBLE_EQ(balanced_rows_per_token(flex), 13.0 / 7.0 * 0.75);
}

}  // namespace
}  // namespace moe::test
