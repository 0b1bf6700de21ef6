// permutation_test.cu: what optimized_gpu's permutation does to memory, held to its
// floors.

#include "optimized_gpu/permutation.h"

#include <fstream>

#include "core/floors.h"
#include "core/transfer.h"
#include "gpu/tensor.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

using optimized::RowMap;

/// The lines with this text in the kernels' source.
Counters at(const Report& report, const std::string& source, const std::string& text) {
    std::ifstream lines(MOE_SOURCE_DIR "/optimized_gpu/" + source);
    Counters found;
    int number = 0;
    for (std::string line; std::getline(lines, line);) {
        ++number;
        if (line.find(text) == line.npos) continue;
        for (const auto& kernel : report.kernels)
            for (const auto& each : kernel.lines)
                if (each.line == number && each.file.ends_with(source))
                    found += each.counters;
    }
    EXPECT_GT(found.instructions, 0) << text;
    return found;
}

/// Bytes that the launches since start() must move.
std::uint64_t compulsory_bytes(const Report& report) {
    std::uint64_t bytes = 0;
    for (const auto& launch : report.launches)
        bytes += launch.counters.compulsory_bytes();
    return bytes;
}

template <typename Work>
Report report_of(Work work) {
    cuda_on_cpu::observe::start();
    work();
    const Report report = cuda_on_cpu::observe::report();
    cuda_on_cpu::observe::stop();
    return report;
}

/// Token t's choice k is expert (3 t + 5 k) mod E: out of order, and all different while
/// E is no multiple of 5 and at least K.
Tensor some_ids(int T, int K, int E) {
    std::vector<int> ids;
    for (int t = 0; t < T; ++t)
        for (int k = 0; k < K; ++k) ids.push_back((3 * t + 5 * k) % E);
    return transfer(Tensor::from({T, K}, ids), {MemorySpace::device, DType::i32});
}
Tensor bf16_zeros(std::int64_t rows, int H) {
    return gpu::device_zeros<__nv_bfloat16>({rows, H});
}

constexpr int kTokens = 64, kTopk = 4, kExperts = 8, kHidden = 256;

Floors floors(bool shared_experts) {
    MoEConfig config;
    config.hidden_size = kHidden;
    config.num_moe_experts = kExperts;
    config.moe_router_topk = kTopk;
    config.moe_ffn_hidden_size = 64;
    config.add_bias_linear = false;
    if (shared_experts) config.moe_shared_expert_intermediate_size = 64;
    config.finalize();
    Formats formats{.dtype = DType::bf16, .ids = DType::i32};
    formats.routing = RoutingForm::chosen;
    return Floors(config, {kTokens, kTokens * kTopk}, formats);
}

class ObservePermutation : public testing::Test {
  protected:
    ObservePermutation() {
        gpu::register_device_memory();
        ids_ = some_ids(kTokens, kTopk, kExperts);
        map_ = optimized::make_row_map(ids_, kExperts, 1, {}, nullptr);
        tokens_ = bf16_zeros(kTokens, kHidden);
        rows_ = bf16_zeros(map_.capacity, kHidden);
        weights_ = gpu::device_zeros<float>({kTokens, kTopk});
        row_probs_ = gpu::device_zeros<float>({map_.capacity});
    }

    /// Within five percent of the operation's floor.
    static void expect_near(const Report& report, const Floor& floor) {
        const double ratio =
            double(compulsory_bytes(report)) / double(floor.total_bytes());
        EXPECT_LE(ratio, 1.05);
        EXPECT_GT(ratio, 0.95) << "what of " << floor.formula << " is missing?";
    }
    /// `requests` of 512 bytes: 32 lanes with 16 each.
    static void expect_packed(const cuda_on_cpu::observe::Requests& seen,
                              std::uint64_t requests) {
        EXPECT_EQ(seen.requests, requests);
        EXPECT_EQ(seen.sectors, 16 * requests);
    }

    RowMap map_;
    Tensor ids_, tokens_, rows_, weights_, row_probs_;
};

TEST_F(ObservePermutation, MovesHardlyMoreThanItsFloor) {
    expect_near(report_of([&] { optimized::permute(tokens_, map_, nullptr); }),
                floors(false).step(Step::combine_backward));
    expect_near(report_of([&] { optimized::combine(rows_, map_, Tensor(), nullptr); }),
                floors(false).step(Step::combine));
    expect_near(report_of([&] { optimized::combine(rows_, map_, tokens_, nullptr); }),
                floors(true).step(Step::combine));
    // All of step 6, whose floor writes the map once and does not read it again
    expect_near(report_of([&] {
                    const RowMap map =
                        optimized::make_row_map(ids_, kExperts, 1, weights_, nullptr);
                    optimized::permute(tokens_, map, nullptr);
                }),
                floors(false).step(Step::dispatch));
    expect_near(report_of([&] {
                    optimized::permute_backward(rows_, map_, nullptr);
                    optimized::permute_probs_backward(row_probs_, map_, nullptr);
                }),
                floors(false).step(Step::dispatch_backward));
}

