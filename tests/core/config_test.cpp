// The config's rules, each both ways: accepted on the edge, rejected past it. Then what
// follows from a config: derived fields, warnings, capacity.

#include <cmath>
#include <limits>

#include "tests/core/config_support.h"

namespace moe::test {
namespace {

TEST(ConfigRules, SizesArePositive) {
    expect_accepted({R"({})", R"({"hidden_size": 1})", R"({"moe_ffn_hidden_size": 1})",
                     R"({"hidden_size": 2147483648, "ffn_hidden_size": 1})",
                     R"({"moe_ffn_hidden_size": 2147483648})",
                     R"({"moe_shared_expert_intermediate_size": 1})",
                     R"({"moe_latent_size": 1})", R"({"moe_latent_size": 999})",
                     R"({"moe_mlp_glu_interleave_size": 6,
                         "expert_tensor_parallel_size": 2})",
                     R"({"moe_mlp_glu_interleave_size": 5, "gated_linear_unit": false})",
                     R"({"moe_shared_expert_glu_interleave_size": 5})",
                     R"({"num_moe_experts": 1, "moe_router_topk": 1,
                         "moe_router_score_function": "sigmoid"})"});
    expect_rejected({
        {R"({"hidden_size": 0})", "hidden_size = 0: ", "must be positive"},
        {R"({"hidden_size": -16})", "hidden_size = -16: ", "must be positive"},
        {R"({"hidden_size": 2147483649})", "hidden_size = 2147483649: ", "at most 2^31"},
        {R"({"hidden_size": 9223372036854775807})", "hidden_size = 92", "at most 2^31"},
        {R"({"moe_latent_size": 0})", "moe_latent_size = 0: ", "must be positive"},
        {R"({"moe_latent_size": 4, "moe_shared_expert_overlap": true,
             "moe_token_dispatcher_type": "alltoall"})",
         "moe_shared_expert_overlap = true: ", "must be false with moe_latent_size"},
        {R"({"moe_mlp_glu_interleave_size": 0})",
         "moe_mlp_glu_interleave_size = 0: ", "must be positive"},
        {R"({"moe_shared_expert_glu_interleave_size": -1})",
         "moe_shared_expert_glu_interleave_size = -1: ", "must be positive"},
        {R"({"moe_mlp_glu_interleave_size": 5})", "moe_mlp_glu_interleave_size = 5: ",
         "must divide moe_ffn_hidden_size / expert_tensor_parallel_size (12)"},
        {R"({"moe_mlp_glu_interleave_size": 4, "expert_tensor_parallel_size": 2})",
         "moe_mlp_glu_interleave_size = 4: ", "expert_tensor_parallel_size (6)"},
        {R"({"moe_shared_expert_glu_interleave_size": 4,
             "moe_shared_expert_intermediate_size": 6})",
         "moe_shared_expert_glu_interleave_size = 4: ",
         "must divide moe_shared_expert_intermediate_size / tensor_model_parallel_size"},
        {R"({"num_moe_experts": null})", "num_moe_experts = null: ", "required"},
        {R"({"num_moe_experts": 0})", "num_moe_experts = 0: ", "must be positive"},
        {R"({"ffn_hidden_size": 0})", "ffn_hidden_size = 0: ", "must be positive"},
        {R"({"moe_ffn_hidden_size": -4})", "moe_ffn_hidden_size = -4: ", "positive"},
        {R"({"moe_ffn_hidden_size": 2147483649})", "moe_ffn_hidden_size = ", "2^31"},
        {R"({"moe_shared_expert_intermediate_size": 0})",
         "moe_shared_expert_intermediate_size = 0: ", "must be positive"},
        {R"({"moe_shared_expert_intermediate_size": 4, "add_bias_linear": true})",
         "add_bias_linear = true: ", "false with moe_shared_expert_intermediate_size"},
    });
}

