/// @file
/// MoEConfig: the fields of Megatron's TransformerConfig that this layer has, under
/// Megatron's names, with Megatron's defaults and its rules about which go together.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace moe {

/// One Mixture-of-Experts layer, as Megatron-Core configures it.
/// Source: megatron/core/transformer/transformer_config.py, model_parallel_config.py.
///
/// Fill it by hand, from JSON (config_from_json) or from the command line, then call
/// finalize() once: it resolves what is derived and rejects what cannot work.
struct MoEConfig {
    // ------------------------------------------------------------------ model shape
    std::int64_t hidden_size = 0;
    std::optional<std::int64_t> num_moe_experts;
    std::optional<std::int64_t> ffn_hidden_size;
    std::optional<std::int64_t> moe_ffn_hidden_size;
    std::optional<std::int64_t> moe_shared_expert_intermediate_size;
    bool moe_shared_expert_gate = false;
    bool moe_shared_expert_overlap = false;
    std::optional<std::int64_t> moe_latent_size;
    /// Blocks in which FC1's gate and up rows alternate, where the unit is gated; none:
    /// all gates, then all ups. A layout of weights and of their gradients alone: see
    /// core/glu_interleaving.h.
    std::optional<std::int64_t> moe_mlp_glu_interleave_size;
    std::optional<std::int64_t> moe_shared_expert_glu_interleave_size;

    // ------------------------------------------------------------------ experts
    bool gated_linear_unit = false;
    std::string activation_func = "gelu";
    std::optional<double> activation_func_clamp_value;
    double glu_linear_offset = 0.0;
    bool add_bias_linear = true;
    bool moe_apply_probs_on_input = false;
    bool moe_grouped_gemm = false;

    // ------------------------------------------------------------------ router
    std::int64_t moe_router_topk = 2;
    bool moe_router_pre_softmax = false;
    std::string moe_router_score_function = "softmax";
    std::optional<std::int64_t> moe_router_num_groups;
    std::optional<std::int64_t> moe_router_group_topk;
    /// Ours: how many of a group's best experts make its score; Megatron's ⌊K /
    /// moe_router_group_topk⌋ without it, 1 a group's maximum.
    std::optional<std::int64_t> moe_router_group_score_topk;
    /// Ours: false leaves the K chosen sigmoid scores as they are.
    bool moe_router_norm_topk_prob = true;
    /// Ours: V, rows of the table that gives each token id its K experts.
    std::optional<std::int64_t> moe_router_hash_vocab_size;
    std::optional<double> moe_router_topk_scaling_factor;
    std::optional<std::string> moe_router_dtype;  ///< none: the layer's dtype
    bool moe_router_enable_expert_bias = false;
    double moe_router_bias_update_rate = 1e-3;
    double moe_router_quantile_balancing_ema = 0.0;
    std::optional<double> moe_input_jitter_eps;
    bool moe_router_fusion = false;
    bool moe_router_force_load_balancing = false;
    std::optional<double> moe_router_force_biased;
    bool moe_enable_routing_replay = false;

    // ------------------------------------------------------------------ auxiliary losses
    std::vector<std::string> moe_router_load_balancing_type = {"aux_loss"};
    std::vector<double> moe_aux_loss_coeff = {0.0};
    std::optional<double> moe_z_loss_coeff;
    bool calculate_per_token_loss = false;

    // ------------------------------------------------------------------ capacity
    std::optional<double> moe_expert_capacity_factor;
    bool moe_pad_expert_input_to_capacity = false;
    std::string moe_token_drop_policy = "probs";

    // ------------------------------------------------------------------ dispatch
    std::string moe_token_dispatcher_type = "allgather";
    /// Whose rules flex follows; the kernels, and one row per token and rank on its way,
    /// are ours whatever it says. Values do not differ.
    std::string moe_flex_dispatcher_backend = "deepep";
    bool moe_enable_deepep = false;  ///< Megatron's older name for flex with "deepep"
    bool moe_permute_fusion = false;
    /// Gives each expert tokens with probability 0, up to a multiple of
    /// get_align_size_for_quantization(): no result changes. Megatron wants fp8 or fp4
    /// for it; here, where no product is quantized, it shows what the padding costs.
    bool moe_router_padding_for_quantization = false;
    /// Megatron's older name; finalize() sets the field above.
    bool moe_router_padding_for_fp8 = false;
    std::string fp8_recipe = "delayed";  ///< decides the multiple, and nothing else here
    /// Ours: Megatron lets DeepEP size its buffer (fused_a2a.py, get_buffer).
    std::optional<std::int64_t> moe_flex_peer_heap_bytes;
    /// Ours: a bound that makes buffers the same at every call, as num_worst_tokens
    /// (DeepEP) and max_num_of_tokens_per_rank (HybridEP) do.
    std::optional<std::int64_t> moe_flex_max_tokens_per_rank;
    /// f: a rank's experts have room for T K f rows, T being the most tokens of any rank;
    /// see expert_rank_capacity().
    std::optional<double> moe_expert_rank_capacity_factor;

    // ------------------------------------------------------------------ recompute
    std::optional<std::string> recompute_granularity;
    std::optional<std::vector<std::string>> recompute_modules;

