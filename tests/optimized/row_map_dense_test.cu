// row_map_dense_test.cu: the rows of dense maps, and what moves by them, against plain
// loops.

#include <cmath>

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

/// A map (T, E), and the same as lists with E choices each, -1 where it has 0.
struct DenseProblem {
    PermutationCase sizes;
    Bytes map;
    Ints ids;

    Tensor on_device() const {
        return moe::test::on_device(map, {sizes.T, sizes.E}, DType::u8);
    }
    Tensor probs() const {
        return moe::test::on_device(weights_of(sizes.T * sizes.E), {sizes.T, sizes.E});
    }
};

/// "some": tokens with few, with half and with no experts, and nobody goes to expert 1;
/// "all": to every expert; "none".
DenseProblem make_dense(int T, int E, int padding, const std::string& choices = "some") {
    DenseProblem p{{T, E, E, padding, choices}, {}, {}};
    const Rng rng(11, std::uint64_t(T * 1000 + E));
    for (int t = 0; t < T; ++t)
        for (int e = 0; e < E; ++e) {
            const std::uint64_t at = std::uint64_t(t) * E + e;
            const unsigned one_in[] = {2, 16, 1u << 20};
            bool routed = e != 1 && rng.below(at, one_in[t % 3]) == 0;
            if (choices != "some") routed = choices == "all";
            p.map.push_back(!routed ? 0 : e % 2 == 0 ? 1 : 0x80);
            p.ids.push_back(routed ? e : -1);
        }
    return p;
}

void expect_plain(const DenseProblem& p) {
    const PermutationCase& c = p.sizes;
    SCOPED_TRACE(c.text());
    const gpu::Stream stream;
    const RowMap map = optimized::make_row_map_of_dense(p.on_device(), c.padding,
                                                        p.probs(), stream.get());
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    const PlainMap plain(c, p.ids);
    const std::int64_t most = (c.T + c.padding - 1) / c.padding * c.padding;
    EXPECT_EQ(map.capacity, c.E * most);
    EXPECT_EQ(map.topk, c.E);
    ASSERT_EQ(host<int>(map.offsets), plain.offsets);
    EXPECT_EQ(host<int>(map.tokens_per_expert), plain.tokens_per_expert);
    EXPECT_EQ(host<int>(map.row_token, plain.num_rows()), plain.row_token);
    EXPECT_EQ(host<int>(map.row_slot, plain.num_rows()), plain.row_slot);
    EXPECT_EQ(host<float>(map.row_probs, plain.num_rows()),
              row_probs_of(plain, weights_of(c.T * c.E)));
    EXPECT_EQ(host<int>(map.token_rows), plain.token_rows);
    EXPECT_EQ(map.token_rows.shape(), (Shape{c.T, c.E}));
}

TEST(OptimizedRowMapOfDense, OrdersRowsAsPlainLoopsDo) {
    gpu::register_device_memory();
    for (int T : {0, 1, 257})
        for (int E : {1, 3, 70})
            for (int padding : {1, 16, 32}) expect_plain(make_dense(T, E, padding));
    expect_plain(make_dense(65, 512, 16));
    expect_plain(make_dense(9, 1024, 1));
    for (const char* choices : {"all", "none"})
        for (int padding : {1, 32}) expect_plain(make_dense(40, 33, padding, choices));
    in_every_mode([] {
        expect_plain(make_dense(257, 3, 16));
        expect_plain(make_dense(19, 40, 1));
    });
}

// As many chunks as there may be, and several tokens for each warp
TEST(OptimizedRowMapOfDense, CountsInManyChunks) {
    gpu::register_device_memory();
    const DenseProblem p = make_dense(5000, 9, 16);
    expect_plain(p);
    const RowMap map = optimized::make_row_map_of_dense(p.on_device(), 16, {}, nullptr);
    EXPECT_EQ(map.chunk_counts.dim(0), 209);  // of 24 tokens
    gpu::synchronize();
}

