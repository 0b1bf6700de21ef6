// shared_experts_test.cpp: the shared experts work beside the default stream, and only
// their waits order the two.

#include "core/parameters.h"
#include "core/tier.h"
#include "core/transfer.h"
#include "gpu/tensor.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/tier.h"
#include "tests/observe/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kTokens = 15, kHidden = 12;

MoEConfig config_of(bool gate) {
    MoEConfig config;
    config.hidden_size = kHidden;
    config.num_moe_experts = 4;
    config.moe_ffn_hidden_size = 8;
    config.moe_shared_expert_intermediate_size = 8;
    config.moe_shared_expert_gate = gate;
    config.moe_shared_expert_overlap = true;
    config.moe_token_dispatcher_type = "alltoall";
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.finalize();
    return config;
}

Tensor zeros() {
    return gpu::device_zeros<float>({kTokens, kHidden});
}

/// Before a stage, a kernel of the default stream writes what it reads. In the layer, and
/// with a gate in the backward, some wait of the host for a copy would order them as
/// well.
std::string races_of_stages(bool gate) {
    naive::register_naive_gpu();
    const MoEConfig config = config_of(gate);
    const auto shared =
        find_tier("tier", "naive_gpu")
            .make_shared_experts(config, DType::f32, random_parameters(config, 3));
    const Tensor term = zeros();
    Tensor hidden = zeros(), doutput = zeros(), dhidden = zeros();
    return races_of([&] {
        const SavedPtr saved = shared->pre_forward_comm(hidden, {});
        naive::add_to<float>(hidden, term);
        shared->linear_fc1_forward_and_act({});
        shared->linear_fc2_forward({});
        shared->post_forward_comm({});
        shared->get_output({});

        TensorMap gradients;
        naive::add_to<float>(doutput, term);
        shared->linear_fc2_backward(doutput, *saved, {});
        shared->linear_fc1_backward({});
        shared->pre_forward_comm_backward(dhidden, gradients, {});
    });
}

TEST(ObserveSharedExperts, StagesWaitForTheOtherStream) {
    EXPECT_EQ(races_of_stages(false), "");
}

TEST(ObserveSharedExperts, SoDoThoseWithAGate) {
    EXPECT_EQ(races_of_stages(true), "");
}

}  // namespace
}  // namespace moe::test
