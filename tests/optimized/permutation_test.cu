// permutation_test.cu: rows copied into expert order and summed back, against plain
// loops.

#include "optimized_gpu/permutation.h"

#include <cmath>

#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/permutation_support.h"

namespace moe::test {
namespace {

std::vector<float> random_values(std::int64_t count, std::uint64_t seed) {
    std::vector<float> values(count);
    const Rng rng(seed);
    for (std::int64_t i = 0; i < count; ++i) values[i] = float(rng.uniform(i)) - 0.5f;
    return values;
}

/// Values as the dtype has them.
std::vector<float> rounded(const std::vector<float>& values, DType dtype) {
    const Tensor tensor = Tensor::from({std::int64_t(values.size())}, values);
    const auto doubles = to_doubles(transfer(tensor, {MemorySpace::host, dtype}));
    return {doubles.begin(), doubles.end()};
}
std::vector<float> on_host(const Tensor& tensor) {
    const auto doubles =
        to_doubles(transfer(tensor, {MemorySpace::host, tensor.dtype()}));
    return {doubles.begin(), doubles.end()};
}

/// One NaN is as good as another.
testing::AssertionResult Same(const std::vector<float>& got,
                              const std::vector<float>& expected) {
    if (got.size() != expected.size())
        return testing::AssertionFailure() << got.size() << ", not " << expected.size();
    for (std::size_t i = 0; i < got.size(); ++i)
        if (got[i] != expected[i] && !(std::isnan(got[i]) && std::isnan(expected[i])))
            return testing::AssertionFailure()
                   << "[" << i << "] = " << got[i] << ", not " << expected[i];
    return testing::AssertionSuccess();
}

/// Odd widths; the last two, for few rows, have more than one slice in fp32 and in bf16.
std::vector<int> widths_of(const RowMap& map) {
    if (map.capacity > 300) return {7, 72};
    return {1, 7, 8, 72, 130, 520, 1032};
}

std::vector<PermutationCase> moving_cases() {
    return {{0, 3, 2, 16},           {2, 2, 1, 16},           {1, 1, 1, 1},
            {19, 3, 1, 16},          {19, 5, 5, 32},          {33, 7, 4, 1},
            {12, 60, 9, 16},         {9, 32, 32, 1},          {10, 40, 17, 1},
            {21, 6, 2, 32, "first"}, {21, 6, 3, 16, "twice"}, {11, 6, 2, 16, "none"},
            {40, 255, 8, 1}};
}

TEST(OptimizedPermutation, CopiesTokensToTheirRows) {
    gpu::register_device_memory();
    const auto body = [](const PermutationCase& c, const Ints& ids, const RowMap& map,
                         cudaStream_t stream) {
        const PlainMap plain(c, ids);
        for (const DType dtype : {DType::bf16, DType::f32})
            for (const int H : widths_of(map)) {
                SCOPED_TRACE(to_string(dtype) + fmt::format(" H={}", H));
                const auto tokens = rounded(random_values(c.T * H, 1), dtype);
                const Tensor device = on_device(tokens, {c.T, H}, dtype);
                const Tensor rows = optimized::permute(device, map, stream);
                gpu::check(cudaStreamSynchronize(stream), "stream");
                ASSERT_EQ(rows.shape(), (Shape{map.capacity, H}));
                std::vector<float> got = on_host(rows), expected;
                for (int token : plain.row_token)
                    for (int i = 0; i < H; ++i)
                        expected.push_back(token < 0 ? 0.0f : tokens[token * H + i]);
#ifndef __CUDACC__  // which starts memory as NaN
                expected.resize(got.size(), NAN);
#endif
                got.resize(expected.size());
                EXPECT_TRUE(Same(got, expected));
                EXPECT_TRUE(got.empty() || !std::signbit(got.back()) || got.back() != 0);
            }
    };
    in_every_mode([&] { with_maps({{7, 5, 5, 16}, {33, 7, 4, 1}}, body); });
    with_maps(moving_cases(), body);
}

TEST(OptimizedPermutation, SumsTheRowsOfTokens) {
    gpu::register_device_memory();
    const auto body = [](const PermutationCase& c, const Ints& ids, const RowMap& map,
                         cudaStream_t stream) {
        const PlainMap plain(c, ids);
        for (const DType dtype : {DType::bf16, DType::f32})
            for (const int H : widths_of(map)) {
                SCOPED_TRACE(to_string(dtype) + fmt::format(" H={}", H));
                auto rows = rounded(random_values(map.capacity * H, 2), dtype);
                for (std::int64_t r = 0; r < map.capacity; ++r)  // of no token
                    if (r >= std::int64_t(plain.num_rows()) || plain.row_token[r] < 0)
                        std::fill_n(rows.begin() + r * H, H, NAN);
                const auto addend = rounded(random_values(c.T * H, 3), dtype);
                std::vector<float> sums(c.T * H);
                for (int t = 0; t < c.T; ++t)
                    for (int k = 0; k < c.K; ++k)
                        if (const int row = plain.token_rows[t * c.K + k]; row >= 0)
                            for (int i = 0; i < H; ++i)
                                sums[t * H + i] += rows[row * H + i];
                const Tensor device = on_device(rows, {map.capacity, H}, dtype);
                const Tensor added = on_device(addend, {c.T, H}, dtype);
                const Tensor alone = optimized::combine(device, map, Tensor(), stream);
                const Tensor both = optimized::combine(device, map, added, stream);
                gpu::check(cudaStreamSynchronize(stream), "stream");
                ASSERT_EQ(alone.shape(), (Shape{c.T, H}));
                ASSERT_EQ(alone.dtype(), dtype);
                EXPECT_TRUE(Same(on_host(alone), rounded(sums, dtype)));
                for (int i = 0; i < c.T * H; ++i) sums[i] += addend[i];
                EXPECT_TRUE(Same(on_host(both), rounded(sums, dtype)));
            }
    };
    in_every_mode([&] { with_maps({{7, 5, 5, 16}}, body); });
    with_maps(moving_cases(), body);
}

TEST(OptimizedPermutation, BackwardsAreEachOther) {
    gpu::register_device_memory();
    with_maps({{33, 7, 4, 16}}, [](const PermutationCase& c, const Ints&,
                                   const RowMap& map, cudaStream_t stream) {
        const Tensor x = on_device(random_values(c.T * 24, 4), {c.T, 24}, DType::bf16);
        const Tensor rows = optimized::permute(x, map, stream);
        const Tensor drows = optimized::combine_backward(x, map, stream);
        const Tensor sums = optimized::combine(rows, map, Tensor(), stream);
        const Tensor dtokens = optimized::permute_backward(rows, map, stream);
        gpu::check(cudaStreamSynchronize(stream), "stream");
        EXPECT_TRUE(Same(on_host(drows), on_host(rows)));
        EXPECT_TRUE(Same(on_host(dtokens), on_host(sums)));
    });
}

TEST(OptimizedPermutation, MovesGradientsOfProbabilitiesBack) {
    gpu::register_device_memory();
    in_every_mode([] {
        with_maps(moving_cases(), [](const PermutationCase& c, const Ints& ids,
                                     const RowMap& map, cudaStream_t stream) {
            const PlainMap plain(c, ids);
            auto gradients = random_values(map.capacity, 6);
            std::fill(gradients.begin() + std::ptrdiff_t(plain.num_rows()),
                      gradients.end(), NAN);
            const Tensor dweights = optimized::permute_probs_backward(
                on_device(gradients, {map.capacity}), map, stream);
            gpu::check(cudaStreamSynchronize(stream), "stream");
            std::vector<float> dexpected(c.T * c.K);
            for (std::size_t r = 0; r < plain.num_rows(); ++r)
                if (plain.row_slot[r] >= 0) dexpected[plain.row_slot[r]] = gradients[r];
            EXPECT_EQ(host<float>(dweights), dexpected);
            EXPECT_EQ(dweights.shape(), (Shape{c.T, c.K}));
        });
    });
}

TEST(OptimizedPermutation, NeedsNoHost) {
    gpu::register_device_memory();
    const PermutationCase c{257, 40, 3, 16};
    const Tensor ids = on_device(ids_of(c), {c.T, c.K});
    const Tensor x = gpu::device_zeros<float>({257, 12});
    const Tensor weights = gpu::device_zeros<float>({257, 3});
    auto launches = [before = gpu::counters()](int expected) mutable {
        const auto now = gpu::counters();
        EXPECT_EQ(now.host_waits, before.host_waits);
        EXPECT_EQ(now.launches - before.launches, expected);
        before = now;
    };
    const RowMap map = optimized::make_row_map(ids, c.E, c.padding, weights, nullptr);
    launches(2);
    const Tensor rows = optimized::permute(x, map, nullptr);
    launches(1);
    const Tensor output = optimized::combine(rows, map, x, nullptr);
    launches(1);
    const Tensor dweights =
        optimized::permute_probs_backward(map.row_probs, map, nullptr);
    launches(1);
    gpu::synchronize();
}

#if !defined(__CUDACC__) && !defined(MOE_CHECKED)  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedPermutation, StaysInItsStream) {
    gpu::register_device_memory();
    const PermutationCase c{33, 7, 4, 16};
    const Ints ids = ids_of(c);
    const std::vector<float> weights = random_values(c.T * c.K, 1);
    const Tensor device_ids = on_device(ids, {c.T, c.K});
    const Tensor device_weights = on_device(weights, {c.T, c.K});
    const Tensor x = on_device(std::vector<float>(c.T, 1.0f), {c.T, 1});
    for (const char* order : kStreamOrders) {
        const HeldStreams held(order);
        const gpu::Stream own;
        const cudaStream_t stream = own.get();
        const RowMap map =
            optimized::make_row_map(device_ids, c.E, c.padding, device_weights, stream);
        const Tensor rows = optimized::permute(x, map, stream);
        const Tensor sums = optimized::combine(rows, map, x, stream);
        const Tensor again = optimized::permute(sums, map, stream);
        const Tensor dweights =
            optimized::permute_probs_backward(map.row_probs, map, stream);
        const RowMap map_again =
            optimized::make_row_map(device_ids, c.E, c.padding, dweights, stream);
        gpu::check(cudaStreamSynchronize(stream), "stream");
        const PlainMap plain(c, ids);
        const auto sum_rows = host<float>(again, plain.num_rows());
        const auto row_probs = host<float>(map_again.row_probs, plain.num_rows());
        for (std::size_t r = 0; r < plain.num_rows(); ++r) {
            const int slot = plain.row_slot[r], t = plain.row_token[r];
            EXPECT_EQ(row_probs[r], slot < 0 ? 0.0f : weights[slot]);
            const auto own_ids = ids.begin() + t * c.K;
            EXPECT_EQ(sum_rows[r],
                      slot < 0 ? 0.0f : 1 + c.K - std::count(own_ids, own_ids + c.K, -1));
        }
        const auto dweights_host = host<float>(dweights);
        for (std::size_t i = 0; i < ids.size(); ++i)
            EXPECT_EQ(dweights_host[i], ids[i] < 0 ? 0.0f : weights[i]);
    }
}
#endif

TEST(OptimizedPermutation, RefusesOtherTypes) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 1}, {2, 1});
    const RowMap map = optimized::make_row_map(ids, 2, 1, {}, nullptr);
    const Tensor wide = gpu::device_zeros<double>({2, 4});
    const std::string line =
        "dtype = fp64: optimized_gpu moves rows in bf16 or fp32; naive_gpu has all types";
    EXPECT_EQ(refusal([&] { optimized::permute(wide, map, nullptr); }), line);
    EXPECT_EQ(refusal([&] { optimized::combine(wide, map, {}, nullptr); }), line);
    gpu::synchronize();
}

}  // namespace
}  // namespace moe::test
