#include "core/lacking_fields.h"

#include <map>
#include <nlohmann/json.hpp>

namespace moe {
namespace {

using nlohmann::json;

/// A field of Megatron's.
struct LackingField {
    const char* off;  ///< its default, as JSON
    std::string why;
    bool changes_values = false;  ///< the layer's, not how or where they are computed
};

std::string would(const std::string& what) {
    return "not here: it would " + what + "; leave it out";
}

std::map<std::string, LackingField> make_lacking_fields() {
    const std::string blocks =
        "not here: the kernels of flex choose their grids themselves; leave it out";
    const std::string wire =
        "not here: rows travel in the layer's own dtype; leave it out";
    const std::string stash =
        would("keep experts' activations in pages until the backward");
    const std::string inference = would("choose how inference runs, and here is none");
    const std::string weights =
        would("split experts' weights over more ranks between steps");
    return {
        // Flex
        {"moe_flex_dispatcher_num_sms", {"null", blocks}},
        {"moe_deepep_num_sms", {"null", blocks}},
        {"moe_hybridep_num_sms", {"null", blocks}},
        {"moe_hybridep_num_blocks_permute", {"null", blocks}},
        {"moe_hybridep_num_blocks_unpermute", {"null", blocks}},
        {"moe_hybridep_num_sms_preprocessing", {"108", blocks}},
        {"moe_permute_fusion_into_hybridep",
         {"false", "not here: use moe_permute_fusion"}},
        {"moe_hybridep_pad_uneven_dispatch_inputs",
         {"false",
          "not here: ranks of flex may have different numbers of tokens; leave it out"}},
        {"moe_ncclep_static_shape",
         {"false", would("hand the experts all rows for which there is room")}},
        {"moe_ncclep_zero_copy",
         {"false",
          "not here: flex writes rows into the peers' memory itself; leave it out"}},
        {"moe_dispatch_fwd_dtype", {"null", wire}},
        {"moe_combine_bwd_dtype", {"null", wire}},
        // Which layers, and what a training does around them
        {"moe_layer_freq", {"1", would("say which layers of a model are MoE layers")}},
        {"moe_layer_recompute",
         {"false",
          "not here: use recompute_granularity selective and recompute_modules "
          "moe"}},
        {"moe_per_layer_logging", {"false", would("log the losses layer by layer")}},
        {"moe_grad_scale_func", {"null", would("scale the auxiliary losses' gradients")}},
        {"moe_use_upcycling", {"false", would("make experts of a dense model's FFN")}},
        {"moe_upcycling_granularity",
         {"1", would("cut a dense model's FFN into that many experts")}},
        {"overlap_moe_expert_parallel_comm",
         {"false", would("run one micro-batch beside another's exchanges")}},
        {"moe_paged_stash", {"false", stash}},
        {"moe_paged_stash_page_size", {"64", stash}},
        {"moe_paged_stash_buffer_size_factor_cuda", {"1.1", stash}},
        {"moe_paged_stash_buffer_size_factor_cpu", {"0.0", stash}},
        {"expert_gtp_weight_remat_size", {"1", weights}},
        {"expert_tensor_parallel_num_weight_shards", {"null", weights}},
        // Router and experts
        {"moe_router_topk_limited_devices",
         {"null", "not here: use moe_router_num_groups and moe_router_group_topk", true}},
        {"moe_token_dropping",
         {"false", "not here: use moe_expert_capacity_factor", true}},
        {"moe_single_grouped_weight",
         {"false", would("keep the weights of all experts in one tensor, as here they "
                         "always are")}},
        {"moe_single_grouped_bias",
         {"false", would("keep the biases of all experts in one tensor, as here they "
                         "always are")}},
        {"use_grouped_gemm_for_shared_expert",
         {"false", would("run the shared expert as a grouped product of one group")}},
        {"use_grouped_gemm_for_dense_mlp",
         {"false", would("run a dense layer's FFN as a grouped product of one group")}},
        {"moe_pad_experts_for_cuda_graph_inference", {"false", inference}},
        {"inference_moe_disable_fused_quant_kernels", {"false", inference}},
        {"inference_moe_token_dispatcher_type", {"\"nvls\"", inference}}};
}

const std::map<std::string, LackingField>& lacking_fields() {
    static const std::map<std::string, LackingField> fields = make_lacking_fields();
    return fields;
}

/// By name: what Megatron's field is called, and how its value differs.
const std::map<std::string, std::string>& other_names() {
    static const std::map<std::string, std::string> names = [] {
        std::map<std::string, std::string> said;
        const auto is = [&](const char* name, const std::string& field) {
            said[name] = "not here: Megatron's field is " + field;
        };
        for (const char* name :
             {"num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"})
            is(name, "num_moe_experts");
        for (const char* name : {"num_experts_per_tok", "moe_top_k", "moe_topk"})
            is(name, "moe_router_topk");
        is("moe_intermediate_size", "moe_ffn_hidden_size");
        is("intermediate_size", "ffn_hidden_size, or moe_ffn_hidden_size for an expert");
        is("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size");
        is("n_shared_experts",
           "moe_shared_expert_intermediate_size, the width of all of them together");
        is("n_group", "moe_router_num_groups");
        is("topk_group", "moe_router_group_topk");
        is("routed_scaling_factor", "moe_router_topk_scaling_factor");
        is("scoring_func", "moe_router_score_function");
        is("router_aux_loss_coef", "moe_aux_loss_coeff");
        is("router_z_loss_coef", "moe_z_loss_coeff");
        is("hidden_act", "activation_func, with gated_linear_unit");
        is("swiglu", "activation_func, silu with gated_linear_unit true");
        is("quick_geglu", "activation_func, quick_gelu with gated_linear_unit true");
        is("squared_relu", "activation_func, squared_relu");
        said["norm_topk_prob"] =
            "not here: use moe_router_norm_topk_prob, or, for false with softmax, "
            "moe_router_pre_softmax true";
        is("disable_bias_linear", "add_bias_linear, the other way round");
        return said;
    }();
    return names;
}

}  // namespace

const std::string& why_not_here(const std::string& field) {
    static const std::string none;
    if (const auto lacking = lacking_fields().find(field);
        lacking != lacking_fields().end())
        return lacking->second.why;
    const auto other = other_names().find(field);
    return other == other_names().end() ? none : other->second;
}

bool changes_values(const std::string& field) {
    const auto found = lacking_fields().find(field);
    return found != lacking_fields().end() && found->second.changes_values;
}

bool is_off(const std::string& field, const json& value) {
    const auto found = lacking_fields().find(field);
    return found != lacking_fields().end() &&
           (value.is_null() || value == json::parse(found->second.off));
}

}  // namespace moe