TEST(ConfigRules, ExpertsComputeOneOfFiveFunctions) {
    expect_accepted(
        {R"({"activation_func": "gelu"})", R"({"activation_func": "quick_gelu"})",
         R"({"activation_func": "gelu_tanh"})", R"({"activation_func": "squared_relu"})",
         R"({"activation_func_clamp_value": 1e-3})", R"({"glu_linear_offset": -0.5})",
         R"({"activation_func_clamp_value": 7, "glu_linear_offset": 1,
                         "activation_func": "quick_gelu"})",
         R"({"activation_func_clamp_value": 7, "glu_linear_offset": 1,
                         "gated_linear_unit": false})",
         R"({"moe_apply_probs_on_input": true, "moe_router_topk": 1,
                         "moe_router_pre_softmax": true})"});
    expect_rejected({
        {R"({"activation_func": "relu"})",
         "activation_func = relu: ", "silu, gelu, gelu_tanh, quick_gelu, squared_relu"},
        {R"({"activation_func": ""})", "activation_func = : ", "silu"},
        {R"({"activation_func_clamp_value": 0})",
         "activation_func_clamp_value = 0: ", "finite and positive"},
        {R"({"activation_func_clamp_value": -1})",
         "activation_func_clamp_value = -1: ", "positive"},
        {R"({"activation_func_clamp_value": 1, "glu_linear_offset": 1})",
         "glu_linear_offset = 1: ", "SwiGLU with activation_func_clamp_value"},
        {R"({"moe_apply_probs_on_input": true})",
         "moe_router_topk = 2: ", "1 with moe_apply_probs_on_input"},
    });
}

TEST(ConfigRules, RouterChoosesSomeOfItsExperts) {
    expect_accepted(
        {R"({"moe_router_topk": 8})", R"({"moe_router_dtype": "fp32"})",
         R"({"moe_router_dtype": "fp64"})", R"({"moe_router_dtype": null})",
         R"({"moe_router_topk": 1, "moe_router_pre_softmax": true})",
         R"({"moe_router_topk": 1, "moe_router_score_function": "sigmoid"})",
         R"({"moe_router_topk": 1, "moe_router_load_balancing_type": "sinkhorn"})",
         R"({"moe_router_score_function": "sigmoid",
             "moe_router_enable_expert_bias": true})",
         R"({"moe_router_score_function": "sqrtsoftplus",
             "moe_router_enable_expert_bias": true})",
         R"({"moe_router_topk_scaling_factor": 0})",
         R"({"moe_router_bias_update_rate": -0.5})"});
    expect_rejected({
        {R"({"moe_router_topk": 0})", "moe_router_topk = 0: ", "must be positive"},
        {R"({"moe_router_topk": 9})",
         "moe_router_topk = 9: ", "at most num_moe_experts (8)"},
        {R"({"moe_router_topk": 1})",
         "moe_router_topk = 1: ", "above 1 for softmax without moe_router_pre_softmax"},
        {R"({"moe_router_score_function": "tanh"})",
         "moe_router_score_function = tanh: ", "softmax, sigmoid, sqrtsoftplus"},
        {R"({"moe_router_dtype": "bf16"})", "moe_router_dtype = bf16: ", "fp32, fp64"},
        {R"({"moe_router_enable_expert_bias": true})",
         "moe_router_enable_expert_bias = true: ", "sigmoid or sqrtsoftplus"},
    });
}