TEST(OptimizedRowMapOfDense, AllocatesWhatTheCallerKnows) {
    gpu::register_device_memory();
    const Tensor map = on_device(Bytes{1, 0, 1, 1, 0, 1}, {3, 2}, DType::u8);
    const auto capacity_of = [&](std::int64_t most, int padding) {
        const auto rows =
            optimized::make_row_map_of_dense(map, most, padding, {}, nullptr);
        gpu::synchronize();
        EXPECT_EQ(host<int>(rows.tokens_per_expert), (Ints{2, 2}));
        return rows.capacity;
    };
    EXPECT_EQ(capacity_of(2, 1), 4);
    EXPECT_EQ(capacity_of(2, 16), 32);
    EXPECT_EQ(capacity_of(std::int64_t(1) << 62, 1), 6);
#ifndef __CUDACC__  // on a GPU it would end the program
    for (const std::int64_t most : {1, 0, -1}) {
        try {
            capacity_of(most, 1);
            ADD_FAILURE() << "taken";
        } catch (const gpu::DeviceError& error) {
            EXPECT_NE(std::string(error.what()).find("__trap()"), std::string::npos);
        }
        cudaGetLastError();
    }
#endif
}

TEST(OptimizedRowMapOfDense, RefusesWhatItsKernelsDoNotHold) {
    gpu::register_device_memory();
    const auto map_of = [](std::int64_t T, std::int64_t E, int padding) {
        return refusal([&] {
            static std::uint8_t never_read = 0;
            const Tensor map =
                Tensor::borrow({&never_read, DType::u8, {T, E}, MemorySpace::device});
            optimized::make_row_map_of_dense(map, padding, {}, nullptr);
        });
    };
    EXPECT_EQ(map_of(2, 1025, 1),
              "num_moe_experts = 1025: optimized_gpu takes 1 to 1024 experts; "
              "naive_gpu takes any number");
    EXPECT_EQ(map_of(2, 4, 8), "padding = 8: 1, 16 or 32 rows");
    EXPECT_EQ(map_of(1 << 21, 1024, 1),
              "tokens * num_moe_experts = 2147483648: optimized_gpu takes at most "
              "2147450879; naive_gpu takes more");
}

// ------------------------------------------------------------------------- permutation
Floats random_values(std::int64_t count, std::uint64_t seed) {
    Floats values(count);
    const Rng rng(seed);
    for (std::int64_t i = 0; i < count; ++i)  // of bf16, so that both types hold them
        values[i] = std::round(float(rng.uniform(i)) * 256.0f) / 256.0f - 0.5f;
    return values;
}

Floats on_host(const Tensor& tensor) {
    const auto doubles =
        to_doubles(transfer(tensor, {MemorySpace::host, tensor.dtype()}));
    return {doubles.begin(), doubles.end()};
}

/// Copies to all experts of a token, and the sums over them.
void expect_moved(const DenseProblem& p, int H, DType dtype) {
    const PermutationCase& c = p.sizes;
    SCOPED_TRACE(c.text() + fmt::format(" H={} ", H) + to_string(dtype));
    const gpu::Stream stream;
    const RowMap map =
        optimized::make_row_map_of_dense(p.on_device(), c.padding, {}, stream.get());
    const PlainMap plain(c, p.ids);

    const Floats tokens = random_values(c.T * H, 1), addend = random_values(c.T * H, 3);
    Floats row_values = random_values(map.capacity * H, 2), copies;
    for (std::int64_t r = 0; r < map.capacity; ++r)  // rows of no token
        if (r >= std::int64_t(plain.num_rows()) || plain.row_token[r] < 0)
            std::fill_n(row_values.begin() + r * H, H, NAN);
    for (int token : plain.row_token)
        for (int i = 0; i < H; ++i)
            copies.push_back(token < 0 ? 0.0f : tokens[token * H + i]);
    // Sums of multiples of 2^-8 are exact in fp32
    Floats sums(c.T * H), with_addend = addend;
    for (std::size_t r = 0; r < plain.num_rows(); ++r)
        if (const int t = plain.row_token[r]; t >= 0)
            for (int i = 0; i < H; ++i) sums[t * H + i] += row_values[r * H + i];
    for (int i = 0; i < c.T * H; ++i) with_addend[i] += sums[i];

    const Tensor rows =
        optimized::permute(on_device(tokens, {c.T, H}, dtype), map, stream.get());
    const Tensor device_rows = on_device(row_values, {map.capacity, H}, dtype);
    const Tensor alone = optimized::permute_backward(device_rows, map, stream.get());
    const Tensor both = optimized::combine(
        device_rows, map, on_device(addend, {c.T, H}, dtype), stream.get());
    gpu::check(cudaStreamSynchronize(stream.get()), "stream");
    const auto rounded = [&](const Floats& values) {
        return on_host(on_device(values, {std::int64_t(values.size())}, dtype));
    };
    Floats got = on_host(rows);
    got.resize(copies.size());
    EXPECT_EQ(got, copies);
    EXPECT_EQ(on_host(alone), rounded(sums));
    EXPECT_EQ(on_host(both), rounded(with_addend));
}

