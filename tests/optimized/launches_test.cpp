// How many kernels a layer on optimized_gpu launches on its way there and back: what its
// fusions save, all together and each alone.

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "gpu/counters.h"
#include "tests/support.h"

namespace moe::test {
namespace {

/// The most that a layer with all fusions may take, without shared experts and biases.
/// Memsets and copies are no launches.
constexpr std::int64_t kMostForward = 8, kMostBackward = 12;

constexpr std::int64_t kExperts = 7;

struct LaunchCase {
    std::string name;
    bool permute_fusion, router_fusion, grouped_gemm, losses;
    std::int64_t forward, backward;
    bool bf16_router = false;
};

std::ostream& operator<<(std::ostream& out, const LaunchCase& c) {
    return out << c.name;
}

class OptimizedLaunches : public testing::TestWithParam<LaunchCase> {
  protected:
    struct Counted {
        std::int64_t forward, backward;
    };
    static Counted count(MoELayer& layer, const Tensor& hidden, const Tensor& doutput) {
        const std::int64_t start = gpu::counters().launches;
        auto forward = layer.forward(hidden, {}, {});
        const std::int64_t middle = gpu::counters().launches;
        layer.backward(doutput, forward.saved, {});
        const std::int64_t end = gpu::counters().launches;
        forward.losses.read();
        return {middle - start, end - middle};
    }
};

TEST_P(OptimizedLaunches, AreAsManyAsTheTableSays) {
    NEEDS_DEVICE();
    available_tiers();
    const LaunchCase& c = GetParam();
    MoEConfig config = small_config(16, kExperts, 3, 8);
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.moe_permute_fusion = c.permute_fusion;
    config.moe_router_fusion = c.router_fusion;
    config.moe_grouped_gemm = c.grouped_gemm;
    if (!c.bf16_router) config.moe_router_dtype = "fp32";
    if (c.losses) {
        config.moe_router_load_balancing_type = {"aux_loss"};
        config.moe_aux_loss_coeff = {0.1};
    }
    config.finalize();
    MoELayer layer(config, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                   random_parameters(config, 1));
    const Placement device = {MemorySpace::device, DType::bf16};
    const Shape shape = {200, 3, 16};  // so many that gradients are summed up in chunks
    const Tensor hidden = transfer(random_tensor(shape, 2), device);
    const Tensor doutput = transfer(random_tensor(shape, 3), device);

    layer.forward(hidden, {}, {});  // the first one makes the gate's single group
    const Counted counted = count(layer, hidden, doutput);
    EXPECT_EQ(counted.forward, c.forward);
    EXPECT_EQ(counted.backward, c.backward);
    if (c.permute_fusion && c.router_fusion && c.grouped_gemm) {
        EXPECT_LE(counted.forward, kMostForward);
        EXPECT_LE(counted.backward, kMostBackward);
    }
}

// Forward: gate, routing, losses if there are any, 2 for the map, 2 for the experts,
// combination. Backward: 4 for the experts, 2 for the dispatch, routing, and 3 for the
// gate. What each fusion saves is the last number of its row.
const LaunchCase kLaunchCases[] = {
    {"fused", true, true, true, false, 7, 10},
    {"fused_with_losses", true, true, true, true, 8, 10},
    {"rows_copied", false, true, true, true, 8 + 1, 10 + 1},
    {"router_unfused", true, false, true, false, 7 + 3, 10 + 1},
    {"router_unfused_with_losses", true, false, true, true, 8 + 8, 10 + 2},
    {"sequential_experts", true, true, false, true, 8 + 2 * (kExperts - 1),
     10 + 4 * (kExperts - 1)},
    {"nothing_fused", false, false, false, true, 8 + 1 + 8 + 2 * (kExperts - 1),
     10 + 1 + 2 + 4 * (kExperts - 1)},
    // Logits are rounded by a kernel of their own, unfused their gradient as well
    {"bf16_router_fused", true, true, true, false, 7 + 1, 10, true},
    {"bf16_router_unfused", true, false, true, false, 7 + 3 + 1, 10 + 1 + 1, true},
};

INSTANTIATE_TEST_SUITE_P(Cases, OptimizedLaunches, testing::ValuesIn(kLaunchCases),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace moe::test