TEST(ConfigRules, GroupsHoldTheChosen) {
    // Eight experts, two to a group.
    expect_accepted({R"({"moe_router_num_groups": 4})", R"({"moe_router_num_groups": 8})",
                     R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1})",
                     R"({"moe_router_num_groups": 4, "moe_router_group_topk": 2})",
                     R"({"moe_router_num_groups": 4, "moe_router_group_topk": 4,
                         "moe_router_topk": 8})",
                     R"({"moe_router_num_groups": 2, "moe_router_group_topk": 2,
                         "moe_router_topk": 5})",
                     R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1,
                         "moe_router_group_score_topk": 2})",
                     R"({"moe_router_num_groups": 4, "moe_router_group_topk": 3,
                         "moe_router_group_score_topk": 1})"});
    expect_rejected({
        {R"({"moe_router_num_groups": 0})", "moe_router_num_groups = 0: ", "positive"},
        {R"({"moe_router_num_groups": 3})",
         "moe_router_num_groups = 3: ", "must divide num_moe_experts (8)"},
        {R"({"moe_router_num_groups": 16})", "moe_router_num_groups = 16: ", "divide"},
        {R"({"moe_router_group_topk": 1})",
         "moe_router_group_topk = 1: ", "needs moe_router_num_groups"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 0})",
         "moe_router_group_topk = 0: ", "must be positive"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 5,
             "moe_router_topk": 5})",
         "moe_router_group_topk = 5: ", "at most moe_router_num_groups (4)"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 3})",
         "moe_router_topk = 2: ", "at least moe_router_group_topk (3)"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1,
             "moe_router_topk": 3})",
         "moe_router_topk = 3: ", "at most 2"},
        {R"({"moe_router_group_score_topk": 2})",
         "moe_router_group_score_topk = 2: ", "needs moe_router_group_topk"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_score_topk": 2})",
         "moe_router_group_score_topk = 2: ", "needs moe_router_group_topk"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1,
             "moe_router_group_score_topk": 3})",
         "moe_router_group_score_topk = 3: ", "at most 2, the experts of a group"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1,
             "moe_router_group_score_topk": 0})",
         "moe_router_group_score_topk = 0: ", "must be positive"},
        {R"({"moe_router_num_groups": 4, "moe_router_group_topk": 1,
             "moe_router_group_score_topk": 1, "moe_router_topk": 3})",
         "moe_router_topk = 3: ", "at most 2"},
    });
}

TEST(ConfigRules, SigmoidWeightsMayStayScores) {
    expect_accepted({R"({"moe_router_norm_topk_prob": false,
                         "moe_router_score_function": "sigmoid"})",
                     R"({"moe_router_norm_topk_prob": false, "moe_router_topk": 1,
                         "moe_router_score_function": "sqrtsoftplus"})"});
    expect_rejected({
        {R"({"moe_router_norm_topk_prob": false})",
         "moe_router_norm_topk_prob = false: ", "moe_router_pre_softmax says it"},
        {R"({"moe_router_norm_topk_prob": false, "moe_router_score_function": "sigmoid",
             "moe_router_load_balancing_type": "sinkhorn"})",
         "moe_router_norm_topk_prob = false: ", "must be true with sinkhorn"},
    });
}

TEST(ConfigRules, LossesHaveOneCoefficientEach) {
    expect_accepted({R"({"moe_router_load_balancing_type": "none"})",
                     R"({"moe_aux_loss_coeff": [0.1]})", R"({"moe_z_loss_coeff": 0})",
                     R"({"moe_router_load_balancing_type": "sinkhorn",
                         "moe_z_loss_coeff": 0.1})",
                     R"({"moe_router_load_balancing_type":
                             ["aux_loss", "seq_aux_loss", "global_aux_loss", "none"],
                         "moe_aux_loss_coeff": [0.1, 0, 0.2, 0]})"});
    expect_rejected({
        {R"({"moe_router_load_balancing_type": "magic"})",
         "moe_router_load_balancing_type = magic: ",
         "aux_loss, seq_aux_loss, global_aux_loss, sinkhorn, quantile_balancing, none"},
        {R"({"moe_router_load_balancing_type": ["none", "aux_loss", "none"],
             "moe_aux_loss_coeff": [0, 0, 0]})",
         "moe_router_load_balancing_type = none aux_loss none: ", "each type once"},
        {R"({"moe_router_load_balancing_type": ["sinkhorn", "none"],
             "moe_aux_loss_coeff": [0, 0]})",
         "moe_router_load_balancing_type = sinkhorn none: ", "stand alone"},
        {R"({"moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"]})",
         "moe_aux_loss_coeff = 0: ",
         "as many entries as moe_router_load_balancing_type (2)"},
        {R"({"moe_aux_loss_coeff": [0.5, 0.25]})",
         "moe_aux_loss_coeff = 0.5 0.25: ", "(1)"},
        {R"({"moe_aux_loss_coeff": -0.5})",
         "moe_aux_loss_coeff = -0.5: ", "not negative"},
        {R"({"moe_z_loss_coeff": -1})", "moe_z_loss_coeff = -1: ", "not negative"},
        {R"({"moe_router_load_balancing_type": "sinkhorn", "moe_aux_loss_coeff": 0.5})",
         "moe_aux_loss_coeff = 0.5: ", "must be 0 with sinkhorn"},
    });
}

