// sinkhorn_test.cu: balanced affinities, choices, weights and gradients against plain
// loops in fp64.

#include "optimized_gpu/sinkhorn.h"

#include "gpu/launch.h"
#include "gpu/stream.h"
#include "naive_gpu/routing.h"
#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/routing_support.h"

namespace moe::test {
namespace {

using optimized::SinkhornRouting;
using Floats = std::vector<float>;

/// Megatron's loop.
struct PlainSinkhorn {
    Doubles affinities;
    int rounds = 0;

    PlainSinkhorn(const Floats& x, int T, int E) : affinities(x.size()) {
        Doubles cost(x.size()), d0(T), d1(E, 1.0);
        for (std::size_t i = 0; i < x.size(); ++i) cost[i] = std::exp(double(x[i]));
        for (double error = 1.0; error > 1e-4; ++rounds) {
            error = 0.0;
            for (int t = 0; t < T; ++t) {
                double sum = 0.0;
                for (int e = 0; e < E; ++e) sum += d1[e] * cost[t * E + e];
                d0[t] = 1.0 / T / (sum + 1e-8);
            }
            for (int e = 0; e < E; ++e) {
                double sum = 0.0;
                for (int t = 0; t < T; ++t) sum += d0[t] * cost[t * E + e];
                const double previous = d1[e];
                d1[e] = 1.0 / E / (sum + 1e-8);
                error += std::abs(previous - d1[e]) / E;
            }
        }
        for (std::size_t i = 0; i < x.size(); ++i)
            affinities[i] = d0[i / E] * cost[i] * d1[i % E];
    }
};

/// Of one token, for K experts.
Doubles scores_of(const Floats& x, int t, int E, int K) {
    const Doubles row(x.begin() + t * E, x.begin() + (t + 1) * E);
    return plain_scores(K == 1 ? ScoreFunction::sigmoid : ScoreFunction::softmax, row);
}

MoEConfig config_of(int E, int K) {
    MoEConfig config;
    config.num_moe_experts = E;
    config.moe_router_topk = K;
    config.moe_router_load_balancing_type = {"sinkhorn"};
    // Sinkhorn knows none of these.
    config.moe_router_score_function = "sqrtsoftplus";
    config.moe_router_topk_scaling_factor = 2.5;
    return config;
}

Floats floats_of(const Tensor& tensor) {
    const Doubles values = to_doubles(transfer(tensor, {MemorySpace::host, DType::f32}));
    return {values.begin(), values.end()};
}

void expect_close(const Floats& got, const Doubles& expected, double bound) {
    ASSERT_EQ(got.size(), expected.size());
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], expected[i], bound * (std::abs(expected[i]) + 1e-30)) << i;
}

/// Affinities from the factors that the routing kept.
void expect_balanced(const Floats& x, int T, int E, double bound) {
    SCOPED_TRACE(fmt::format("T {}, E {}", T, E));
    const gpu::Stream stream;
    const Tensor logits = on_device(x, {T, E});
    const auto before = gpu::counters();
    const SinkhornRouting routing =
        optimized::route_sinkhorn(logits, config_of(E, 1), true, stream.get());
    const auto after = gpu::counters();
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    const PlainSinkhorn plain(x, T, E);
    const auto rounds = after.host_waits - before.host_waits;
    EXPECT_EQ(after.launches - before.launches, 2 * rounds + 2);
    if (plain.rounds < 100) {  // fp32 rests sooner where the moves are small
        EXPECT_EQ(rounds, plain.rounds);
    }
    const Floats d0 = floats_of(routing.row_factors);
    const Floats d1 = floats_of(routing.column_factors);
    ASSERT_EQ(d0.size(), std::size_t(T));
    ASSERT_EQ(d1.size(), std::size_t(E));
    Floats affinities;
    for (std::size_t i = 0; i < x.size(); ++i)
        affinities.push_back(d0[i / E] * std::exp(x[i]) * d1[i % E]);
    expect_close(affinities, plain.affinities, bound);
}

TEST(OptimizedSinkhorn, FollowsTheLoop) {
    gpu::register_device_memory();
    for (auto [T, E] : std::vector<std::pair<int, int>>{
             {1, 1}, {1, 3}, {33, 7}, {7, 33}, {257, 3}, {70, 70}, {9, 512}})
        expect_balanced(random_multiples(T * E, T), T, E, 1e-5);
    // So small that the loop's epsilon shows
    expect_balanced({-30, -30, -30, -30}, 2, 2, 1e-5);
    expect_balanced({88, 88, 88, 88}, 2, 2, 1e-5);
    // Hundreds of rounds, not only a few
    expect_balanced({9, 0, 0, 0}, 2, 2, 1e-2);
}

// So many tokens that a warp has two
TEST(OptimizedSinkhorn, BalancesManyTokens) {
    gpu::register_device_memory();
    const int T = 16'391;
    expect_balanced(random_multiples(T, 1), T, 1, 1e-5);
}

