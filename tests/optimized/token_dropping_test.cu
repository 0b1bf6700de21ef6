// token_dropping_test.cu: who stays within capacity, against naive_gpu's rule in plain
// loops.

#include "optimized_gpu/token_dropping.h"

#include <cmath>

#include "optimized_gpu/multihot.h"
#include "optimized_gpu/permutation.h"
#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/permutation_support.h"

namespace moe::test {
namespace {

using Bytes = std::vector<std::uint8_t>;
using Floats = std::vector<float>;

struct DroppingProblem {
    PermutationCase sizes;
    std::string values = "many";  ///< see weights_of()
    std::int64_t capacity = 1;
    bool by_probs = true;

    std::string text() const {
        return fmt::format("{} {} C={} {}", sizes.text(), values, capacity,
                           by_probs ? "probs" : "position");
    }
};

/// "many" different ones; "few": from -0.5 to 0.5 in five steps, so that ties, zeros and
/// negative ones are frequent; "zeros": 0 and -0 alone; "near": neighbours in fp32, which
/// differ in the last bits.
Floats weights_of(const DroppingProblem& p) {
    const std::size_t count = std::size_t(p.sizes.T) * p.sizes.K;
    const Rng rng(23, count);
    Floats weights;
    for (std::size_t i = 0; i < count; ++i) {
        float weight = float(rng.uniform(i));
        if (p.values == "few") weight = 0.25f * float(rng.below(i, 5)) - 0.5f;
        if (p.values == "zeros") weight = rng.below(i, 2) == 0 ? 0.0f : -0.0f;
        if (p.values == "near") weight = 0.5f + std::ldexp(float(rng.below(i, 300)), -24);
        weights.push_back(weight);
    }
    return weights;
}

/// What stays, densely.
struct PlainDropping {
    Bytes map;
    Floats probs;

    PlainDropping(const DroppingProblem& p, const Ints& ids, const Floats& weights,
                  bool pad) {
        const auto [T, E, K] = std::tuple(p.sizes.T, p.sizes.E, p.sizes.K);
        map.resize(std::size_t(T) * E);
        probs.resize(map.size());
        for (std::size_t i = 0; i < ids.size(); ++i)
            if (ids[i] >= 0) {
                map[i / K * E + ids[i]] = 1;
                probs[i / K * E + ids[i]] = weights[i];
            }
        Bytes kept(map.size());
        for (int e = 0; e < E; ++e)
            for (int t = 0; t < T; ++t) {
                const auto value = [&](int token) {
                    return p.by_probs ? probs[token * E + e] : float(map[token * E + e]);
                };
                std::int64_t rank = 0;
                for (int other = 0; other < T; ++other)
                    rank += value(other) > value(t) ||
                            (value(other) == value(t) && other < t);
                kept[t * E + e] = rank < p.capacity && (pad || map[t * E + e] != 0);
            }
        for (std::size_t i = 0; i < map.size(); ++i)
            if (kept[i] == 0) probs[i] = 0.0f;
        map = kept;
    }
};

void expect_plain(const DroppingProblem& p) {
    SCOPED_TRACE(p.text());
    const PermutationCase& c = p.sizes;
    const gpu::Stream own;
    const cudaStream_t stream = own.get();
    const Ints ids = ids_of(c);
    const Floats weights = weights_of(p);
    const Tensor device_ids = on_device(ids, {c.T, c.K});
    const Tensor device_weights = on_device(weights, {c.T, c.K});
    const auto kept = optimized::drop_tokens(device_ids, device_weights, c.E, p.capacity,
                                             p.by_probs, stream);
    gpu::check(cudaStreamSynchronize(stream), "stream");
    const PlainDropping plain(p, ids, weights, false);
    Ints expected;
    for (std::size_t i = 0; i < ids.size(); ++i)
        expected.push_back(ids[i] >= 0 && plain.map[i / c.K * c.E + ids[i]] != 0 ? ids[i]
                                                                                 : -1);
    EXPECT_EQ(kept.ids.shape(), (Shape{c.T, c.K}));
    EXPECT_EQ(host<int>(kept.ids), expected);
    if (p.capacity > c.T) return;

    const auto padded = optimized::pad_to_capacity(device_ids, device_weights, c.E,
                                                   p.capacity, p.by_probs, stream);
    gpu::check(cudaStreamSynchronize(stream), "stream");
    const PlainDropping filled(p, ids, weights, true);
    EXPECT_EQ(padded.map.shape(), (Shape{c.T, c.E}));
    EXPECT_EQ(padded.probs.shape(), (Shape{c.T, c.E}));
    EXPECT_EQ(host<std::uint8_t>(padded.map), filled.map);
    EXPECT_EQ(host<float>(padded.probs), filled.probs);
}

TEST(OptimizedTokenDropping, KeepsWhomPlainLoopsKeep) {
    gpu::register_device_memory();
    for (const bool by_probs : {false, true}) {
        for (const char* values : {"many", "few"})
            for (const std::int64_t capacity : {0, 1, 9, 16, 32, 33, 34})
                expect_plain({{33, 3, 3, 1}, values, capacity, by_probs});
        expect_plain({{0, 3, 2, 1}, "many", 0, by_probs});
        expect_plain({{0, 3, 2, 1}, "many", 5, by_probs});
        expect_plain({{1, 1, 1, 1}, "few", 0, by_probs});
        expect_plain({{1, 1, 1, 1}, "few", 1, by_probs});
        expect_plain({{257, 3, 2, 1}, "many", 70, by_probs});
        expect_plain({{257, 3, 2, 1}, "few", 256, by_probs});
        expect_plain({{40, 70, 8, 1}, "many", 3, by_probs});
    }
    expect_plain({{9, 65, 32, 1}, "few", std::int64_t(1) << 62, true});
}

TEST(OptimizedTokenDropping, CountsWhoWasNotRouted) {
    gpu::register_device_memory();
    for (const char* values : {"few", "zeros", "near"})
        for (const char* choices : {"some", "first"})
            for (const std::int64_t capacity : {7, 60, 90, 99})
                expect_plain({{100, 3, 2, 1, choices}, values, capacity, true});
    expect_plain({{100, 3, 2, 1, "none"}, "few", 30, true});
    expect_plain({{100, 3, 2, 1, "first"}, "few", 30, false});
}

// More than 256 tokens: their numbers have two digits, and more than 65536 three
TEST(OptimizedTokenDropping, FindsTheLastOfManyTokens) {
    gpu::register_device_memory();
    for (const std::int64_t capacity : {255, 257, 1400})
        for (const char* values : {"zeros", "near"})
            expect_plain({{2000, 2, 1, 1}, values, capacity, true});

    // All alike: the first C of each
    const int T = 66'000, C = 65'700;
    const Tensor ids = on_device(Ints(T), {T, 1});
    const Tensor weights = on_device(Floats(T, 0.5f), {T, 1});
    const auto kept = optimized::drop_tokens(ids, weights, 1, C, true, nullptr);
    Ints expected(T, -1);
    std::fill_n(expected.begin(), C, 0);
    EXPECT_EQ(host<int>(kept.ids), expected);
}

TEST(OptimizedTokenDropping, IsTheSameInEveryOrder) {
    gpu::register_device_memory();
    in_every_mode([] {
        expect_plain({{65, 3, 2, 1}, "few", 20, true});
        expect_plain({{40, 3, 1, 1}, "many", 3, false});
    });
}

TEST(OptimizedTokenDropping, RefusesToPadBeyondAllTokens) {
    MoEConfig config;
    config.num_moe_experts = 4;
    config.moe_router_topk = 2;
    config.moe_expert_capacity_factor = 2.5;
    EXPECT_EQ(optimized::capacity_of_experts(config, 10), 13);  // ⌈10 * 2 / 4 * 2.5⌉
    config.moe_pad_expert_input_to_capacity = true;
    EXPECT_EQ(refusal([&] { optimized::capacity_of_experts(config, 10); }),
              "moe_expert_capacity_factor = 2.5: with moe_pad_expert_input_to_capacity "
              "the capacity (13) must be at most the number of tokens (10)");
    config.moe_expert_capacity_factor = 2.0;
    EXPECT_EQ(optimized::capacity_of_experts(config, 10), 10);
}

TEST(OptimizedTokenDropping, NeedsNoHost) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 2, -1, 1}, {2, 2});
    const Tensor weights = gpu::device_zeros<float>({2, 2});
    const auto before = gpu::counters();
    const auto kept = optimized::drop_tokens(ids, weights, 3, 1, true, nullptr);
    EXPECT_EQ(gpu::counters().launches - before.launches, 3);
    const auto padded = optimized::pad_to_capacity(ids, weights, 3, 1, true, nullptr);
    EXPECT_EQ(gpu::counters().launches - before.launches, 7);
    EXPECT_EQ(gpu::counters().host_waits, before.host_waits);
    gpu::synchronize();
}