TEST(ConfigRules, JitterIsPositive) {
    expect_accepted({R"({"moe_input_jitter_eps": null})",
                     R"({"moe_input_jitter_eps": 0.01})",
                     R"({"moe_input_jitter_eps": 2})"});
    expect_rejected({
        {R"({"moe_input_jitter_eps": 0})", "moe_input_jitter_eps = 0: ", "positive"},
        {R"({"moe_input_jitter_eps": -0.1})",
         "moe_input_jitter_eps = -0.1: ", "positive"},
    });
}

TEST(ConfigRules, QuantileBalancingStandsAlone) {
    const auto with = [](const std::string& other) {
        return R"({"moe_router_load_balancing_type": "quantile_balancing")" + other + "}";
    };
    expect_accepted(
        {with(""), with(R"(, "moe_router_topk": 7, "moe_z_loss_coeff": 0.1)"),
         with(R"(, "moe_router_quantile_balancing_ema": 0.9)"),
         with(R"(, "moe_router_score_function": "sigmoid", "moe_router_topk": 1,
                 "moe_router_enable_expert_bias": true)"),
         R"({"moe_router_load_balancing_type": ["quantile_balancing"]})",
         R"({"moe_router_quantile_balancing_ema": 0.9})"});
    expect_rejected({
        {with(R"(, "moe_router_topk": 8)"),
         "moe_router_topk = 8: ", "below num_moe_experts with quantile_balancing"},
        {with(R"(, "moe_router_topk": 1)"), "moe_router_topk = 1: ", "above 1"},
        {with(R"(, "moe_aux_loss_coeff": 0.5)"),
         "moe_aux_loss_coeff = 0.5: ", "must be 0 with quantile_balancing"},
        {with(R"(, "moe_router_num_groups": 4)"),
         "moe_router_num_groups = 4: ", "left out with quantile_balancing"},
        {with(R"(, "moe_router_fusion": true)"),
         "moe_router_fusion = true: ", "false with quantile_balancing"},
        {with(R"(, "moe_expert_capacity_factor": 1.5)"),
         "moe_expert_capacity_factor = 1.5: ", "aux_loss, seq_aux_loss, global_aux_loss"},
        {R"({"moe_router_load_balancing_type": ["quantile_balancing", "none"],
             "moe_aux_loss_coeff": [0, 0]})",
         "moe_router_load_balancing_type = quantile_balancing none: ", "stand alone"},
    });
}

