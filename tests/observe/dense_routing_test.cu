// dense_routing_test.cu: dense maps, capacity, sinkhorn and quantile balancing, searched
// for races.

#include "core/transfer.h"
#include "gpu/tensor.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/permutation.h"
#include "optimized_gpu/quantile_balancing.h"
#include "optimized_gpu/sinkhorn.h"
#include "optimized_gpu/token_dropping.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

/// Token t's choice k is expert (3 t + 5 k) mod E, all different while E is no multiple
/// of 5 and at least K.
struct Choices {
    Tensor ids, weights;

    Choices(int T, int K, int E) {
        std::vector<int> values;
        for (int t = 0; t < T; ++t)
            for (int k = 0; k < K; ++k) values.push_back((3 * t + 5 * k) % E);
        gpu::register_device_memory();
        ids = transfer(Tensor::from({T, K}, values), {MemorySpace::device, DType::i32});
        weights = gpu::device_zeros<float>({T, K});
    }
};

TEST(ObserveDenseRouting, MapsHaveNoRaces) {
    for (const auto [T, K, E] :
         {std::array{257, 3, 67}, {40, 17, 33}, {5, 1, 1}, {9, 3, 301}}) {
        const Choices choices(T, K, E);
        const Tensor x = gpu::device_zeros<float>({T, 8});
        EXPECT_EQ(races_of([&] {
                      const auto dense = optimized::indices_to_multihot(
                          choices.ids, choices.weights, E, nullptr);
                      const auto map = optimized::make_row_map_of_dense(
                          dense.map, 16, dense.probs, nullptr);
                      const Tensor rows = optimized::permute(x, map, nullptr);
                      optimized::combine(rows, map, x, nullptr);
                      optimized::indices_to_multihot_backward(
                          optimized::permute_probs_backward(map.row_probs, map, nullptr),
                          choices.ids, nullptr);
                  }),
                  "");
    }
}

TEST(ObserveDenseRouting, CapacityHasNoRaces) {
    for (const auto [T, K, E] : {std::array{300, 2, 3}, {40, 17, 33}})
        for (const bool by_probs : {false, true}) {
            const Choices choices(T, K, E);
            EXPECT_EQ(races_of([&] {
                          optimized::drop_tokens(choices.ids, choices.weights, E, 7,
                                                 by_probs, nullptr);
                          optimized::pad_to_capacity(choices.ids, choices.weights, E, 7,
                                                     by_probs, nullptr);
                      }),
                      "");
        }
}

TEST(ObserveDenseRouting, SinkhornHasNoRaces) {
    for (const auto [T, K, E] : {std::array{65, 2, 40}, {33, 1, 3}}) {
        const Choices choices(T, K, E);
        MoEConfig config;
        config.num_moe_experts = E;
        config.moe_router_topk = K;
        config.moe_router_load_balancing_type = {"sinkhorn"};
        const Tensor logits = gpu::device_zeros<float>({T, E});
        Tensor dlogits = gpu::device_zeros<float>({T, E});
        EXPECT_EQ(races_of([&] {
                      const auto routing =
                          optimized::route_sinkhorn(logits, config, true, nullptr);
                      optimized::route_sinkhorn_backward(
                          dlogits, choices.weights, routing.ids, logits, config, nullptr);
                  }),
                  "");
    }
}

TEST(ObserveDenseRouting, QuantileBalancingHasNoRaces) {
    for (const auto [T, K, E] : {std::array{66, 2, 33}, {1, 1, 2}}) {
        const Choices choices(T, K, E);
        Tensor ids = choices.ids.clone(), margins = gpu::device_zeros<float>({T, E}),
               beta = gpu::device_zeros<float>({E}),
               sums = gpu::device_zeros<float>({E + 1});
        const Tensor logits = gpu::device_zeros<float>({T, E});
        EXPECT_EQ(
            races_of([&] {
                optimized::choose_by_quantiles(ids, margins, logits, beta, nullptr);
                if (T * K % E == 0)
                    optimized::add_margin_quantiles(beta, sums, margins, K, nullptr);
                optimized::get_updated_qb_beta(
                    beta, optimized::mean_quantiles(sums, nullptr), 1, 0.5, nullptr);
            }),
            "");
    }
}

// A warp reads neighbours, in rows of experts and in rows of tokens
TEST(ObserveDenseRouting, ReadsWholeSectors) {
    const int T = 64, E = 64;
    const Choices choices(T, 4, E - 1);
    cuda_on_cpu::observe::start();
    optimized::pad_to_capacity(choices.ids, choices.weights, E, 7, true, nullptr);
    const Report report = cuda_on_cpu::observe::report();
    cuda_on_cpu::observe::stop();
    ASSERT_EQ(report.launches.size(), 4u);
    for (const auto& kernel : report.kernels) {
        if (kernel.name == "enter_values_kernel") continue;  // scatters
        Counters all;
        for (const auto& line : kernel.lines) all += line.counters;
        EXPECT_LE(all.loads.sectors, all.loads.ideal_sectors * 11 / 10) << kernel.name;
    }
}

}  // namespace
}  // namespace moe::test