#ifndef __CUDACC__
#ifndef MOE_CHECKED  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedTokenDropping, StaysInItsStream) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 1, 0}, {3, 1});
    const Tensor weights = on_device(Floats{1, 2, 3}, {3, 1});
    for (const char* order : kStreamOrders) {
        const HeldStreams held(order);
        const gpu::Stream own;
        const auto kept = optimized::drop_tokens(ids, weights, 2, 1, true, own.get());
        const auto columns =
            optimized::indices_to_multihot(kept.ids, weights, 2, own.get());
        const auto padded =
            optimized::pad_to_capacity(ids, weights, 2, 2, true, own.get());
        const auto rows =
            optimized::make_row_map_of_dense(padded.map, 2, 1, padded.probs, own.get());
        const auto again =
            optimized::permute_probs_backward(rows.row_probs, rows, own.get());
        gpu::check(cudaStreamSynchronize(own.get()), "stream");
        EXPECT_EQ(host<float>(columns.probs), (Floats{0, 0, 0, 2, 3, 0}));
        EXPECT_EQ(host<int>(rows.row_token), (Ints{0, 2, 0, 1}));
        EXPECT_EQ(host<float>(again), (Floats{1, 0, 0, 2, 3, 0}));
    }
}
#endif

TEST(OptimizedTokenDropping, StopsAtAnExpertThatDoesNotExist) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 2}, {2, 1});
    const Tensor weights = gpu::device_zeros<float>({2, 1});
    try {
        const auto kept = optimized::drop_tokens(ids, weights, 2, 1, true, nullptr);
        gpu::synchronize();
        ADD_FAILURE() << "taken";
    } catch (const gpu::DeviceError& error) {
        EXPECT_NE(std::string(error.what()).find("__trap()"), std::string::npos);
    }
    cudaGetLastError();
}
#endif

}  // namespace
}  // namespace moe::test