TEST(ConfigRules, CapacityComesWithPlainBalancing) {
    expect_accepted({R"({"moe_expert_capacity_factor": 0})",
                     R"({"moe_expert_capacity_factor": 1e300})",
                     R"({"moe_token_drop_policy": "position"})",
                     R"({"moe_expert_capacity_factor": 1,
                         "moe_pad_expert_input_to_capacity": true})",
                     R"({"moe_router_load_balancing_type": "sinkhorn",
                         "moe_expert_capacity_factor": -1})"});
    expect_rejected({
        {R"({"moe_token_drop_policy": "random"})",
         "moe_token_drop_policy = random: ", "probs, position"},
        {R"({"moe_pad_expert_input_to_capacity": true})",
         "moe_pad_expert_input_to_capacity = true: ", "needs moe_expert_capacity_factor"},
        {R"({"moe_expert_capacity_factor": -0.5,
             "moe_pad_expert_input_to_capacity": true})",
         "moe_pad_expert_input_to_capacity = true: ", "needs moe_expert_capacity_factor"},
        {R"({"moe_router_load_balancing_type": "sinkhorn",
             "moe_expert_capacity_factor": 1.5})",
         "moe_expert_capacity_factor = 1.5: ", "aux_loss, seq_aux_loss, global_aux_loss"},
    });
}

