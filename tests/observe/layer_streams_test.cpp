// layer_streams_test.cpp: the layer of optimized_gpu in a stream of its own, by calls and
// by a graph of them: its streams and events order all that it does.

#include "core/buffer_pool.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "gpu/stream.h"
#include "optimized_gpu/tier.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

MoEConfig config_with_overlap() {
    MoEConfig config;
    config.hidden_size = 16;
    config.num_moe_experts = 5;
    config.moe_router_topk = 2;
    config.moe_ffn_hidden_size = 8;
    config.moe_shared_expert_intermediate_size = 8;
    config.moe_shared_expert_gate = true;
    config.moe_shared_expert_overlap = true;
    config.overlap_dispatch_backward_with_experts_wgrad = true;
    config.moe_token_dispatcher_type = "alltoall";
    config.moe_router_load_balancing_type = {"aux_loss"};
    config.moe_aux_loss_coeff = {0.1};
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.finalize();
    return config;
}

/// Races of two calls, or of two launches of a graph of a call.
std::string races_of_layer(bool as_graph) {
    optimized::register_optimized_gpu();
    const MoEConfig config = config_with_overlap();
    const gpu::Stream stream;
    const gpu::StreamGuard guard(stream.get());
    return races_of([&] {
        BufferPool pool;
        const BufferPool::Scope scope(pool);
        MoELayer layer(config, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                       random_parameters(config, 1));
        const Tensor hidden =
            Tensor::zeros({17, 2, 16}, DType::bf16, MemorySpace::device);
        const auto call = [&] {
            auto forward = layer.forward(hidden, {}, {});
            layer.backward(hidden, forward.saved, {});
        };
        call();
        call();
        if (!as_graph) return;
        cudaGraph_t graph = nullptr;
        cudaGraphExec_t exec = nullptr;
        EXPECT_EQ(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeGlobal),
                  cudaSuccess);
        call();
        EXPECT_EQ(cudaStreamEndCapture(stream.get(), &graph), cudaSuccess);
        EXPECT_EQ(cudaGraphInstantiate(&exec, graph, 0), cudaSuccess);
        for (int launch = 0; launch < 2; ++launch)
            EXPECT_EQ(cudaGraphLaunch(exec, stream.get()), cudaSuccess);
        cudaGraphExecDestroy(exec);
        cudaGraphDestroy(graph);
    });
}

TEST(ObserveLayerStreams, CallsHaveNoRaces) {
    EXPECT_EQ(races_of_layer(false), "");
}

TEST(ObserveLayerStreams, LaunchesOfAGraphHaveNone) {
    EXPECT_EQ(races_of_layer(true), "");
}

}  // namespace
}  // namespace moe::test
