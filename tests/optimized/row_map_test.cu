// row_map_test.cu: the order of rows against plain loops.

#include "optimized_gpu/row_map.h"

#include <cmath>

#include "tests/conformance/modes.h"
#include "tests/optimized/permutation_support.h"

namespace moe::test {
namespace {

std::vector<PermutationCase> all_cases() {
    std::vector<PermutationCase> cases;
    for (int T : {0, 1, 257})
        for (auto [E, K] : std::vector<std::pair<int, int>>{
                 {1, 1}, {3, 1}, {3, 3}, {255, 3}, {896, 12}, {32, 32}, {1024, 17}})
            for (int padding : {1, 16, 32}) cases.push_back({T, E, K, padding});
    for (const char* choices : {"first", "twice", "none"})
        for (int padding : {1, 32}) {
            cases.push_back({300, 40, 1, padding, choices});
            cases.push_back({75, 5, 4, padding, choices});
        }
    return cases;
}

void expect_plain(const PermutationCase& c, const Ints& ids, const RowMap& map,
                  cudaStream_t stream) {
    gpu::check(cudaStreamSynchronize(stream), "stream");
    const PlainMap plain(c, ids);
    ASSERT_LE(plain.num_rows(), std::size_t(map.capacity));
    ASSERT_EQ(host<int>(map.offsets), plain.offsets);
    EXPECT_EQ(host<int>(map.tokens_per_expert), plain.tokens_per_expert);
    Ints rows_per_expert;
    for (int e = 0; e < c.E; ++e)
        rows_per_expert.push_back(plain.offsets[e + 1] - plain.offsets[e]);
    EXPECT_EQ(host<int>(map.rows_per_expert), rows_per_expert);
    EXPECT_EQ(host<int>(map.row_token, plain.num_rows()), plain.row_token);
    EXPECT_EQ(host<int>(map.row_slot, plain.num_rows()), plain.row_slot);
    EXPECT_EQ(host<float>(map.row_probs, plain.num_rows()),
              row_probs_of(plain, weights_of(c.T * c.K)));
#ifndef __CUDACC__  // which starts memory as NaN: behind the rows nobody wrote
    const auto probs = host<float>(map.row_probs);
    EXPECT_TRUE(std::all_of(probs.begin() + std::ptrdiff_t(plain.num_rows()), probs.end(),
                            [](float prob) { return std::isnan(prob); }));
#endif
    EXPECT_EQ(host<int>(map.token_rows), plain.token_rows);
    EXPECT_EQ(map.token_rows.shape(), (Shape{c.T, c.K}));
}

TEST(OptimizedRowMap, OrdersRowsAsPlainLoopsDo) {
    gpu::register_device_memory();
    with_maps(all_cases(), expect_plain);
    in_every_mode([] {
        with_maps({{257, 3, 3, 16}, {75, 40, 17, 1}, {75, 5, 4, 32, "twice"}},
                  expect_plain);
    });
}

// As many chunks as there may be, and several steps of each warp
TEST(OptimizedRowMap, CountsInManyChunks) {
    gpu::register_device_memory();
    with_maps({{16384, 9, 8, 16}}, [](const PermutationCase& c, const Ints& ids,
                                      const RowMap& map, cudaStream_t stream) {
        expect_plain(c, ids, map, stream);
        EXPECT_EQ(map.chunk_counts.dim(0), 256);  // of 64 tokens: the most
    });
}

TEST(OptimizedRowMap, HasNoWeightsUnlessTheyAreGiven) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{1, 0}, {2, 1});
    const RowMap map = optimized::make_row_map(ids, 2, 16, {}, nullptr);
    EXPECT_FALSE(map.row_probs.defined());
    EXPECT_EQ(host<int>(map.offsets), (Ints{0, 2, 4})) << "of no more than two tokens";
}

TEST(OptimizedRowMap, RefusesWhatItsKernelsDoNotHold) {
    gpu::register_device_memory();
    const auto map_of = [](std::int64_t K, int E, int padding) {
        return refusal([&] {
            const Tensor ids = gpu::device_empty<int>({2, K});
            optimized::make_row_map(ids, E, padding, {}, nullptr);
        });
    };
    EXPECT_EQ(map_of(33, 64, 1),
              "moe_router_topk = 33: optimized_gpu takes 1 to 32 experts per token; "
              "naive_gpu takes any number");
    EXPECT_EQ(map_of(2, 1025, 1),
              "num_moe_experts = 1025: optimized_gpu takes 1 to 1024 experts; "
              "naive_gpu takes any number");
    EXPECT_EQ(map_of(2, 4, 8), "padding = 8: 1, 16 or 32 rows");
}

#ifndef __CUDACC__  // on a GPU it would end the program
TEST(OptimizedRowMap, StopsAtAnExpertThatDoesNotExist) {
    gpu::register_device_memory();
    const Tensor ids = on_device(Ints{0, 2}, {2, 1});
    try {
        const RowMap map = optimized::make_row_map(ids, 2, 1, {}, nullptr);
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
