// Megatron's mappings and their conjugates: what each does, and that the backward is the
// transpose of the forward: <f(x), y> = <x, f^T(y)>, summed over all ranks.

#include "distributed/mappings.h"

#include <cmath>
#include <numeric>

#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using namespace distributed;

constexpr std::int64_t kWidth = 3;

class MappingsTest : public testing::TestWithParam<int> {
  protected:
    int W() const { return GetParam(); }
    void run(const std::function<void(Communicator&)>& program) const {
        run_ranks(W(), program);
    }
};

/// Rows that differ between ranks and between calls; fp64, exact in bf16.
Tensor rows(const Communicator& group, std::int64_t count, std::uint64_t seed) {
    return transfer(random_tensor({count, kWidth}, seed * 100 + group.rank()),
                    {MemorySpace::host, DType::f64});
}

double dot(const TensorView& a, const TensorView& b) {
    const auto x = to_doubles(a), y = to_doubles(b);
    EXPECT_EQ(x.size(), y.size());
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0);
}

/// Σ over ranks of <f(x), y> and of <x, f^T(y)> agree.
void expect_transposed(Communicator& group, const Tensor& x, const Tensor& fx,
                       const Tensor& y, const Tensor& fty) {
    const Tensor sums =
        Tensor::from({1, 2}, std::vector<double>{dot(fx, y), dot(x, fty)});
    group.all_reduce(sums);
    const auto both = to_doubles(sums);
    EXPECT_NEAR(both[0], both[1], 1e-12 * (1.0 + std::abs(both[0])));
    EXPECT_NE(both[0], 0.0);
}

/// Uneven, with an empty rank where there are several.
Splits uneven(int size) {
    Splits splits(size);
    for (int r = 0; r < size; ++r) splits[r] = (r * 2 + 3) % 5;
    return splits;
}

std::int64_t total(const Splits& splits) {
    return std::accumulate(splits.begin(), splits.end(), std::int64_t{0});
}

TEST_P(MappingsTest, AllToAll) {
    run([&](Communicator& group) {
        const auto sent = [](int from, int to) { return (from * 2 + to * 3 + 1) % 4; };
        Splits in, out;
        for (int r = 0; r < W(); ++r) {
            in.push_back(sent(group.rank(), r));
            out.push_back(sent(r, group.rank()));
        }
        const Tensor x = rows(group, total(in), 1), y = rows(group, total(out), 2);
        const Tensor fx = all_to_all(group, x, out, in);
        expect_transposed(group, x, fx, y, all_to_all(group, y, in, out));
        EXPECT_TRUE(BitwiseEqual(all_to_all(group, fx, in, out), x));
    });
}

TEST_P(MappingsTest, GatherAndReduceScatterAreConjugate) {
    run([&](Communicator& group) {
        for (const Splits& splits : {uneven(W()), Splits(W(), 2)}) {
            const Tensor x = rows(group, splits[group.rank()], 3);
            const Tensor y = rows(group, total(splits), 4);
            const Tensor gathered =
                gather_from_sequence_parallel_region(group, x, splits);
            const Tensor scattered =
                reduce_scatter_to_sequence_parallel_region(group, y, splits);
            EXPECT_EQ(scattered.shape(), x.shape());
            expect_transposed(group, x, gathered, y, scattered);
            // What everybody gathered, everybody sums: W times the own rows.
            const Tensor back =
                reduce_scatter_to_sequence_parallel_region(group, gathered, splits);
            const auto mine = to_doubles(x), summed = to_doubles(back);
            for (std::size_t i = 0; i < mine.size(); ++i)
                EXPECT_NEAR(summed[i], W() * mine[i], 1e-12);
        }
    });
}

TEST_P(MappingsTest, EqualPartsNeedNoSplits) {
    run([&](Communicator& group) {
        const Tensor x = rows(group, 3, 5), y = rows(group, 3 * W(), 6);
        const Splits equal(W(), 3);
        EXPECT_TRUE(BitwiseEqual(gather_from_sequence_parallel_region(group, x),
                                 gather_from_sequence_parallel_region(group, x, equal)));
        EXPECT_TRUE(
            BitwiseEqual(reduce_scatter_to_sequence_parallel_region(group, y),
                         reduce_scatter_to_sequence_parallel_region(group, y, equal)));
    });
}

TEST_P(MappingsTest, ReduceIsTheTransposeOfCopy) {
    run([&](Communicator& group) {
        // f = all-reduce of partial results; its backward hands the gradient, which is
        // the same on every rank, to each. f and f^T meet where x is the same everywhere:
        // <Σ x_r, y> = Σ <x_r, y>.
        const Tensor x = rows(group, 4, 7);
        const Tensor y =
            transfer(random_tensor({4, kWidth}, 8), {MemorySpace::host, DType::f64});
        const Tensor fx = reduce_from_tensor_model_parallel_region(group, x);
        EXPECT_TRUE(BitwiseEqual(x, rows(group, 4, 7)));  // the input stays
        const Tensor partial = Tensor::from({1, 1}, std::vector<double>{dot(x, y)});
        group.all_reduce(partial);
        EXPECT_NEAR(dot(fx, y), to_doubles(partial)[0], 1e-12);
        EXPECT_NE(dot(fx, y), 0.0);
    });
}

/// bf16 rows: 256 + 1 + 1 is 256 when each sum is rounded, 258 when it is rounded once.
TEST_P(MappingsTest, SumsOfExpertsAreRoundedOnce) {
    run([&](Communicator& group) {
        const std::vector<float> values(W() * 2, group.rank() == 0 ? 256.0f : 1.0f);
        const Tensor x = transfer(Tensor::from({W() * 2, 1}, values),
                                  {MemorySpace::host, DType::bf16});
        const Tensor sum = reduce_scatter_in_probs_dtype(group, x);
        EXPECT_EQ(sum.dtype(), DType::bf16);
        const Tensor exact =
            transfer(Tensor::from({2, 1}, std::vector<double>(2, 256.0 + W() - 1)),
                     {MemorySpace::host, DType::bf16});
        EXPECT_TRUE(BitwiseEqual(sum, exact));
    });
}

/// The sum travels in fp32: the books show 4 bytes an element.
TEST(Mappings, SumsOfExpertsTravelInTheDtypeOfProbs) {
    run_ranks(2, [](Communicator& group) {
        const Tensor x = Tensor::zeros({4, kWidth}, DType::bf16);
        group.ledger().reset_sent();
        reduce_scatter_in_probs_dtype(group, x);
        EXPECT_EQ(group.ledger().sent()["reduce_scatter"][1 - group.rank()],
                  2 * kWidth * 4);
        group.ledger().reset_sent();
        reduce_scatter_to_sequence_parallel_region(group, x);
        EXPECT_EQ(group.ledger().sent()["reduce_scatter"][1 - group.rank()],
                  2 * kWidth * 2);
    });
}

INSTANTIATE_TEST_SUITE_P(Ranks, MappingsTest, testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace moe::test