void expect_routing(const Floats& x, int T, int E, int K, bool training) {
    SCOPED_TRACE(fmt::format("T {}, E {}, K {}, training {}", T, E, K, training));
    const gpu::Stream stream;
    const MoEConfig config = config_of(E, K);
    const Tensor logits = on_device(x, {T, E});
    const SinkhornRouting routing =
        optimized::route_sinkhorn(logits, config, training, stream.get());
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    std::vector<int> ids;
    Doubles weights;
    const PlainSinkhorn plain(training ? x : Floats(), training ? T : 0, E);
    for (int t = 0; t < T; ++t) {
        const Doubles scores = scores_of(x, t, E, K);
        Doubles keys = scores;
        if (training)
            keys.assign(plain.affinities.begin() + t * E,
                        plain.affinities.begin() + (t + 1) * E);
        for (const int e : plain_top_k(keys, K)) {
            ids.push_back(e);
            weights.push_back(scores[e]);
        }
    }
    EXPECT_EQ(routing.ids.shape(), (Shape{T, K}));
    EXPECT_EQ(routing.weights.shape(), (Shape{T, K}));
    EXPECT_EQ(ints_of(routing.ids), ids);
    expect_close(floats_of(routing.weights), weights, 2e-6);

    const auto naive = naive::route_sinkhorn<float>(logits, config, training);
    const auto naive_ids = gpu::to_host<std::int64_t>(naive.topk_idx);
    EXPECT_EQ(ints_of(routing.ids), std::vector<int>(naive_ids.begin(), naive_ids.end()));
}

TEST(OptimizedSinkhorn, ChoosesByBalanceAndWeighsByScore) {
    gpu::register_device_memory();
    for (const bool training : {true, false}) {
        for (auto [T, E, K] : std::vector<std::array<int, 3>>{{0, 3, 2},
                                                              {1, 1, 1},
                                                              {33, 3, 3},
                                                              {65, 7, 1},
                                                              {65, 7, 2},
                                                              {40, 70, 8},
                                                              {5, 512, 32}})
            expect_routing(random_multiples(T * E, 5), T, E, K, training);
        // Ties
        expect_routing(Floats(5 * 4), 5, 4, 2, training);
        expect_routing(Floats(5 * 40), 5, 40, 1, training);
    }
    in_every_mode([] { expect_routing(random_multiples(9 * 5, 5), 9, 5, 2, true); });
}

/// With one expert through its own sigmoid alone, with several through the softmax.
void expect_gradient(int T, int E, int K) {
    SCOPED_TRACE(fmt::format("T {}, E {}, K {}", T, E, K));
    const gpu::Stream stream;
    const Floats x = random_multiples(T * E, 6), g = random_multiples(T * K, 7);
    const Floats start = random_multiples(T * E, 8);
    std::vector<int> ids;
    Doubles expected(start.begin(), start.end());
    for (int t = 0; t < T; ++t) {
        const Doubles s = scores_of(x, t, E, K);
        Doubles keys;  // any choice will do
        for (int e = 0; e < E; ++e) keys.push_back((e * 7 + t) % E);
        Doubles gradient(E);
        double mean = 0.0;
        const auto chosen = plain_top_k(keys, K);
        for (int k = 0; k < K; ++k) {
            ids.push_back(chosen[k]);
            gradient[chosen[k]] = g[t * K + k];
            mean += g[t * K + k] * s[chosen[k]];
        }
        for (int e = 0; e < E; ++e)
            expected[t * E + e] +=
                K == 1 ? gradient[e] * s[e] * (1.0 - s[e]) : s[e] * (gradient[e] - mean);
    }
    Tensor dlogits = on_device(start, {T, E});
    const Tensor device_g = on_device(g, {T, K}), device_ids = on_device(ids, {T, K});
    const Tensor logits = on_device(x, {T, E});
    const auto before = gpu::counters();
    optimized::route_sinkhorn_backward(dlogits, device_g, device_ids, logits,
                                       config_of(E, K), stream.get());
    EXPECT_EQ(gpu::counters().launches - before.launches, T > 0 ? 1 : 0);
    EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    const Floats got = floats_of(dlogits);
    for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_NEAR(got[i], expected[i], 2e-6) << i;
    if (K > 1) return;
    for (std::size_t i = 0; i < got.size(); ++i)  // others are not touched
        if (ids[i / E] != int(i % E)) {
            EXPECT_EQ(got[i], start[i]) << i;
        }
}

TEST(OptimizedSinkhorn, HasAGradientThroughTheScoresOnly) {
    gpu::register_device_memory();
    for (auto [T, E, K] : std::vector<std::array<int, 3>>{
             {0, 3, 2}, {1, 1, 1}, {257, 3, 1}, {33, 3, 3}, {40, 71, 8}, {5, 512, 32}})
        expect_gradient(T, E, K);
    in_every_mode([] { expect_gradient(9, 41, 2); });
}

