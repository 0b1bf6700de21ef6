// The layer in a stream of its own, which nothing else waits for: all of its work goes
// there, and where streams hold their work back, what goes elsewhere never runs.

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

const ComponentSpec kNaive = {"naive_gpu", DType::bf16},
                    kOptimized = {"optimized_gpu", DType::bf16};

struct StreamCase {
    std::string name;
    ModuleSpec spec;
    std::function<void(MoEConfig&)> change = [](MoEConfig&) {};
};

std::ostream& operator<<(std::ostream& out, const StreamCase& c) {
    return out << c.name;
}

class LayerStream : public testing::TestWithParam<StreamCase> {
  protected:
    LayerStream() {
        if (!missing_device().empty()) return;  // and every test is skipped
        available_tiers();
        config_ = small_config(40, 4, 2, 24);
        config_.moe_router_load_balancing_type = {"aux_loss", "global_aux_loss"};
        config_.moe_aux_loss_coeff = {0.1, 0.2};
        config_.moe_z_loss_coeff = 0.1;
        config_.moe_shared_expert_intermediate_size = 24;
        config_.moe_shared_expert_gate = true;
        GetParam().change(config_);
        config_.finalize();
        const Shape shape = {23, 3, 40};
        hidden_ = random_tensor(shape, 2);
        doutput_ = random_tensor(shape, 3);
        std::vector<std::uint8_t> mask(3 * 23);
        for (std::size_t i = 0; i < mask.size(); ++i) mask[i] = i % 7 == 2;
        mask_ = Tensor::from({3, 23}, mask);
    }

    struct Results {
        TensorMap tensors;
        LateLosses losses;

        void bring_to_host() {
            for (auto& [name, tensor] : tensors)
                tensor = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        }
    };
    /// All of it, from the parameters on, in the current stream.
    Results run() const { return run(config_); }
    Results run(const MoEConfig& config) const {
        MoELayer layer(config, GetParam().spec, random_parameters(config_, 1));
        const Placement device = {MemorySpace::device, DType::bf16};
        const Tensor hidden = transfer(hidden_, device), mask = transfer(mask_, device),
                     doutput = transfer(doutput_, device);
        const RunContext context{.main_loss_backward_scale = 0.5};
        Results results;
        for (int step = 0; step < 2; ++step) {
            auto forward = layer.forward(hidden, mask, context);
            // Two that differ: what one leaves in the pool is wrong for the other
            auto gradients =
                layer.backward(step == 0 ? hidden : doutput, forward.saved, context);
            if (of_all_streams_) cudaDeviceSynchronize();
            results = {gradients.parameters, forward.losses};
            results.tensors["output"] = forward.output;
            results.tensors["hidden_states"] = gradients.hidden_states;
            results.tensors["expert_bias"] = layer.update_expert_bias();
        }
        return results;
    }
    Results run_in_a_stream() const {
        BufferPool pool;  // no cudaFree(), which would wait for all streams
        const BufferPool::Scope scope(pool);
        const gpu::Stream stream;
        Results results;
        {
            const gpu::StreamGuard guard(stream.get());
            results = run();
        }
        results.losses = results.losses.read();  // in the stream of the forward
        const gpu::StreamGuard guard(stream.get());
        results.bring_to_host();
        return results;
    }
    static void expect_same(const Results& got, const Results& expected) {
        for (const auto& [name, tensor] : expected.tensors) {
            if (tensor.defined()) {
                EXPECT_TRUE(BitwiseEqual(got.tensors.at(name), tensor)) << name;
            }
        }
        EXPECT_EQ(got.losses.read(), expected.losses.read());
    }

    MoEConfig config_;
    Tensor hidden_, doutput_, mask_;
    bool of_all_streams_ = false;  // after each backward the work of all is asked for
};

TEST_P(LayerStream, MakesTheSameBitsAsInTheDefaultStream) {
    NEEDS_DEVICE();
    MoEConfig plain = config_;
    plain.overlap_dispatch_backward_with_experts_wgrad = false;
    const Results expected = run(plain);
    expect_same(run_in_a_stream(), expected);
#ifdef MOE_EXECUTOR
    for (const char* order : kStreamOrders) {
        SCOPED_TRACE(order);
        const HeldStreams held(order);
        expect_same(run_in_a_stream(), expected);
    }
    // Asked for one stream, they run others only where it waits for them; asked for all,
    // the side streams first.
    const HeldStreams held("reverse");
    of_all_streams_ = true;
    expect_same(run_in_a_stream(), expected);
#endif
}

void use_expert_bias(MoEConfig& c) {
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = true;
    c.moe_permute_fusion = true;
}
void use_overlap(MoEConfig& c) {
    c.moe_shared_expert_overlap = true;
    c.moe_token_dispatcher_type = "alltoall";
}
void use_wgrad_overlap(MoEConfig& c) {
    c.overlap_dispatch_backward_with_experts_wgrad = true;
    c.moe_grouped_gemm = true;
}

std::vector<StreamCase> stream_cases() {
    return {
        {"copied", ModuleSpec::uniform(kOptimized)},
        {"gathered_with_expert_bias", ModuleSpec::uniform(kOptimized), use_expert_bias},
        {"overlapped", ModuleSpec::uniform(kOptimized), use_overlap},
        {"overlapped_wgrad", ModuleSpec::uniform(kOptimized), use_wgrad_overlap},
        {"all_overlapped", ModuleSpec::uniform(kOptimized),
         [](MoEConfig& c) {
             use_overlap(c);
             use_wgrad_overlap(c);
         }},
        {"padded", ModuleSpec::uniform(kOptimized),
         [](MoEConfig& c) {
             c.moe_expert_capacity_factor = 1.3;
             c.moe_pad_expert_input_to_capacity = true;
         }},
        {"fp64_sinkhorn", ModuleSpec::uniform(kOptimized),
         [](MoEConfig& c) {
             c.moe_router_load_balancing_type = {"sinkhorn"};
             c.moe_aux_loss_coeff = {0.0};
             c.moe_router_dtype = "fp64";
             c.moe_router_topk = 1;
         }},
        {"overlapped_wgrad_with_biases_on_input", ModuleSpec::uniform(kOptimized),
         [](MoEConfig& c) {
             c.overlap_dispatch_backward_with_experts_wgrad = true;
             c.moe_shared_expert_intermediate_size = {};
             c.moe_shared_expert_gate = false;
             c.add_bias_linear = true;
             c.moe_apply_probs_on_input = true;
             c.moe_router_topk = 1;
             c.moe_router_pre_softmax = true;
         }},
        {"naive_overlapped", ModuleSpec::uniform(kNaive), use_overlap},
        {"naive_router_and_experts",
         {kNaive, kOptimized, kNaive, kOptimized},
         use_expert_bias},
        {"naive_dispatcher", {kOptimized, kNaive, kOptimized, kNaive}, use_overlap},
    };
}

INSTANTIATE_TEST_SUITE_P(Cases, LayerStream, testing::ValuesIn(stream_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace moe::test