    // ------------------------------------------------------------------ ranks
    std::int64_t tensor_model_parallel_size = 1;
    std::int64_t context_parallel_size = 1;
    std::int64_t expert_model_parallel_size = 1;
    std::optional<std::int64_t> expert_tensor_parallel_size;
    bool sequence_parallel = false;
    bool overlap_dispatch_backward_with_experts_wgrad = false;

    /// Resolves derived fields (FFN width, a negative capacity factor) and checks every
    /// rule. Throws InputError "<field> = <value>: <allowed>" for those that are broken;
    /// see core/config_rules.h.
    void finalize();

    /// What Megatron would warn about; one line each. Call after finalize().
    std::vector<std::string> warnings() const;

    /// E, number of experts. Call after finalize(), as everything below.
    std::int64_t num_experts() const { return *num_moe_experts; }
    /// F, width of one routed expert.
    std::int64_t ffn() const { return *moe_ffn_hidden_size; }
    /// ℓ, the width in which tokens are dispatched and experts work: H without
    /// moe_latent_size.
    std::int64_t latent_size() const { return moe_latent_size.value_or(hidden_size); }
    /// F_s, width of the shared expert; 0 without one.
    std::int64_t shared_ffn() const {
        return moe_shared_expert_intermediate_size.value_or(0);
    }
    /// L, experts of one rank: E / EP.
    std::int64_t num_local_experts() const {
        return num_experts() / expert_model_parallel_size;
    }
    /// F / ETP, the width of one rank's shard of an expert.
    std::int64_t local_ffn() const { return ffn() / *expert_tensor_parallel_size; }
    /// F_s / TP, the width of one rank's shard of the shared expert.
    std::int64_t local_shared_ffn() const {
        return shared_ffn() / tensor_model_parallel_size;
    }
    /// Rows of an FC1 weight of FFN width `ffn`: gate rows then up rows, or only one set.
    std::int64_t fc1_rows(std::int64_t ffn) const {
        return gated_linear_unit ? 2 * ffn : ffn;
    }
    /// Coefficient of one kind of auxiliary loss; 0 where it is not asked for.
    /// Source: router.py, TopKRouter.get_aux_loss_coeff.
    double aux_loss_coeff(const std::string& type) const;
    /// The same layer with this dispatcher, without what is another's alone. To be
    /// finalized again.
    MoEConfig with_dispatcher(const std::string& type) const;
    bool is_sinkhorn() const;
    bool is_quantile_balancing() const;
    /// Random logits take the place of the gating's: see distributed/random_logits.h.
    bool has_random_logits() const {
        return moe_router_force_load_balancing || moe_router_force_biased;
    }
};

/// C, rows an expert accepts from one rank: ceil(T * K / E * factor), in double and in
/// this order, because Megatron's Python floats decide the rounding. Source:
/// moe_utils.py, get_capacity.
std::int64_t get_capacity(const MoEConfig& config, std::int64_t num_tokens);

/// Rows that the experts of one rank have room for, floor(T K f), with
/// moe_expert_rank_capacity_factor f. Of more, the last ones by expert and then by row
/// received are dropped. Source: token_dispatcher.py, _HybridEPManager; for ncclep
/// _NCCLEPManager, where each of ETP shards of a choice counts: floor(T K ETP f).
/// @param max_tokens  T, the most tokens of any rank
std::int64_t expert_rank_capacity(const MoEConfig& config, std::int64_t max_tokens);

/// What quantized products want an expert's rows to be a multiple of: 32 for mxfp8, whose
/// scales are for 32 numbers each, else 16. Source: moe_utils.py,
/// get_align_size_for_quantization; fp8_utils.py, get_fp8_align_size.
std::int64_t get_align_size_for_quantization(const MoEConfig& config);

/// Reads a config; fields the JSON lacks keep their defaults, an unknown field or a value
/// of the wrong type is an InputError that names it. Does not call finalize().
/// @param where  named in errors before the field, e.g. the file; may be empty
MoEConfig config_from_json(const nlohmann::json& json, const std::string& where);

/// Sets one field from JSON; used by config_from_json and by the command line.
void set_field(MoEConfig& config, const std::string& name, const nlohmann::json& value,
               const std::string& where);

/// All fields, in declaration order; absent optional ones as null.
nlohmann::ordered_json config_to_json(const MoEConfig& config);

/// How the value of a field is written on a command line.
enum class FieldKind { boolean, integer, number, text, list };

/// Name, kind and one line of meaning of a config field.
struct FieldInfo {
    std::string name;
    FieldKind kind;
    bool optional;  ///< may be absent ("none", null)
    std::string help;
};

/// Every field of MoEConfig, in declaration order.
const std::vector<FieldInfo>& config_fields();

/// A model whose MoE layer people know, one of preset_names(); core/presets.h says where
/// it was read. InputError for another name. finalize() is still to be called.
/// @param scale  widths (hidden, FFN, shared) are divided by it; >= 1, must leave >= 1
MoEConfig preset(const std::string& name, std::int64_t scale);

/// Divides the widths that a config states (hidden, latent, FFN, shared) by `scale`.
/// InputError naming "scale" unless it is >= 1 and leaves >= 1 of each.
void scale_widths(MoEConfig& config, std::int64_t scale);

/// Names that preset() knows.
const std::vector<std::string>& preset_names();

}  // namespace moe
