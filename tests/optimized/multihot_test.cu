// multihot_test.cu: lists of experts against columns, by plain loops.

#include "optimized_gpu/multihot.h"

#include <cmath>

#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/permutation_support.h"

namespace moe::test {
namespace {

using optimized::Multihot;
using Floats = std::vector<float>;

Floats random_floats(std::size_t count, std::uint64_t seed) {
    Floats values(count);
    const Rng rng(seed);
    for (std::size_t i = 0; i < count; ++i) values[i] = float(rng.uniform(i)) - 0.5f;
    return values;
}

/// A choice and its gradient, there and back.
void expect_multihot(const PermutationCase& c) {
    SCOPED_TRACE(c.text());
    const gpu::Stream stream;
    const Ints ids = ids_of(c);
    const Floats weights = random_floats(ids.size(), 1);
    const Floats dprobs = random_floats(std::size_t(c.T) * c.E, 2);
    const Tensor device_ids = on_device(ids, {c.T, c.K});
    const Multihot got = optimized::indices_to_multihot(
        device_ids, on_device(weights, {c.T, c.K}), c.E, stream.get());
    const Tensor dweights = optimized::indices_to_multihot_backward(
        on_device(dprobs, {c.T, c.E}), device_ids, stream.get());
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");

    std::vector<std::uint8_t> map(dprobs.size());
    Floats probs(dprobs.size()), expected(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i) {
        if (ids[i] < 0) continue;
        const std::size_t at = i / c.K * c.E + ids[i];
        map[at] = 1;
        probs[at] = weights[i];
        expected[i] = dprobs[at];
    }
    Ints ascending = ids;
    for (int t = 0; t < c.T; ++t)
        std::sort(ascending.begin() + t * c.K, ascending.begin() + (t + 1) * c.K,
                  [](int a, int b) { return unsigned(a) < unsigned(b); });  // -1 last
    const Tensor back = optimized::multihot_to_indices(got.map, c.K);
    EXPECT_EQ(back.shape(), (Shape{c.T, c.K}));
    EXPECT_EQ(host<int>(back), ascending);
    EXPECT_EQ(got.map.shape(), (Shape{c.T, c.E}));
    EXPECT_EQ(got.probs.shape(), (Shape{c.T, c.E}));
    EXPECT_EQ(host<std::uint8_t>(got.map), map);
    EXPECT_EQ(host<float>(got.probs), probs);
    EXPECT_EQ(dweights.shape(), (Shape{c.T, c.K}));
    EXPECT_EQ(host<float>(dweights), expected);
}

TEST(OptimizedMultihot, EntersTheChoicesAmongZeros) {
    gpu::register_device_memory();
    for (int T : {0, 1, 257})
        for (auto [E, K] : std::vector<std::pair<int, int>>{
                 {1, 1}, {3, 1}, {3, 3}, {70, 8}, {512, 32}, {65, 64}})
            expect_multihot({T, E, K, 1});
    expect_multihot({33, 40, 4, 1, "none"});
    expect_multihot({33, 40, 4, 1, "first"});
    in_every_mode([] { expect_multihot({19, 70, 8, 1}); });
}

TEST(OptimizedMultihot, NeedsNoHost) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 2, -1, 1}, {2, 2});
    const Tensor weights = gpu::device_zeros<float>({2, 2});
    const auto before = gpu::counters();
    const Multihot got = optimized::indices_to_multihot(ids, weights, 3, nullptr);
    const Tensor back = optimized::indices_to_multihot_backward(got.probs, ids, nullptr);
    const auto after = gpu::counters();
    EXPECT_EQ(after.launches - before.launches, 2);
    EXPECT_EQ(after.host_waits, before.host_waits);
    gpu::synchronize();
}

#ifndef __CUDACC__
#ifndef MOE_CHECKED  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedMultihot, StaysInItsStream) {
    gpu::register_device_memory();
    const Ints ids = {0, 2, -1, 1};
    const Tensor device_ids = on_device(ids, {2, 2});
    const Tensor weights = on_device(Floats{1, 2, 3, 4}, {2, 2});
    for (const char* order : kStreamOrders) {
        const HeldStreams held(order);
        const gpu::Stream own;
        const Multihot got =
            optimized::indices_to_multihot(device_ids, weights, 3, own.get());
        const Tensor back =
            optimized::indices_to_multihot_backward(got.probs, device_ids, own.get());
        const Multihot again =
            optimized::indices_to_multihot(device_ids, back, 3, own.get());
        gpu::check(cudaStreamSynchronize(own.get()), "stream");
        EXPECT_EQ(host<float>(again.probs), (Floats{1, 0, 2, 0, 4, 0}));
    }
}
#endif

TEST(OptimizedMultihot, StopsAtAnExpertThatDoesNotExist) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 2}, {2, 1});
    const Tensor values = gpu::device_zeros<float>({2, 2});
    const Tensor weights = gpu::device_zeros<float>({2, 1});
    const auto expect_trap = [](const std::function<void()>& work) {
        try {
            work();
            gpu::synchronize();
            ADD_FAILURE() << "taken";
        } catch (const gpu::DeviceError& error) {
            EXPECT_NE(std::string(error.what()).find("__trap()"), std::string::npos);
        }
        cudaGetLastError();
    };
    expect_trap([&] { optimized::indices_to_multihot(ids, weights, 2, nullptr); });
    expect_trap([&] { optimized::indices_to_multihot_backward(values, ids, nullptr); });
}
#endif

}  // namespace
}  // namespace moe::test