TEST(ConfigRules, RankGridsFitTheLayer) {
    expect_accepted({R"({"expert_tensor_parallel_size": 1})",
                     R"({"moe_token_dispatcher_type": "allgather"})",
                     R"({"context_parallel_size": 3})",
                     R"({"num_moe_experts": 6, "expert_model_parallel_size": 3})",
                     R"({"tensor_model_parallel_size": 2, "sequence_parallel": true,
                         "moe_ffn_hidden_size": 6, "add_bias_linear": false,
                         "num_moe_experts": 4, "expert_model_parallel_size": 2,
                         "moe_token_dispatcher_type": "flex"})",
                     R"({"moe_shared_expert_intermediate_size": 5,
                         "moe_shared_expert_overlap": true})",
                     R"({"moe_shared_expert_intermediate_size": 5,
                         "moe_shared_expert_overlap": true,
                         "num_moe_experts": 4, "expert_model_parallel_size": 2,
                         "moe_token_dispatcher_type": "flex"})",
                     R"({"moe_router_padding_for_quantization": true,
                         "moe_expert_capacity_factor": 1.0})",
                     R"({"moe_router_padding_for_quantization": true,
                         "add_bias_linear": true})",
                     R"({"moe_router_padding_for_quantization": true,
                         "num_moe_experts": 4, "expert_model_parallel_size": 2,
                         "moe_token_dispatcher_type": "flex"})",
                     R"({"moe_token_dispatcher_type": "allgather",
                         "fp8_recipe": "blockwise"})"});
    expect_rejected({
        {R"({"moe_token_dispatcher_type": "flex"})",
         "moe_token_dispatcher_type = flex: ", "above 1"},
        {R"({"moe_flex_peer_heap_bytes": 4096})",
         "moe_flex_peer_heap_bytes = 4096: ", "moe_token_dispatcher_type flex"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex", "moe_flex_peer_heap_bytes": 0})",
         "moe_flex_peer_heap_bytes = 0: ", "must be positive"},
        {R"({"moe_flex_max_tokens_per_rank": 9})",
         "moe_flex_max_tokens_per_rank = 9: ", "moe_token_dispatcher_type flex"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex", "moe_flex_max_tokens_per_rank": 0})",
         "moe_flex_max_tokens_per_rank = 0: ", "must be positive"},
        {R"({"moe_expert_rank_capacity_factor": 1.5})",
         "moe_expert_rank_capacity_factor = 1.5: ", "moe_token_dispatcher_type flex"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex",
             "moe_expert_rank_capacity_factor": -0.5})",
         "moe_expert_rank_capacity_factor = -0.5: ", "must be positive"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex", "moe_expert_rank_capacity_factor": 2})",
         "moe_expert_rank_capacity_factor = 2: ", "hybridep or ncclep"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex", "moe_expert_rank_capacity_factor": 2,
             "moe_flex_dispatcher_backend": "hybridep",
             "moe_router_padding_for_quantization": true})",
         "moe_expert_rank_capacity_factor = 2: ",
         "moe_router_padding_for_quantization false"},
        {R"({"moe_shared_expert_intermediate_size": 5, "moe_shared_expert_overlap": true,
             "moe_token_dispatcher_type": "allgather"})",
         "moe_shared_expert_overlap = true: ", "alltoall or flex"},
        {R"({"moe_router_padding_for_quantization": true,
             "moe_token_dispatcher_type": "allgather"})",
         "moe_router_padding_for_quantization = true: ", "alltoall or flex"},
        {R"({"moe_router_padding_for_fp8": true,
             "moe_token_dispatcher_type": "allgather"})",
         "moe_router_padding_for_quantization = true: ", "alltoall or flex"},
        {R"({"moe_router_padding_for_quantization": true,
             "moe_expert_capacity_factor": 1.0,
             "moe_pad_expert_input_to_capacity": true})",
         "moe_router_padding_for_quantization = true: ",
         "must be false with moe_pad_expert_input_to_capacity"},
        {R"({"moe_router_padding_for_quantization": true, "moe_router_topk": 1,
             "moe_router_pre_softmax": true, "moe_apply_probs_on_input": true,
             "add_bias_linear": true})",
         "moe_router_padding_for_quantization = true: ",
         "must be false with moe_apply_probs_on_input and add_bias_linear"},
        {R"({"fp8_recipe": "nvfp4"})",
         "fp8_recipe = nvfp4: ", "delayed, tensorwise, blockwise, mxfp8"},
        {R"({"moe_token_dispatcher_type": "mail"})",
         "moe_token_dispatcher_type = mail: ", "allgather, alltoall, flex"},
        {R"({"num_moe_experts": 6, "expert_model_parallel_size": 4})",
         "expert_model_parallel_size = 4: ", "must divide num_moe_experts (6)"},
        {R"({"moe_ffn_hidden_size": 7, "expert_tensor_parallel_size": 2,
             "add_bias_linear": false})",
         "expert_tensor_parallel_size = 2: ", "must divide moe_ffn_hidden_size (7)"},
        {R"({"moe_ffn_hidden_size": 6, "expert_tensor_parallel_size": 2,
             "add_bias_linear": true})",
         "expert_tensor_parallel_size = 2: ", "must be 1 with add_bias_linear"},
        // Nobody gave ETP: it is TP
        {R"({"moe_ffn_hidden_size": 7, "tensor_model_parallel_size": 2,
             "sequence_parallel": true, "add_bias_linear": false})",
         "tensor_model_parallel_size = 2: ",
         "must divide moe_ffn_hidden_size (7), unless expert_tensor_parallel_size is "
         "given"},
        {R"({"moe_ffn_hidden_size": 6, "tensor_model_parallel_size": 2,
             "sequence_parallel": true, "add_bias_linear": true})",
         "tensor_model_parallel_size = 2: ",
         "must be 1 with add_bias_linear, unless expert_tensor_parallel_size is given"},
        {R"({"tensor_model_parallel_size": 2, "expert_tensor_parallel_size": 1})",
         "sequence_parallel = false: ", "tensor_model_parallel_size above 1"},
        {R"({"tensor_model_parallel_size": 2, "sequence_parallel": true,
             "expert_tensor_parallel_size": 1, "add_bias_linear": false,
             "moe_shared_expert_intermediate_size": 5})",
         "tensor_model_parallel_size = 2: ",
         "must divide moe_shared_expert_intermediate_size (5)"},
        {R"({"num_moe_experts": 4, "expert_model_parallel_size": 2,
             "moe_token_dispatcher_type": "flex", "moe_expert_capacity_factor": 1.0,
             "moe_pad_expert_input_to_capacity": true})",
         "moe_pad_expert_input_to_capacity = true: ", "flex"},
    });
    for (const char* field :
         {"tensor_model_parallel_size", "context_parallel_size",
          "expert_model_parallel_size", "expert_tensor_parallel_size"})
        for (const char* size : {"0", "-1"})
            expect_rejected(
                {{std::string("{\"") + field + "\": " + size + "}",
                  std::string(field) + " = " + size + ": ", "must be positive"}});
}