TEST_F(ObservePermutation, MovesWholeVectors) {
    const Report there = report_of([&] { optimized::permute(tokens_, map_, nullptr); });
    expect_packed(at(there, "permutation.cu", "slice[step] = from[column]").loads,
                  kTokens);
    expect_packed(at(there, "permutation.cu", "to[column] = slice[step]").stores,
                  kTokens * kTopk);
    const Report back =
        report_of([&] { optimized::combine(rows_, map_, tokens_, nullptr); });
    expect_packed(at(back, "permutation.cu", "gathered[k] = rows[").loads,
                  kTokens * kTopk);
    expect_packed(at(back, "permutation.cu", "added = addend[").loads, kTokens);
    expect_packed(at(back, "permutation.cu", "output[start + column] = result").stores,
                  kTokens);
    // Four numbers of rows lie in one sector, which each warp reads once.
    for (const Report* report : {&there, &back}) {
        const Counters rows = at(*report, "token_slices.h", "? token_rows[");
        EXPECT_EQ(rows.loads.requests, kTokens);
        EXPECT_EQ(rows.loads.sectors, kTokens);
        EXPECT_EQ(report->launches.size(), 1u);
    }
}

// 65 pairs of bf16 in a row: 32, 32 and 1, and each row begins at a pair
TEST_F(ObservePermutation, MovesPairsWhereVectorsDoNotFit) {
    const Tensor x = bf16_zeros(kTokens, 130);
    const Report report = report_of([&] {
        optimized::combine(optimized::permute(x, map_, nullptr), map_, x, nullptr);
    });
    for (const char* line : {"slice[step] = from[column]", "added = addend["})
        EXPECT_EQ(at(report, "permutation.cu", line).loads.requests, 3u * kTokens);
}

TEST_F(ObservePermutation, CountsWithoutWaitingOrWaste) {
    const Report report =
        report_of([&] { optimized::make_row_map(ids_, kExperts, 1, weights_, nullptr); });
    EXPECT_EQ(report.launches.size(), 2u);
    EXPECT_EQ(report.host_waits, 0u);
    const Counters ids = at(report, "row_map.cu", "int e = expert_of(ids[i]");
    EXPECT_EQ(ids.loads.sectors, ids.loads.ideal_sectors);
    EXPECT_EQ(at(report, "row_map.cu", "token_rows[slot - lane").stores.requests, 8u);
    const Counters columns =
        at(report, "row_map_chunks.h", "const int count = s.rows[w][e]");
    EXPECT_EQ(columns.shared.wavefronts, columns.shared.ideal_wavefronts);

    // Two blocks share out what is one number for each of 32 experts, in whole sectors
    const Tensor more = some_ids(80, kTopk, 32);
    const Report two =
        report_of([&] { optimized::make_row_map(more, 32, 1, {}, nullptr); });
    for (const char* line : {"offsets[e] = first", "tokens_per_expert[e] = total"})
        EXPECT_EQ(at(two, "row_map_chunks.h", line).stores.sectors, 4u) << line;
}

TEST_F(ObservePermutation, HasNoRaces) {
    for (const int padding : {1, 16})
        for (const auto [T, K, E, H] : {std::array{257, 3, 67, 72},
                                        {40, 17, 33, 7},
                                        {5, 1, 1, 8},
                                        {9, 3, 301, 8}}) {
            const Tensor ids = some_ids(T, K, E);
            const Tensor x = bf16_zeros(T, H);
            const Tensor weights = gpu::device_zeros<float>({T, K});
            EXPECT_EQ(races_of([&] {
                          const RowMap map =
                              optimized::make_row_map(ids, E, padding, weights, nullptr);
                          const Tensor rows = optimized::permute(x, map, nullptr);
                          optimized::combine(rows, map, x, nullptr);
                          optimized::permute_probs_backward(map.row_probs, map, nullptr);
                      }),
                      "");
        }
}

// So many tokens that a warp takes two steps
TEST_F(ObservePermutation, StepsFollowEachOtherWithoutARace) {
    const Tensor ids = some_ids(2056, 32, 33);
    EXPECT_EQ(races_of([&] { optimized::make_row_map(ids, 33, 1, {}, nullptr); }), "");
}

}  // namespace
}  // namespace moe::test
