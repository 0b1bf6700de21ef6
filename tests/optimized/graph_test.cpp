// A forward and backward of the layer as a CUDA graph: captured once, launched on other
// inputs, it makes the bits of a call.

#include "core/buffer_pool.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "gpu/stream.h"
#include "tests/support.h"
#ifdef MOE_EXECUTOR
#include "tests/gpu/held_streams.h"
#endif

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 23, kBatch = 3, kHidden = 40;
const Placement kDevice = {MemorySpace::device, DType::bf16};

struct GraphCase {
    std::string name;
    std::function<void(MoEConfig&)> change;
    bool has_mask = false;
};

std::ostream& operator<<(std::ostream& out, const GraphCase& c) {
    return out << c.name;
}

void use_losses(MoEConfig& c) {
    c.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss", "global_aux_loss"};
    c.moe_aux_loss_coeff = {0.1, 0.2, 0.3};
    c.moe_z_loss_coeff = 0.1;
}
void use_expert_bias(MoEConfig& c) {
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
}
void use_overlap(MoEConfig& c) {
    c.moe_shared_expert_intermediate_size = 24;
    c.moe_shared_expert_gate = true;
    c.moe_shared_expert_overlap = true;
    c.moe_token_dispatcher_type = "alltoall";
}

const std::vector<GraphCase>& graph_cases() {
    static const std::vector<GraphCase> all = {
        {"copied", [](MoEConfig&) {}},
        {"gathered", [](MoEConfig& c) { c.moe_permute_fusion = true; }},
        {"losses", use_losses, true},
        {"overlapped", use_overlap},
        {"overlapped_wgrad",
         [](MoEConfig& c) { c.overlap_dispatch_backward_with_experts_wgrad = true; }},
        {"expert_bias", use_expert_bias, true},
        {"jitter", [](MoEConfig& c) { c.moe_input_jitter_eps = 0.1; }},
        {"quantile_balancing",
         [](MoEConfig& c) {
             c.num_moe_experts = 6;  // divides T K
             c.moe_router_load_balancing_type = {"quantile_balancing"};
             c.moe_router_quantile_balancing_ema = 0.5;
         }},
        {"dropping", [](MoEConfig& c) { c.moe_expert_capacity_factor = 0.7; }},
        {"padded_with_all",
         [](MoEConfig& c) {
             use_losses(c);
             use_overlap(c);
             use_expert_bias(c);
             c.moe_expert_capacity_factor = 1.3;
             c.moe_pad_expert_input_to_capacity = true;
         },
         true},
    };
    return all;
}

/// Ends the capture of a stream also where the body throws.
class Capture {
  public:
    explicit Capture(cudaStream_t stream) : stream_(stream) {
        gpu::check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal),
                   "cudaStreamBeginCapture");
    }
    ~Capture() {
        if (stream_ != nullptr) end();
    }
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    cudaGraph_t end() {
        cudaGraph_t graph = nullptr;
        status = cudaStreamEndCapture(std::exchange(stream_, nullptr), &graph);
        cudaGetLastError();  // status tells
        return graph;
    }
    cudaError_t status = cudaSuccess;

  private:
    cudaStream_t stream_;
};

class LayerGraph : public testing::TestWithParam<GraphCase> {
  protected:
    LayerGraph() {
        if (!missing_device().empty()) return;  // and every test is skipped
        available_tiers();
        config_ = small_config(kHidden, 5, 2, 24);
        GetParam().change(config_);
        config_.finalize();
    }
    MoELayer make_layer() const {
        return {config_, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                random_parameters(config_, 1)};
    }

    /// What a call reads, at fixed places on the device.
    struct Inputs {
        Tensor hidden =
            Tensor::empty({kSeq, kBatch, kHidden}, DType::bf16, kDevice.space);
        Tensor doutput = hidden.clone();
        Tensor mask = Tensor::empty({kBatch, kSeq}, DType::u8, kDevice.space);
        Tensor scale = Tensor::empty({1}, DType::f32, kDevice.space);

        void write(int step) const {
            copy(hidden, transfer(random_tensor(hidden.shape(), 2 + step), kDevice));
            copy(doutput, transfer(random_tensor(hidden.shape(), 20 + step), kDevice));
            std::vector<std::uint8_t> padding(kBatch * kSeq);
            for (std::size_t i = 0; i < padding.size(); ++i)
                padding[i] = i % 7 == std::size_t(step);
            copy(mask, Tensor::from(mask.shape(), padding));
            copy(scale, Tensor::from<float>({1}, {0.5f + float(step)}));
        }
    };
    struct Results {
        Tensor output;
        LateLosses losses;
        MoELayer::Gradients gradients;
    };
    /// The same K experts for every token.
    static Tensor first_experts(const MoEConfig& config) {
        const std::int64_t K = config.moe_router_topk;
        std::vector<std::int64_t> experts(kSeq * kBatch * K);
        for (std::size_t i = 0; i < experts.size(); ++i) experts[i] = std::int64_t(i) % K;
        return Tensor::from({kSeq * kBatch, K}, experts);
    }
    static Results call(MoELayer& layer, const Inputs& inputs) {
        RunContext context{.main_loss_backward_scale = inputs.scale};
        if (layer.config().moe_enable_routing_replay)
            context.target_topk_idx = first_experts(layer.config());
        auto forward = layer.forward(
            inputs.hidden, GetParam().has_mask ? inputs.mask : Tensor(), context);
        return {forward.output, forward.losses,
                layer.backward(inputs.doutput, forward.saved, context)};
    }
    static void expect_same(const Results& got, const Results& expected) {
        EXPECT_TRUE(BitwiseEqual(got.output, expected.output));
        EXPECT_TRUE(
            BitwiseEqual(got.gradients.hidden_states, expected.gradients.hidden_states));
        for (const auto& [name, gradient] : expected.gradients.parameters)
            EXPECT_TRUE(BitwiseEqual(got.gradients.parameters.at(name), gradient))
                << name;
        EXPECT_EQ(got.losses.read(), expected.losses.read());
    }