// JSON cannot hold them, but a caller's arithmetic can.
TEST(ConfigRules, AreAllNamedAtOnceWhereTheyAreIndependent) {
    MoEConfig config = small_config(12, 6, 2, 10);
    config.activation_func = "tanh";
    config.moe_router_topk = 7;
    config.moe_aux_loss_coeff = {-1.0};
    config.moe_token_drop_policy = "last";
    config.expert_model_parallel_size = 4;
    config.moe_token_dispatcher_type = "none";
    EXPECT_TRUE(Rejects(
        [&] { config.finalize(); },
        {"activation_func = tanh: ", "; moe_router_topk = 7: ",
         "; moe_aux_loss_coeff = -1: ", "; moe_token_drop_policy = last: ",
         "; expert_model_parallel_size = 4: ", "; moe_token_dispatcher_type = none: "}));
}

TEST(ConfigRules, NumbersAreFinite) {
    using Setter = std::function<void(MoEConfig&, double)>;
    const std::vector<std::pair<std::string, Setter>> setters = {
        {"glu_linear_offset", [](auto& c, double x) { c.glu_linear_offset = x; }},
        {"activation_func_clamp_value",
         [](auto& c, double x) { c.activation_func_clamp_value = x; }},
        {"moe_router_bias_update_rate",
         [](auto& c, double x) { c.moe_router_bias_update_rate = x; }},
        {"moe_router_quantile_balancing_ema",
         [](auto& c, double x) { c.moe_router_quantile_balancing_ema = x; }},
        {"moe_input_jitter_eps", [](auto& c, double x) { c.moe_input_jitter_eps = x; }},
        {"moe_router_force_biased",
         [](auto& c, double x) { c.moe_router_force_biased = x; }},
        {"moe_router_topk_scaling_factor",
         [](auto& c, double x) { c.moe_router_topk_scaling_factor = x; }},
        {"moe_aux_loss_coeff", [](auto& c, double x) { c.moe_aux_loss_coeff = {x}; }},
        {"moe_z_loss_coeff", [](auto& c, double x) { c.moe_z_loss_coeff = x; }},
        {"moe_expert_capacity_factor",
         [](auto& c, double x) { c.moe_expert_capacity_factor = x; }},
    };
    for (const auto& [field, set] : setters)
        for (double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
            MoEConfig config = small_config();
            set(config, 1.0);
            EXPECT_NO_THROW(config.finalize()) << field;
            set(config, value);
            EXPECT_TRUE(
                Rejects([&] { config.finalize(); },
                        {field + " = " + (std::isnan(value) ? "nan" : "inf"), "finite"}));
        }
}

// JSON rejects an empty list where it reads it; a caller can still make one.
TEST(ConfigRules, ThereIsABalancingType) {
    MoEConfig config = small_config();
    config.moe_router_load_balancing_type.clear();
    config.moe_aux_loss_coeff.clear();
    EXPECT_TRUE(Rejects([&] { config.finalize(); }, {"moe_router_load_balancing_type"}));
}

