// load_balancing_test.cu: losses and the expert bias against loops in fp64.

#include "optimized_gpu/load_balancing.h"

#include <tuple>

#include "gpu/counters.h"
#include "gpu/stream.h"
#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/load_balancing_support.h"

namespace moe::test {
namespace {

/// One micro-batch, with counts of none before it.
void expect_one(const LossRule& rule, const PlainStatistics& statistics) {
    SCOPED_TRACE(testing::Message()
                 << "E " << rule.num_experts << ", B " << rule.num_sequences << ", P "
                 << statistics.populations << ", coefficients " << rule.aux_loss_coeff
                 << " " << rule.seq_aux_loss_coeff << " " << rule.global_aux_loss_coeff
                 << " " << rule.z_loss_coeff << (rule.per_token ? ", per token" : ""));
    PlainCounts counts;
    const PlainLosses want = plain_losses(rule, statistics, counts);
    Tensor global = zero_counts(rule);
    expect_losses(optimized::auxiliary_losses(upload(statistics), global, rule), want,
                  rule);
}

TEST(OptimizedLosses, EachAloneAndAllTogether) {
    for (const bool per_token : {false, true})
        for (unsigned losses = 0; losses < 16; ++losses)
            for (const int B : {1, 3})
                for (const std::int64_t P : {1, 3}) {
                    const bool by_sequence = (losses & 2u) != 0;
                    if (by_sequence ? P != B : P > B) continue;
                    const LossRule rule = make_rule(6, 2, B, losses, per_token);
                    expect_one(rule, make_statistics(rule, P, 9, 5));
                }
}

TEST(OptimizedLosses, AtEveryWidth) {
    for (const auto& [E, K] :
         {std::pair{1, 1}, {3, 3}, {70, 4}, {257, 8}, {512, 8}, {1024, 32}})
        for (const int B : {1, 3, 300}) {  // more sequences than threads
            if (B == 300 && E > 70) continue;
            const LossRule rule = make_rule(E, K, B, 15, true);
            expect_one(rule, make_statistics(rule, B, B == 300 ? 1 : 40, 9));
        }
}

// As few as there may be, fewer and more than a block has warps, and as many as of 32768
// tokens
TEST(OptimizedLosses, SumUpAnyNumberOfBlocks) {
    for (const std::int64_t blocks : {0, 1, 31, 32, 33, 100, 1024})
        for (const int P : {1, 3}) {
            const LossRule rule = make_rule(blocks > 100 ? 33 : 64, 4, P, 15);
            expect_one(rule, make_statistics(rule, P, 40, 9, blocks));
        }
}

TEST(OptimizedLosses, StartAfreshWithTheSameStatistics) {
    const LossRule rule = make_rule(70, 4, 3, 15);
    const auto plain = make_statistics(rule, 3, 40, 9);
    const auto statistics = upload(plain);
    for (int i = 0; i < 3; ++i) {
        PlainCounts counts;
        Tensor global = zero_counts(rule);
        const auto losses = optimized::auxiliary_losses(statistics, global, rule);
        expect_losses(losses, plain_losses(rule, plain, counts), rule);
        EXPECT_EQ(ints_of(statistics.blocks_done), std::vector<int>{0});
    }
}

TEST(OptimizedLosses, WithoutAValidTokenAllAreZero) {
    for (const bool per_token : {false, true})
        for (const int B : {1, 3}) {
            const LossRule rule = make_rule(5, 2, B, 15, per_token);
            PlainStatistics statistics = make_statistics(rule, B, 0, 5);
            EXPECT_EQ(statistics.score_sums, Doubles(B * 5, 0.0));
            statistics.assignments.assign(B * 5, 0);
            statistics.num_valid = 0;
            Tensor global = zero_counts(rule);
            const auto losses =
                optimized::auxiliary_losses(upload(statistics), global, rule);
            for (const auto& [name, value] : by_name(losses)) EXPECT_EQ(value, 0.0);
            EXPECT_EQ(gpu::to_host<float>(losses.dscores),
                      std::vector<float>(B * 5, 0.0f));
            EXPECT_TRUE(std::isfinite(gpu::to_host<float>(losses.z_scale)[0]));
            Doubles counts(6, 0.0);
            counts[5] = 1.0;  // a micro-batch all the same
            EXPECT_EQ(gpu::to_host<double>(global), counts);
        }
}

TEST(OptimizedLosses, GlobalCountsAreTheMeanOverMicroBatches) {
    const LossRule rule = make_rule(300, 4, 2, 15);
    Tensor global = zero_counts(rule);
    for (int step = 0; step < 2; ++step) {
        PlainCounts counts;
        for (int i = 0; i < 3; ++i) {
            const auto statistics = make_statistics(rule, 2, 20 + 9 * i, 3 + i);
            const PlainLosses want = plain_losses(rule, statistics, counts);
            expect_losses(optimized::auxiliary_losses(upload(statistics), global, rule),
                          want, rule);
            Doubles state = counts.tokens_per_expert;
            state.push_back(i + 1.0);
            EXPECT_EQ(gpu::to_host<double>(global), state);
        }
        optimized::reset_counts(global);
        EXPECT_EQ(gpu::to_host<double>(global), Doubles(301, 0.0));
    }
}

TEST(OptimizedLosses, CountsAreLeftAloneWithoutAGlobalLoss) {
    const LossRule rule = make_rule(4, 2, 1, 1 + 2 + 8);
    const auto statistics = upload(make_statistics(rule, 1, 9, 5));
    Tensor none;
    optimized::auxiliary_losses(statistics, none, rule);
    Tensor counts = on_device(Doubles(5, 3.0), {5});
    optimized::auxiliary_losses(statistics, counts, rule);
    EXPECT_EQ(gpu::to_host<double>(counts), Doubles(5, 3.0));
}

TEST(OptimizedLosses, OneLaunchAndNoWait) {
    for (const unsigned losses : {0u, 1u, 8u, 15u}) {
        const LossRule rule = make_rule(6, 2, 1, losses);
        const auto statistics = upload(make_statistics(rule, 1, 9, 5));
        Tensor global = zero_counts(rule);
        const gpu::Counters before = gpu::counters();
        const auto result = optimized::auxiliary_losses(statistics, global, rule);
        const gpu::Counters after = gpu::counters();
        EXPECT_EQ(after.launches - before.launches, losses == 0 ? 0 : 1);
        EXPECT_EQ(after.host_waits, before.host_waits);
        EXPECT_EQ(result.values.defined(), losses != 0);
    }
}

TEST(OptimizedLosses, TheRuleIsTheConfigs) {
    MoEConfig config;
    config.hidden_size = 8;
    config.num_moe_experts = 16;
    config.moe_router_topk = 4;
    config.add_bias_linear = false;
    config.moe_router_load_balancing_type = {"global_aux_loss", "aux_loss"};
    config.moe_aux_loss_coeff = {0.5, 0.25};
    config.finalize();
    LossRule rule = optimized::make_loss_rule(config, 0);
    EXPECT_EQ(rule.num_experts, 16);
    EXPECT_EQ(rule.topk, 4);
    EXPECT_EQ(rule.num_sequences, 1);
    EXPECT_EQ(rule.aux_loss_coeff, 0.25);
    EXPECT_EQ(rule.seq_aux_loss_coeff, 0.0);
    EXPECT_EQ(rule.global_aux_loss_coeff, 0.5);
    EXPECT_FALSE(rule.has_z_loss);
    EXPECT_FALSE(rule.per_token);
    config.moe_router_load_balancing_type = {"seq_aux_loss"};
    config.moe_aux_loss_coeff = {0.75};
    config.moe_z_loss_coeff = 0.0;
    config.calculate_per_token_loss = true;
    config.finalize();
    rule = optimized::make_loss_rule(config, 6);
    EXPECT_EQ(rule.num_sequences, 6);
    EXPECT_EQ(rule.aux_loss_coeff, 0.0);
    EXPECT_EQ(rule.seq_aux_loss_coeff, 0.75);
    EXPECT_EQ(rule.global_aux_loss_coeff, 0.0);
    EXPECT_TRUE(rule.has_z_loss);  // a coefficient of 0 is one: the loss is shown
    EXPECT_EQ(rule.z_loss_coeff, 0.0);
    EXPECT_TRUE(rule.per_token);
}

TEST(OptimizedLosses, TheSameBitsInEveryMode) {
    const LossRule rule = make_rule(300, 4, 3, 15);
    const auto statistics = make_statistics(rule, 3, 40, 5);
    const auto bits = [&] {
        Tensor global = on_device(Doubles(301, 2.0), {301});
        const auto losses = optimized::auxiliary_losses(upload(statistics), global, rule);
        return std::tuple{
            gpu::to_host<double>(losses.values), gpu::to_host<float>(losses.dscores),
            gpu::to_host<float>(losses.z_scale), gpu::to_host<double>(global)};
    };
    const auto first = bits();
    in_every_mode([&] { EXPECT_TRUE(bits() == first); });
}

// ------------------------------------------------------------------- the expert bias

TEST(OptimizedExpertBias, MovesTowardsEvenUse) {
    for (const int E : {1, 3, 70, 512, 1025}) {
        std::vector<std::int64_t> counts;
        for (float x : random_multiples(E, 4)) counts.push_back(std::llround(8.0f * x));
        // The mean is 50, which some experts have, and the last makes it exact
        for (std::int64_t& count : counts) count = 50 + (count > 6 ? 0 : count);
        std::int64_t total = 0;
        for (int e = 0; e + 1 < E; ++e) total += counts[e];
        counts[E - 1] = 50 * E - total;
        const auto bias = random_multiples(E, 5, 7.0);
        std::vector<float> want;
        for (int e = 0; e < E; ++e)
            want.push_back(counts[e] == 50  ? bias[e]
                           : counts[e] < 50 ? bias[e] + 1e-3f
                                            : bias[e] - 1e-3f);
        EXPECT_EQ(gpu::to_host<float>(optimized::get_updated_expert_bias(
                      on_device(bias, {E}), on_device(counts, {E}), 1e-3)),
                  want)
            << E;
    }
}

TEST(OptimizedExpertBias, CountsAre64Bits) {
    const std::vector<std::int64_t> counts = {std::int64_t(1) << 33, 3, 5};
    EXPECT_EQ(
        gpu::to_host<float>(optimized::get_updated_expert_bias(
            on_device(std::vector<float>(3, 0.0f), {3}), on_device(counts, {3}), 0.5)),
        (std::vector<float>{-0.5f, 0.5f, 0.5f}));
}

TEST(OptimizedExpertBias, CountsStartAfresh) {
    Tensor counts = on_device(std::vector<std::int64_t>{1, 2, 3}, {3});
    const std::int64_t before = gpu::counters().host_waits;
    optimized::reset_counts(counts);
    EXPECT_EQ(gpu::counters().host_waits, before);
    EXPECT_EQ(gpu::to_host<std::int64_t>(counts), std::vector<std::int64_t>(3, 0));
}

#if !defined(__CUDACC__) && !defined(MOE_CHECKED)  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedLosses, StayInTheirStream) {
    const LossRule rule = make_rule(6, 2, 1, 15);
    RoutingRule routing;
    routing.num_experts = 6;
    const auto statistics = upload(make_statistics(rule, 1, 9, 5));
    const Tensor counts = on_device(std::vector<std::int64_t>{1, 2, 3, 4, 5, 6}, {6});
    // All tensors, because to free one is to wait
    const auto run = [&](Tensor global, cudaStream_t stream) {
        using namespace optimized;
        const auto first = auxiliary_losses(statistics, global, rule, stream);
        reset_counts(global, stream);
        const auto losses = auxiliary_losses(statistics, global, rule, stream);
        // What is in dscores serves as logits, and the scores as a bias
        const Tensor scores = compute_aux_scores(losses.dscores, routing, stream);
        const Tensor bias =
            get_updated_expert_bias(scores.reshaped({6}), counts, 0.5, stream);
        const Tensor updated = get_updated_expert_bias(bias, counts, 0.5, stream);
        const Tensor last = compute_aux_scores(updated.reshaped({1, 6}), routing, stream);
        return std::vector{first.values,   first.dscores,  first.z_scale, losses.values,
                           losses.dscores, losses.z_scale, scores,        bias,
                           global,         updated,        last};
    };
    const std::vector<Tensor> want = run(zero_counts(rule), nullptr);
    for (const char* order : kStreamOrders) {
        const Tensor global = zero_counts(rule);
        const HeldStreams held(order);
        const gpu::Stream own;
        const std::vector<Tensor> got = run(global, own.get());
        gpu::check(cudaStreamSynchronize(own.get()), "stream");
        for (const std::size_t f32 : {4, 5, 6, 7, 9, 10})
            EXPECT_EQ(gpu::to_host<float>(got[f32]), gpu::to_host<float>(want[f32]));
        for (const std::size_t f64 : {0, 3, 8})
            EXPECT_EQ(gpu::to_host<double>(got[f64]), gpu::to_host<double>(want[f64]));
    }
}
#endif

}  // namespace
}  // namespace moe::test