/// What the InputError says, or "taken".
std::string words_of(const Floats& x, int T, int E, const MoEConfig& config) {
    const Tensor logits = on_device(x, {T, E});
    try {
        optimized::route_sinkhorn(logits, config, true, nullptr);
        gpu::synchronize();
    } catch (const InputError& error) {
        return error.what();
    }
    return "taken";
}

TEST(OptimizedSinkhorn, RefusesWhatExpCannotHold) {
    const auto words = [](const Floats& x) { return words_of(x, 2, 2, config_of(2, 1)); };
    EXPECT_EQ(words({0, 88.5f, 0, 88}), "taken");
    EXPECT_EQ(words({0, 89, 90, 0}),
              "logits = 90: must be at most 88 with sinkhorn (exp in fp32)");
    const std::string nan =
        "logits = nan: must be at most 88 with sinkhorn (exp in fp32)";
    EXPECT_EQ(words({90, 0, NAN, 0}), nan);
    EXPECT_EQ(words({90, -NAN, 0, 0}), nan);
}

TEST(OptimizedSinkhorn, RefusesWhatNeverSettles) {
    EXPECT_EQ(words_of({40, 0, 0, 39}, 1, 4, config_of(4, 1)),
              "logits = 0 to 40: too uneven for sinkhorn: its factors still move after "
              "8000 rounds");
}

// Of such logits Megatron's loop makes no end, and this one makes it in a known round.
TEST(OptimizedSinkhorn, EndsWhereFactorsRestBesideTheirSize) {
    gpu::register_device_memory();
    const Tensor logits = on_device(
        Floats{-16, -21, -8, -18, 15, 13, -7, -6, -8, -10, -28, 29, 9, 24, 25}, {5, 3});
    const auto before = gpu::counters();
    optimized::route_sinkhorn(logits, config_of(3, 1), true, nullptr);
    EXPECT_EQ(gpu::counters().host_waits - before.host_waits, 1'000);
    gpu::synchronize();
}

TEST(OptimizedSinkhorn, RefusesWhatItsKernelsDoNotHold) {
    EXPECT_EQ(
        words_of(Floats(1025), 1, 1025, config_of(1025, 1)),
        "num_moe_experts = 1025: at most 1024 in optimized_gpu; naive_gpu takes more");
    EXPECT_EQ(words_of(Floats(64), 1, 64, config_of(64, 33)),
              "moe_router_topk = 33: at most 32 in optimized_gpu; naive_gpu takes more");
}

TEST(OptimizedSinkhorn, WaitsInTrainingAlone) {
    gpu::register_device_memory();
    const auto start = gpu::counters();
    optimized::route_sinkhorn(gpu::device_empty<float>({0, 5}), config_of(5, 2), true,
                              nullptr);
    EXPECT_EQ(gpu::counters().launches, start.launches);
    EXPECT_EQ(gpu::counters().host_waits, start.host_waits);
    const Tensor logits = on_device(random_multiples(33 * 5, 1), {33, 5});
    const auto before = gpu::counters();
    optimized::route_sinkhorn(logits, config_of(5, 2), false, nullptr);
    EXPECT_EQ(gpu::counters().launches - before.launches, 1);
    EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
    gpu::synchronize();
}

#if !defined(__CUDACC__) && !defined(MOE_CHECKED)  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedSinkhorn, StaysInItsStream) {
    const int T = 17, E = 5;
    const Floats x = random_multiples(T * E, 2);
    const Tensor logits = on_device(x, {T, E}), zeros = on_device(Floats(T * E), {T, E});
    const PlainSinkhorn plain(x, T, E);
    for (const int K : {1, 2}) {
        const MoEConfig config = config_of(E, K);
        const Tensor dweights = on_device(Floats(T * K, 1.0f), {T, K});
        for (const char* order : kStreamOrders) {
            const HeldStreams held(order);
            const gpu::Stream own;
            Tensor dlogits = zeros.clone();
            const auto routing =
                optimized::route_sinkhorn(logits, config, true, own.get());
            optimized::route_sinkhorn_backward(dlogits, dweights, routing.ids, logits,
                                               config, own.get());
            // Where the gradient is largest
            const auto again =
                optimized::route_sinkhorn(dlogits, config_of(E, 1), false, own.get());
            gpu::check(cudaStreamSynchronize(own.get()), "stream");
            const auto ids = ints_of(routing.ids), best = ints_of(again.ids);
            for (int t = 0; t < T; ++t) {
                const auto first = plain.affinities.begin() + t * E;
                EXPECT_EQ(ids[t * K], std::max_element(first, first + E) - first);
                EXPECT_TRUE(std::count(&ids[t * K], &ids[t * K] + K, best[t]));
            }
        }
    }
}
#endif

}  // namespace
}  // namespace moe::test