TEST(Config, DerivesWhatIsNotGiven) {
    EXPECT_EQ(changed(R"({"moe_ffn_hidden_size": null})").ffn(), 64);  // 4 H
    EXPECT_EQ(changed(R"({"moe_ffn_hidden_size": null, "ffn_hidden_size": 7})").ffn(), 7);
    EXPECT_EQ(changed(R"({"ffn_hidden_size": 7})").ffn(), 12);
    EXPECT_EQ(changed("{}").expert_tensor_parallel_size, 1);
    EXPECT_FALSE(
        changed(R"({"moe_expert_capacity_factor": -1e-9})").moe_expert_capacity_factor);
    EXPECT_EQ(changed("{}").shared_ffn(), 0);
    EXPECT_EQ(changed(R"({"moe_shared_expert_intermediate_size": 5})").shared_ffn(), 5);
    EXPECT_EQ(changed("{}").fc1_rows(7), 14);
    EXPECT_EQ(changed(R"({"gated_linear_unit": false})").fc1_rows(7), 7);

    const MoEConfig losses = changed(R"({"moe_router_load_balancing_type":
        ["seq_aux_loss", "aux_loss"], "moe_aux_loss_coeff": [0.5, 0.25]})");
    EXPECT_EQ(losses.aux_loss_coeff("seq_aux_loss"), 0.5);
    EXPECT_EQ(losses.aux_loss_coeff("aux_loss"), 0.25);
    EXPECT_EQ(losses.aux_loss_coeff("global_aux_loss"), 0.0);
    EXPECT_FALSE(losses.is_sinkhorn());
    EXPECT_TRUE(
        changed(R"({"moe_router_load_balancing_type": "sinkhorn"})").is_sinkhorn());
}

TEST(Config, IsTheSameWhenFinalizedTwice) {
    MoEConfig config = changed(R"({"moe_ffn_hidden_size": null,
        "moe_expert_capacity_factor": -1})");
    const auto once = config_to_json(config);
    config.finalize();
    EXPECT_EQ(config_to_json(config), once);
}

// Source: transformer_config.py, __post_init__; token_dispatcher.py, _NCCLEPManager.
TEST(Config, WarnsOfManyExpertsInLowPrecision) {
    EXPECT_TRUE(changed(R"({"num_moe_experts": 31})").warnings().empty());
    const auto warnings = changed(R"({"num_moe_experts": 32})").warnings();
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_NE(warnings[0].find("moe_router_dtype"), std::string::npos);
    EXPECT_TRUE(changed(R"({"num_moe_experts": 32, "moe_router_dtype": "fp32"})")
                    .warnings()
                    .empty());
}

TEST(Config, TakesTheOlderNameOfThePadding) {
    const MoEConfig config = changed(R"({"moe_router_padding_for_fp8": true})");
    EXPECT_TRUE(config.moe_router_padding_for_quantization);
    const auto warnings = config.warnings();
    ASSERT_EQ(warnings.size(), 1u);
    EXPECT_NE(warnings[0].find("use moe_router_padding_for_quantization"),
              std::string::npos);
    EXPECT_TRUE(
        changed(R"({"moe_router_padding_for_quantization": true})").warnings().empty());
    EXPECT_EQ(get_align_size_for_quantization(config), 16);
    EXPECT_EQ(get_align_size_for_quantization(changed(R"({"fp8_recipe": "mxfp8"})")), 32);
}

// Python's floats decide: (T K / E) * factor, rounded up. In fp32, or in another order,
// the first two would be one more.
TEST(Capacity, RoundsAsMegatronDoes) {
    const auto capacity = [](std::int64_t T, std::int64_t K, std::int64_t E,
                             double factor) {
        MoEConfig config;
        config.num_moe_experts = E;
        config.moe_router_topk = K;
        config.moe_expert_capacity_factor = factor;
        return get_capacity(config, T);
    };
    EXPECT_EQ(capacity(25, 2, 4, 1.2), 15);
    EXPECT_EQ(capacity(45, 2, 3, 1.1), 33);
    EXPECT_EQ(capacity(6, 2, 4, 0.7), 3);
    EXPECT_EQ(capacity(6, 2, 4, 1.0), 3);
    EXPECT_EQ(capacity(7, 2, 4, 1.0), 4);
    EXPECT_EQ(capacity(6, 2, 4, 1e-9), 1);
    EXPECT_EQ(capacity(6, 2, 4, 0.0), 0);
    EXPECT_EQ(capacity(0, 2, 4, 1.0), 0);
    // So large that no integer holds it: still more than any number of tokens.
    EXPECT_GE(capacity(6, 2, 4, 1e300), std::int64_t{1} << 62);
}

}  // namespace
}  // namespace moe::test