// More than 32 experts of a token: more than lanes have, and than are summed at once
TEST(OptimizedRowMapOfDense, MovesTokensOfManyExperts) {
    gpu::register_device_memory();
    for (const DType dtype : {DType::bf16, DType::f32})
        for (const int H : {7, 8, 130}) {
            expect_moved(make_dense(19, 70, 16), H, dtype);
            expect_moved(make_dense(5, 33, 1, "all"), H, dtype);
            expect_moved(make_dense(9, 5, 1), H, dtype);
        }
    expect_moved(make_dense(4, 1024, 1, "all"), 8, DType::bf16);
    expect_moved(make_dense(4, 40, 16, "none"), 8, DType::f32);
    expect_moved(make_dense(4, 40, 1, "all"), 8, DType::f32);
    expect_moved(make_dense(3, 33, 1), 1032, DType::bf16);  // more than one slice
    in_every_mode([] { expect_moved(make_dense(9, 70, 16), 8, DType::bf16); });
}

TEST(OptimizedRowMapOfDense, MovesGradientsOfProbabilitiesBack) {
    gpu::register_device_memory();
    for (const DenseProblem& p : {make_dense(19, 70, 16), make_dense(33, 3, 1)}) {
        const PermutationCase& c = p.sizes;
        SCOPED_TRACE(c.text());
        const RowMap map =
            optimized::make_row_map_of_dense(p.on_device(), c.padding, {}, nullptr);
        const PlainMap plain(c, p.ids);
        const Floats gradients = weights_of(map.capacity);
        const Tensor dprobs = optimized::permute_probs_backward(
            on_device(gradients, {map.capacity}), map, nullptr);
        Floats dexpected(c.T * c.E);
        for (std::size_t r = 0; r < plain.num_rows(); ++r)
            if (plain.row_slot[r] >= 0) dexpected[plain.row_slot[r]] = gradients[r];
        EXPECT_EQ(host<float>(dprobs), dexpected);
        EXPECT_EQ(dprobs.shape(), (Shape{c.T, c.E}));
    }
}

TEST(OptimizedRowMapOfDense, NeedsNoHost) {
    gpu::register_device_memory();
    const Tensor map = make_dense(257, 40, 16).on_device();
    const auto before = gpu::counters();
    const RowMap rows = optimized::make_row_map_of_dense(map, 16, {}, nullptr);
    const auto after = gpu::counters();
    EXPECT_EQ(after.launches - before.launches, 2);
    EXPECT_EQ(after.host_waits, before.host_waits);
    gpu::synchronize();
}

#if !defined(__CUDACC__) && !defined(MOE_CHECKED)  // which fills in the default stream
// Work that landed in the default stream would come after all that needs it.
TEST(OptimizedRowMapOfDense, StaysInItsStream) {
    gpu::register_device_memory();
    const DenseProblem p = make_dense(33, 7, 16);
    const Tensor device = p.on_device();
    const Floats probs = weights_of(p.sizes.T * p.sizes.E);
    const Tensor device_probs = p.probs();
    for (const char* order : kStreamOrders) {
        const HeldStreams held(order);
        const gpu::Stream own;
        const RowMap map =
            optimized::make_row_map_of_dense(device, 16, device_probs, own.get());
        gpu::check(cudaStreamSynchronize(own.get()), "stream");
        const PlainMap plain(p.sizes, p.ids);
        EXPECT_EQ(host<float>(map.row_probs, plain.num_rows()),
                  row_probs_of(plain, probs));
    }
}
#endif

}  // namespace
}  // namespace moe::test
