// The layer on optimized_gpu, as a whole: what it asks of the device, and that nobody who
// looks changes anything. Its values are held elsewhere: tests/layer/, over all tiers.

#include "core/buffer_pool.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "gpu/counters.h"
#include "tests/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 23, kBatch = 3, kHidden = 40;
const Placement kDevice = {MemorySpace::device, DType::bf16};

struct LayerCase {
    std::string name;
    std::function<void(MoEConfig&)> change;
    bool waits = false;  // the host has to
};

std::ostream& operator<<(std::ostream& out, const LayerCase& c) {
    return out << c.name;
}

void use_losses(MoEConfig& c) {
    c.moe_router_load_balancing_type = {"aux_loss", "seq_aux_loss", "global_aux_loss"};
    c.moe_aux_loss_coeff = {0.1, 0.2, 0.3};
    c.moe_z_loss_coeff = 0.1;
}
void use_shared_experts(MoEConfig& c) {
    c.moe_shared_expert_intermediate_size = 24;
    c.moe_shared_expert_gate = true;
}

const std::vector<LayerCase>& layer_cases() {
    static const std::vector<LayerCase> all = {
        {"plain", [](MoEConfig&) {}},
        {"gathered", [](MoEConfig& c) { c.moe_permute_fusion = true; }},
        {"losses", use_losses},
        {"shared", use_shared_experts},
        {"overlapped",
         [](MoEConfig& c) {
             use_shared_experts(c);
             c.moe_shared_expert_overlap = true;
             c.moe_token_dispatcher_type = "alltoall";
         }},
        {"biases", [](MoEConfig& c) { c.add_bias_linear = true; }},
        {"dropping",
         [](MoEConfig& c) {
             c.moe_expert_capacity_factor = 0.7;
             c.moe_permute_fusion = true;
         }},
        {"padded",
         [](MoEConfig& c) {
             c.moe_expert_capacity_factor = 1.3;
             c.moe_pad_expert_input_to_capacity = true;
         }},
        {"on_input",
         [](MoEConfig& c) {
             c.moe_router_topk = 1;
             c.moe_router_pre_softmax = true;
             c.moe_apply_probs_on_input = true;
         }},
        {"expert_bias",
         [](MoEConfig& c) {
             c.moe_router_score_function = "sigmoid";
             c.moe_router_enable_expert_bias = true;
         }},
        {"quantization",
         [](MoEConfig& c) {
             c.add_bias_linear = true;
             c.moe_router_padding_for_quantization = true;
         }},
        {"fp64_router", [](MoEConfig& c) { c.moe_router_dtype = "fp64"; }, true},
        {"fused",
         [](MoEConfig& c) {
             use_losses(c);
             c.moe_permute_fusion = c.moe_router_fusion = c.moe_grouped_gemm = true;
         }},
    };
    return all;
}

class OptimizedLayer : public testing::TestWithParam<LayerCase> {
  protected:
    OptimizedLayer() {
        if (!missing_device().empty()) return;  // and every test is skipped
        available_tiers();
        config_ = small_config(kHidden, 3, 2, 24);
        config_.gated_linear_unit = true;
        config_.activation_func = "silu";
        GetParam().change(config_);
        config_.finalize();
        parameters_ = random_parameters(config_, 1);
        const Shape shape = {kSeq, kBatch, kHidden};
        hidden_ = transfer(random_tensor(shape, 2), kDevice);
        doutput_ = transfer(random_tensor(shape, 3), kDevice);
    }
    MoELayer make_layer() const {
        return {config_, ModuleSpec::uniform({"optimized_gpu", DType::bf16}),
                parameters_};
    }

    struct Results {
        Tensor output;
        MoELayer::Gradients gradients;
        Losses losses;
    };
    Results run(MoELayer& layer, Observer* observer = nullptr) const {
        const RunContext context{.main_loss_backward_scale = 0.5, .observer = observer};
        auto forward = layer.forward(hidden_, {}, context);
        Results results{
            forward.output, layer.backward(doutput_, forward.saved, context), {}};
        layer.update_expert_bias();
        waits_before_losses_ = gpu::counters().host_waits;
        results.losses = forward.losses.read();
        return results;
    }

    static void expect_same(const Results& got, const Results& expected) {
        EXPECT_TRUE(BitwiseEqual(got.output, expected.output));
        EXPECT_TRUE(
            BitwiseEqual(got.gradients.hidden_states, expected.gradients.hidden_states));
        for (const auto& [name, gradient] : expected.gradients.parameters)
            EXPECT_TRUE(BitwiseEqual(got.gradients.parameters.at(name), gradient))
                << name;
        EXPECT_EQ(got.losses, expected.losses);
    }

    MoEConfig config_;
    TensorMap parameters_;
    Tensor hidden_, doutput_;
    mutable std::int64_t waits_before_losses_ = 0;
};

TEST_P(OptimizedLayer, NeitherWaitsNorAllocatesOnceItHasRun) {
    NEEDS_DEVICE();
    BufferPool pool;
    const BufferPool::Scope scope(pool);
    MoELayer layer = make_layer();
    run(layer);
    run(layer);
    const std::int64_t allocations = pool.allocations();
    const std::int64_t waits = gpu::counters().host_waits;
    const Results results = run(layer);
    EXPECT_EQ(pool.allocations(), allocations);
    if (!GetParam().waits) {
        EXPECT_EQ(waits_before_losses_, waits);
    }
    EXPECT_GT(gpu::counters().host_waits, waits) << "reading losses is a wait";
}

TEST_P(OptimizedLayer, MakesTheSameBitsWhoeverLooks) {
    NEEDS_DEVICE();
    MoELayer layer = make_layer(), watched_layer = make_layer();
    ValueRecorder recorder;
    const Results alone = run(layer), watched = run(watched_layer, &recorder);
    expect_same(watched, alone);
    EXPECT_TRUE(recorder.values.contains("d_activation_output")) << "computed beside";
}

/// Gathered by its ids or copied, a row is the same row; an expert's tiles are the same
/// whoever else's stand in the launch; and scores, of few experts, are summed up in the
/// same order by one kernel and by many.
TEST_P(OptimizedLayer, MakesTheSameBitsWithAndWithoutEachFusion) {
    NEEDS_DEVICE();
    MoELayer layer = make_layer();
    const Results one = run(layer);
    for (bool* fusion : {&config_.moe_permute_fusion, &config_.moe_router_fusion,
                         &config_.moe_grouped_gemm}) {
        *fusion = !*fusion;
        MoELayer other_layer = make_layer();
        expect_same(run(other_layer), one);
        *fusion = !*fusion;
    }
}

INSTANTIATE_TEST_SUITE_P(Cases, OptimizedLayer, testing::ValuesIn(layer_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace moe::test
