// ranks_test.cpp: the flex dispatcher of optimized_gpu over ranks, whose kernels write
// into each other's memory: their flags order all that they do.

#include "core/moe_layer.h"
#include "core/parameters.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "optimized_gpu/tier.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

MoEConfig config_of_flex() {
    MoEConfig config;
    config.hidden_size = 16;
    config.num_moe_experts = 6;
    config.moe_router_topk = 2;
    config.moe_ffn_hidden_size = 8;
    config.moe_shared_expert_intermediate_size = 8;
    config.moe_shared_expert_overlap = true;
    config.overlap_dispatch_backward_with_experts_wgrad = true;
    config.expert_model_parallel_size = 3;
    config.moe_token_dispatcher_type = "flex";
    config.moe_permute_fusion = true;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.finalize();
    return config;
}

/// Races, but not reads of what nobody wrote: a box of TMA reaches over the last row.
std::string races_of_ranks(const MoEConfig& config) {
    const std::string all = races_of([&] {
        distributed::run_ranks(3, [&](distributed::Communicator& world) {
            const auto groups = distributed::make_process_groups(world, config);
            MoELayer layer(config, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                           random_parameters(config, 1), groups);
            const Tensor hidden = Tensor::zeros({5 + 2 * world.rank(), 1, 16},
                                                DType::bf16, MemorySpace::device);
            for (int call = 0; call < 2; ++call) {
                auto forward = layer.forward(hidden, {}, {});
                layer.backward(hidden, forward.saved, {});
            }
        });
    });
    return all.substr(0, all.find("unwritten"));  // races come first
}

TEST(ObserveRanks, FlagsOrderWhatFlexDoes) {
    optimized::register_optimized_gpu();
    EXPECT_EQ(races_of_ranks(config_of_flex()), "");
}

}  // namespace
}  // namespace moe::test
