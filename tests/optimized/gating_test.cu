// gating_test.cu: the gate's products against loops in fp64.

#include "optimized_gpu/gating.h"

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "core/transfer.h"
#include "gpu/counters.h"
#include "gpu/launch.h"
#include "gpu/stream.h"
#include "gpu/tensor.h"
#include "tests/conformance/modes.h"
#ifndef __CUDACC__
#include "tests/gpu/held_streams.h"
#endif
#include "tests/optimized/routing_support.h"

namespace moe::test {
namespace {

struct GateShape {
    std::int64_t T, E, H;
};
// Where one side is long and the others short, sums are made in chunks.
const std::vector<GateShape> kGateShapes = {{0, 3, 8},    {1, 1, 1},     {64, 64, 16},
                                            {257, 3, 70}, {257, 70, 65}, {33, 512, 9},
                                            {3, 4, 1041}, {1101, 5, 33}, {66, 130, 17}};

struct GateTypes {
    DType tokens, weight;
};
const std::vector<GateTypes> kGateTypes = {
    {DType::bf16, DType::f32}, {DType::f32, DType::f32}, {DType::f64, DType::f32},
    {DType::bf16, DType::f64}, {DType::f32, DType::f64}, {DType::f64, DType::f64}};

/// Thirds, which no type has exactly.
Tensor random_thirds(Shape shape, DType dtype, std::uint64_t seed) {
    gpu::register_device_memory();
    Doubles values;
    for (float x : random_multiples(num_elements(shape), seed))
        values.push_back(double(x) / 3.0);
    return transfer(Tensor::from(std::move(shape), values), {MemorySpace::device, dtype});
}

/// What a tensor holds, as the sums see it.
Doubles values_of(const Tensor& tensor, DType sums = DType::f64) {
    Doubles values = to_doubles(tensor);
    if (sums == DType::f32)
        for (double& value : values) value = double(float(value));
    return values;
}

/// ‖got - want‖ / ‖want‖.
double relative_error(const Doubles& got, const Doubles& want) {
    EXPECT_EQ(got.size(), want.size());
    double difference = 0.0, norm = 0.0;
    for (std::size_t i = 0; i < want.size(); ++i) {
        difference += std::pow(got[i] - want[i], 2);
        norm += want[i] * want[i];
    }
    return norm == 0.0 ? std::sqrt(difference) : std::sqrt(difference / norm);
}

void expect_close(const Tensor& got, const Shape& shape, DType dtype,
                  const Doubles& want) {
    ASSERT_EQ(got.shape(), shape);
    ASSERT_EQ(got.dtype(), dtype);
    EXPECT_LE(relative_error(to_doubles(got), want), dtype == DType::f64 ? 1e-14 : 1e-6);
}

/// Σ_d a[i, d] b[j, d], whose strides are those of i or j, and d.
struct Strided {
    const Doubles& values;
    std::int64_t line, depth;
};
Doubles plain_product(const Strided& a, const Strided& b, std::int64_t rows,
                      std::int64_t columns, std::int64_t depth) {
    Doubles result(rows * columns, 0.0);
    for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j)
            for (std::int64_t d = 0; d < depth; ++d)
                result[i * columns + j] += a.values[i * a.line + d * a.depth] *
                                           b.values[j * b.line + d * b.depth];
    return result;
}

template <typename Body>
void for_each_gate(Body body) {
    for (const GateTypes& types : kGateTypes)
        for (const GateShape& s : kGateShapes) {
            SCOPED_TRACE(testing::Message()
                         << "T " << s.T << ", E " << s.E << ", H " << s.H << ", tokens "
                         << to_string(types.tokens) << ", weight "
                         << to_string(types.weight));
            body(types, s);
        }
}

TEST(OptimizedGating, LogitsAreXWTransposedPlusB) {
    for_each_gate([](const GateTypes& types, const GateShape& s) {
        const Tensor x = random_thirds({s.T, s.H}, types.tokens, 1);
        const Tensor weight = random_thirds({s.E, s.H}, types.weight, 2);
        const Tensor bias = random_thirds({s.E}, types.weight, 3);
        Doubles want = plain_product({values_of(x, types.weight), s.H, 1},
                                     {values_of(weight), s.H, 1}, s.T, s.E, s.H);
        expect_close(optimized::gating_forward(x, weight, {}), {s.T, s.E}, types.weight,
                     want);
        const Doubles b = values_of(bias);
        for (std::int64_t i = 0; i < s.T * s.E; ++i) want[i] += b[i % s.E];
        expect_close(optimized::gating_forward(x, weight, bias), {s.T, s.E}, types.weight,
                     want);
    });
}

TEST(OptimizedGating, DhiddenGetsAddedDlogitsW) {
    for_each_gate([](const GateTypes& types, const GateShape& s) {
        Tensor dhidden = random_thirds({s.T, s.H}, types.tokens, 1);
        const Tensor dlogits = random_thirds({s.T, s.E}, types.weight, 2);
        const Tensor weight = random_thirds({s.E, s.H}, types.weight, 3);
        const Doubles before = values_of(dhidden);
        Doubles want = plain_product({values_of(dlogits), s.E, 1},
                                     {values_of(weight), 1, s.H}, s.T, s.H, s.E);
        for (std::int64_t i = 0; i < s.T * s.H; ++i) want[i] += before[i];
        optimized::gating_backward_input(dhidden, dlogits, weight);
        if (types.tokens != DType::bf16) {
            const bool exact = types.tokens == DType::f64 && types.weight == DType::f64;
            EXPECT_LE(relative_error(values_of(dhidden), want), exact ? 1e-14 : 1e-6);
            return;
        }
        // Rounded once: within half a unit of the last of 8 bits
        const Doubles got = values_of(dhidden);
        for (std::int64_t i = 0; i < s.T * s.H; ++i)
            ASSERT_NEAR(got[i], want[i], std::ldexp(1.0, std::ilogb(want[i]) - 8) + 1e-5)
                << i;
    });
}

TEST(OptimizedGating, DhiddenHasTheSameBitsFromWeightsInBf16) {
    for (const DType dtype : {DType::bf16, DType::f32})
        for (const GateShape& s : kGateShapes) {
            const Tensor narrow = random_thirds({s.E, s.H}, DType::bf16, 3);
            const Tensor wide = transfer(narrow, {MemorySpace::device, DType::f32});
            const Tensor dlogits = random_thirds({s.T, s.E}, DType::f32, 2);
            Tensor got = random_thirds({s.T, s.H}, dtype, 1), want = got.clone();
            optimized::gating_backward_input(got, dlogits, narrow);
            optimized::gating_backward_input(want, dlogits, wide);
            EXPECT_EQ(values_of(got), values_of(want)) << s.T << " " << s.E << " " << s.H;
        }
}

TEST(OptimizedGating, DweightIsDlogitsTransposedX) {
    for_each_gate([](const GateTypes& types, const GateShape& s) {
        const Tensor x = random_thirds({s.T, s.H}, types.tokens, 1);
        const Tensor dlogits = random_thirds({s.T, s.E}, types.weight, 2);
        expect_close(optimized::gating_backward_weight(dlogits, x), {s.E, s.H},
                     types.weight,
                     plain_product({values_of(dlogits), 1, s.E},
                                   {values_of(x, types.weight), 1, s.H}, s.E, s.H, s.T));
    });
}

TEST(OptimizedGating, DbiasIsTheSumOfDlogits) {
    for (const DType dtype : {DType::f32, DType::f64})
        for (const auto& [T, E] : {std::pair<std::int64_t, std::int64_t>{0, 4},
                                   {1, 1},
                                   {257, 3},
                                   {7, 70},
                                   {2000, 33},
                                   {2, 512}}) {
            const Tensor dlogits = random_thirds({T, E}, dtype, 4);
            const Doubles values = values_of(dlogits);
            Doubles want(E, 0.0);
            for (std::int64_t i = 0; i < T * E; ++i) want[i % E] += values[i];
            expect_close(optimized::gating_backward_bias(dlogits), {E}, dtype, want);
        }
}

TEST(OptimizedGating, TheSameBitsInEveryMode) {
    const Tensor x = random_thirds({70, 530}, DType::bf16, 1);
    const Tensor weight = random_thirds({5, 530}, DType::f32, 2);
    const Tensor dlogits = random_thirds({600, 5}, DType::f32, 3);
    const Tensor tokens = random_thirds({600, 70}, DType::bf16, 4);
    const auto bits = [&] {
        return std::vector{
            gpu::to_host<float>(optimized::gating_forward(x, weight, {})),
            gpu::to_host<float>(optimized::gating_backward_weight(dlogits, tokens)),
            gpu::to_host<float>(optimized::gating_backward_bias(dlogits))};
    };
    const auto first = bits();
    in_every_mode([&] { EXPECT_EQ(bits(), first); });
}

TEST(OptimizedGating, FewLaunchesNoWaitAndNoMemoryKept) {
    const Tensor weight = random_thirds({5, 40}, DType::f32, 2);
    for (const auto& [T, launches] : {std::pair{100, 1}, {600, 2}}) {
        const Tensor x = random_thirds({T, 40}, DType::bf16, 1);
        const Tensor dlogits = random_thirds({T, 5}, DType::f32, 3);
        const auto counted = [&](auto body) {
            const gpu::Counters before = gpu::counters();
            const Tensor result = body();
            const gpu::Counters after = gpu::counters();
            EXPECT_EQ(after.host_waits, before.host_waits);
            EXPECT_EQ(after.bytes - before.bytes, std::int64_t(result.size_bytes()));
            return after.launches - before.launches;
        };
        EXPECT_EQ(counted([&] { return optimized::gating_forward(x, weight, {}); }), 1);
        EXPECT_EQ(counted([&] { return optimized::gating_backward_weight(dlogits, x); }),
                  launches);
        EXPECT_EQ(counted([&] { return optimized::gating_backward_bias(dlogits); }),
                  launches);
        Tensor dhidden = random_thirds({T, 40}, DType::bf16, 1);
        EXPECT_EQ(counted([&] {
                      optimized::gating_backward_input(dhidden, dlogits, weight);
                      return Tensor();
                  }),
                  1);
    }
}

TEST(OptimizedGating, LogitsBetweenFp64AndFp32) {
    for (const std::int64_t T : {0, 1, 257}) {
        const Tensor logits = random_thirds({T, 3}, DType::f64, 5);
        EXPECT_EQ(optimized::cast_logits(logits, DType::f64).view().bytes,
                  logits.view().bytes);
        const Tensor narrow = optimized::cast_logits(logits, DType::f32);
        ASSERT_EQ(narrow.dtype(), DType::f32);
        ASSERT_EQ(narrow.shape(), logits.shape());
        EXPECT_EQ(values_of(narrow), values_of(logits, DType::f32));
        const Tensor wide = optimized::cast_logits(narrow, DType::f64);
        ASSERT_EQ(wide.dtype(), DType::f64);
        EXPECT_EQ(values_of(wide), values_of(narrow));
    }
}

#if !defined(__CUDACC__) && !defined(MOE_CHECKED)  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedGating, StaysInItsStream) {
    const Tensor x = random_thirds({520, 20}, DType::f32, 1);
    const Tensor weight = random_thirds({3, 20}, DType::f32, 2);
    // All tensors, because to free one is to wait
    const auto run = [&](Tensor dhidden, cudaStream_t stream) {
        using namespace optimized;
        const Tensor logits = gating_forward(x, weight, {}, stream);
        const Tensor wide = cast_logits(logits, DType::f64, stream);
        const Tensor dlogits = cast_logits(wide, DType::f32, stream);
        const Tensor dweight = gating_backward_weight(dlogits, x, stream);
        const Tensor dbias = gating_backward_bias(dlogits, stream);
        const Tensor again = gating_forward(x, dweight, dbias, stream);
        gating_backward_input(dhidden, again, dweight, {}, stream);
        const Tensor last = cast_logits(dhidden, DType::f64, stream);
        return std::vector{logits, wide, dlogits, dweight, dbias, again, dhidden, last};
    };
    const auto want = gpu::to_host<double>(run(x.clone(), nullptr).back());
    for (const char* order : kStreamOrders)
        for (const bool default_first : {false, true}) {  // or what is there comes first
            const Tensor dhidden = x.clone();
            gpu::synchronize();
            const HeldStreams held(order);
            const gpu::Stream own;
            const std::vector<Tensor> all = run(dhidden, own.get());
            if (default_first) gpu::check(cudaStreamSynchronize(nullptr), "default");
            gpu::check(cudaStreamSynchronize(own.get()), "stream");
            EXPECT_EQ(gpu::to_host<double>(all.back()), want);
        }
}
#endif

TEST(OptimizedGating, RefusesOtherTypes) {
    const Tensor x = random_thirds({2, 8}, DType::bf16, 1);
    const auto refusal = [](auto body) -> std::string {
        try {
            body();
        } catch (const InputError& error) {
            return error.what();
        }
        return "";
    };
    const std::string want =
        "dtype = bf16: the gate computes in fp32 or fp64; tokens may be in bf16 as well";
    EXPECT_EQ(refusal([&] { optimized::gating_forward(x, x, {}); }), want);
    EXPECT_EQ(refusal([&] { optimized::gating_backward_weight(x, x); }), want);
    EXPECT_EQ(refusal([&] { optimized::gating_backward_bias(x); }), want);
    EXPECT_EQ(refusal([&] { optimized::cast_logits(x, DType::f32); }), want);
}

}  // namespace
}  // namespace moe::test