    /// @param between  what the layer does between the capture and the launches
    void expect_graph_equals_calls(
        const std::function<void(MoELayer&)>& between = {}) const {
        const gpu::Stream stream;
        const gpu::StreamGuard guard(stream.get());
        MoELayer layer = make_layer(), called = make_layer();
        const Inputs inputs;
        inputs.write(0);
        if (between)  // what the layer keeps is of no pool
            for (MoELayer* each : {&layer, &called}) call(*each, inputs);
        BufferPool pool;  // the graph's own: it goes on using its memory
        Results results;
        cudaGraphExec_t exec = nullptr;
        {
            const BufferPool::Scope scope(pool);
            call(layer, inputs);
            Capture capture(stream.get());
            results = call(layer, inputs);
            cudaGraph_t graph = capture.end();
            ASSERT_EQ(capture.status, cudaSuccess);
            gpu::check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
            cudaGraphDestroy(graph);
        }
        call(called, inputs);
        if (between) between(layer);
        for (int step = 1; step < 3; ++step) {
            SCOPED_TRACE(step);
            inputs.write(step);
            const Results expected = call(called, inputs);
            gpu::check(cudaGraphLaunch(exec, stream.get()), "cudaGraphLaunch");
            expect_same(results, expected);
            const Tensor bias = called.update_expert_bias();
            const Tensor moved = layer.update_expert_bias();
            if (bias.defined()) {
                EXPECT_TRUE(BitwiseEqual(moved, bias));
            }
            const Tensor beta = called.update_qb_beta();
            const Tensor moved_beta = layer.update_qb_beta();
            if (beta.defined()) {
                EXPECT_TRUE(BitwiseEqual(moved_beta, beta));
            }
        }
        cudaGraphExecDestroy(exec);
    }

    MoEConfig config_;
};

TEST_P(LayerGraph, MakesTheBitsOfACall) {
    NEEDS_DEVICE();
    expect_graph_equals_calls();
}

#ifdef MOE_EXECUTOR
class HeldLayerGraph : public LayerGraph {};

TEST_P(HeldLayerGraph, MakesTheBitsOfACall) {
    for (const char* order : kStreamOrders) {
        SCOPED_TRACE(order);
        const HeldStreams held(order);
        expect_graph_equals_calls();
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, HeldLayerGraph, testing::Values(graph_cases().back()),
                         [](const auto& info) { return info.param.name; });
#endif

class LayerGraphAmongCalls : public LayerGraph {};

/// A graph reads what the layer keeps for its number of tokens, whoever comes in between.
TEST_P(LayerGraphAmongCalls, OutlivesOtherNumbersOfTokens) {
    NEEDS_DEVICE();
    expect_graph_equals_calls([](MoELayer& layer) {
        for (const std::int64_t seq : {7, 5}) {
            const Tensor hidden =
                transfer(random_tensor({seq, kBatch, kHidden}, 5), kDevice);
            layer.forward(hidden, {}, {.training = false});
        }
    });
}

INSTANTIATE_TEST_SUITE_P(Cases, LayerGraphAmongCalls,
                         testing::Values(GraphCase{"overlapped", use_overlap}),
                         [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(Cases, LayerGraph, testing::ValuesIn(graph_cases()),
                         [](const auto& info) { return info.param.name; });

class LayerWithoutGraph : public LayerGraph {};

TEST_P(LayerWithoutGraph, IsRefused) {
    NEEDS_DEVICE();
    const gpu::Stream stream;
    const gpu::StreamGuard guard(stream.get());
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    MoELayer layer = make_layer();
    const Inputs inputs;
    inputs.write(0);
    call(layer, inputs);
    Capture capture(stream.get());
    EXPECT_THROW(call(layer, inputs), gpu::DeviceError);
    EXPECT_EQ(capture.end(), nullptr);
    EXPECT_EQ(capture.status, cudaErrorStreamCaptureInvalidated);
}

INSTANTIATE_TEST_SUITE_P(
    Cases, LayerWithoutGraph,
    testing::Values(
        GraphCase{"fp64_router", [](MoEConfig& c) { c.moe_router_dtype = "fp64"; }},
        GraphCase{"replay", [](MoEConfig& c) { c.moe_enable_routing_replay = true; }},
        GraphCase{"sinkhorn",
                  [](MoEConfig& c) {
                      c.moe_router_load_balancing_type = {"sinkhorn"};
                      c.moe_router_topk = 1;
                  }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace moe::test
