#include "core/config_rules.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/known_names.h"
#include "core/recompute.h"

namespace moe {

void require_positive(const std::string& field, std::int64_t value) {
    if (value <= 0) reject(field, value, "must be positive");
    // Sizes are multiplied; far below this limit memory has run out.
    if (value > (std::int64_t{1} << 31)) reject(field, value, "must be at most 2^31");
}

namespace {

void require_allowed(const std::string& field, const std::string& value) {
    const std::vector<std::string>& allowed = allowed_values(field);
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
        reject_unknown(field, value, allowed);
}

void require_finite(const std::string& field, double value) {
    if (!std::isfinite(value)) reject(field, value, "must be finite");
}

/// Source: arguments.py, transformer_config.py, moe_layer.py; what must divide the number
/// of ranks is checked where that is known (distributed/rank_generator.h).
/// @param etp_given  false: ETP is TP, which is the one to name
void check_ranks(const MoEConfig& c, bool etp_given) {
    require_positive("tensor_model_parallel_size", c.tensor_model_parallel_size);
    require_positive("context_parallel_size", c.context_parallel_size);
    require_positive("expert_model_parallel_size", c.expert_model_parallel_size);
    require_positive("expert_tensor_parallel_size", *c.expert_tensor_parallel_size);
    const auto require_divides = [](const std::string& field, std::int64_t size,
                                    const std::string& what, std::int64_t whole) {
        if (whole % size != 0)
            reject(field, size, fmt::format("must divide {} ({})", what, whole));
    };
    require_divides("expert_model_parallel_size", c.expert_model_parallel_size,
                    "num_moe_experts", c.num_experts());
    const std::string etp =
        etp_given ? "expert_tensor_parallel_size" : "tensor_model_parallel_size";
    const std::string unless =
        etp_given ? "" : ", unless expert_tensor_parallel_size is given";
    if (c.ffn() % *c.expert_tensor_parallel_size != 0)
        reject(etp, *c.expert_tensor_parallel_size,
               fmt::format("must divide moe_ffn_hidden_size ({}){}", c.ffn(), unless));
    require_divides("tensor_model_parallel_size", c.tensor_model_parallel_size,
                    "moe_shared_expert_intermediate_size", c.shared_ffn());
    const auto require_blocks = [&](const char* field, const auto& size, const char* what,
                                    std::int64_t width) {
        if (!size) return;
        require_positive(field, *size);
        if (c.gated_linear_unit) require_divides(field, *size, what, width);
    };
    require_blocks("moe_mlp_glu_interleave_size", c.moe_mlp_glu_interleave_size,
                   "moe_ffn_hidden_size / expert_tensor_parallel_size", c.local_ffn());
    require_blocks("moe_shared_expert_glu_interleave_size",
                   c.moe_shared_expert_glu_interleave_size,
                   "moe_shared_expert_intermediate_size / tensor_model_parallel_size",
                   c.local_shared_ffn());
    if (c.tensor_model_parallel_size > 1 && !c.sequence_parallel)
        reject("sequence_parallel", false,
               "must be true with tensor_model_parallel_size above 1");
    if (c.add_bias_linear && *c.expert_tensor_parallel_size > 1)
        reject(etp, *c.expert_tensor_parallel_size,
               "must be 1 with add_bias_linear" + unless);
}

/// Megatron drops HybridEP without a word where the dispatcher is not flex, and lets
/// moe_enable_deepep overrule "ncclep".
void check_flex_backend(const MoEConfig& c) {
    const bool flex = c.moe_token_dispatcher_type == "flex";
    const std::string& backend = c.moe_flex_dispatcher_backend;
    require_allowed("moe_flex_dispatcher_backend", backend);
    if (backend == "ncclep" && !flex)
        reject("moe_flex_dispatcher_backend", backend,
               "needs moe_token_dispatcher_type flex");
    if (c.moe_enable_deepep && !flex)
        reject("moe_enable_deepep", true, "needs moe_token_dispatcher_type flex");
    if (c.moe_enable_deepep && backend != "deepep")
        reject("moe_enable_deepep", true,
               "must be false with moe_flex_dispatcher_backend " + backend);
    if (!flex) return;
    if (c.moe_pad_expert_input_to_capacity)
        reject("moe_pad_expert_input_to_capacity", true,
               "must be false with the flex dispatcher (of Megatron's back-ends HybridEP "
               "alone has padding, ours has none)");
    if (c.moe_expert_capacity_factor && backend == "ncclep")
        reject("moe_expert_capacity_factor", *c.moe_expert_capacity_factor,
               "must be left out with moe_flex_dispatcher_backend ncclep");
}

void check_dispatcher(const MoEConfig& c) {
    require_allowed("moe_token_dispatcher_type", c.moe_token_dispatcher_type);
    check_flex_backend(c);
    const auto check_flex = [&](const char* field, const auto& value) {
        if (!value) return;
        if (!(*value > 0)) reject(field, *value, "must be positive");
        if (c.moe_token_dispatcher_type != "flex")
            reject(field, *value, "needs moe_token_dispatcher_type flex");
    };
    check_flex("moe_flex_peer_heap_bytes", c.moe_flex_peer_heap_bytes);
    check_flex("moe_flex_max_tokens_per_rank", c.moe_flex_max_tokens_per_rank);
    check_flex("moe_expert_rank_capacity_factor", c.moe_expert_rank_capacity_factor);
    if (c.moe_expert_rank_capacity_factor && c.moe_flex_dispatcher_backend == "deepep")
        reject("moe_expert_rank_capacity_factor", *c.moe_expert_rank_capacity_factor,
               "needs moe_flex_dispatcher_backend hybridep or ncclep");
    if (c.moe_expert_rank_capacity_factor && c.moe_router_padding_for_quantization)
        reject("moe_expert_rank_capacity_factor", *c.moe_expert_rank_capacity_factor,
               "needs moe_router_padding_for_quantization false");
    if (c.shared_ffn() > 0 && c.moe_shared_expert_overlap &&
        c.moe_token_dispatcher_type == "allgather")
        reject("moe_shared_expert_overlap", true,
               "needs moe_token_dispatcher_type alltoall or flex");
    require_allowed("fp8_recipe", c.fp8_recipe);
    if (c.moe_router_padding_for_quantization) {
        if (c.moe_token_dispatcher_type == "allgather")
            reject("moe_router_padding_for_quantization", true,
                   "needs moe_token_dispatcher_type alltoall or flex");
        // Megatron lets it through, and keeps the first C tokens of a longer column,
        // whether they were routed there or not.
        if (c.moe_pad_expert_input_to_capacity)
            reject("moe_router_padding_for_quantization", true,
                   "must be false with moe_pad_expert_input_to_capacity (every expert "
                   "has its capacity)");
        // Megatron lets this through as well: a row that is weighed by 0 at its input
        // still comes out as its biases.
        if (c.moe_apply_probs_on_input && c.add_bias_linear)
            reject("moe_router_padding_for_quantization", true,
                   "must be false with moe_apply_probs_on_input and add_bias_linear");
    }
    if (c.moe_token_dispatcher_type == "flex" &&
        *c.expert_tensor_parallel_size * c.expert_model_parallel_size == 1)
        reject("moe_token_dispatcher_type", "flex",
               "needs expert_tensor_parallel_size * expert_model_parallel_size above 1");
}

void check_shape(const MoEConfig& c) {
    if (!c.num_moe_experts)
        reject("num_moe_experts", "null", "required: the number of experts");
    require_positive("num_moe_experts", *c.num_moe_experts);
    require_positive("ffn_hidden_size", *c.ffn_hidden_size);
    require_positive("moe_ffn_hidden_size", *c.moe_ffn_hidden_size);
    if (c.moe_shared_expert_intermediate_size) {
        require_positive("moe_shared_expert_intermediate_size",
                         *c.moe_shared_expert_intermediate_size);
        if (c.add_bias_linear)
            reject("add_bias_linear", c.add_bias_linear,
                   "must be false with moe_shared_expert_intermediate_size");
    }
    if (!c.moe_latent_size) return;
    require_positive("moe_latent_size", *c.moe_latent_size);
    // The dispatcher would have to add outputs of H to rows of ℓ
    if (c.moe_shared_expert_overlap)
        reject("moe_shared_expert_overlap", true, "must be false with moe_latent_size");
}

void check_experts(const MoEConfig& c) {
    require_allowed("activation_func", c.activation_func);
    require_finite("glu_linear_offset", c.glu_linear_offset);
    if (c.activation_func_clamp_value) {
        const double clamp = *c.activation_func_clamp_value;
        if (!(std::isfinite(clamp) && clamp > 0.0))
            reject("activation_func_clamp_value", clamp, "must be finite and positive");
        const bool swiglu = c.gated_linear_unit && c.activation_func == "silu";
        if (swiglu && c.glu_linear_offset != 0.0)
            reject("glu_linear_offset", c.glu_linear_offset,
                   "must be 0 for SwiGLU with activation_func_clamp_value");
    }
    if (c.moe_apply_probs_on_input && c.moe_router_topk != 1)
        reject("moe_router_topk", c.moe_router_topk,
               "must be 1 with moe_apply_probs_on_input");
}

/// Ours, where Megatron has ⌊K / moe_router_group_topk⌋.
void check_group_scores(const MoEConfig& c) {
    if (!c.moe_router_group_score_topk) return;
    const std::int64_t best = *c.moe_router_group_score_topk;
    require_positive("moe_router_group_score_topk", best);
    if (!c.moe_router_group_topk)
        reject("moe_router_group_score_topk", best, "needs moe_router_group_topk");
    const std::int64_t size = c.num_experts() / *c.moe_router_num_groups;
    if (best > size)
        reject("moe_router_group_score_topk", best,
               fmt::format("must be at most {}, the experts of a group", size));
}

void check_groups(const MoEConfig& c) {
    if (c.moe_router_num_groups) {
        require_positive("moe_router_num_groups", *c.moe_router_num_groups);
        if (c.num_experts() % *c.moe_router_num_groups != 0)
            reject("moe_router_num_groups", *c.moe_router_num_groups,
                   fmt::format("must divide num_moe_experts ({})", c.num_experts()));
    }
    if (!c.moe_router_group_topk) return check_group_scores(c);
    const std::int64_t group_topk = *c.moe_router_group_topk;
    require_positive("moe_router_group_topk", group_topk);
    if (!c.moe_router_num_groups)
        reject("moe_router_group_topk", group_topk, "needs moe_router_num_groups");
    const std::int64_t groups = *c.moe_router_num_groups;
    if (group_topk > groups)
        reject("moe_router_group_topk", group_topk,
               fmt::format("must be at most moe_router_num_groups ({})", groups));
    // Megatron lets the next two through; neither has a meaning. A group's score would be
    // the sum of zero entries, or experts of unchosen groups would be selected.
    if (c.moe_router_topk < group_topk && !c.moe_router_group_score_topk)
        reject("moe_router_topk", c.moe_router_topk,
               fmt::format("must be at least moe_router_group_topk ({})", group_topk));
    const std::int64_t reachable = group_topk * (c.num_experts() / groups);
    if (c.moe_router_topk > reachable)
        reject(
            "moe_router_topk", c.moe_router_topk,
            fmt::format("must be at most {}: the experts in moe_router_group_topk groups",
                        reachable));
    check_group_scores(c);
}

void check_router(const MoEConfig& c) {
    require_positive("moe_router_topk", c.moe_router_topk);
    if (c.moe_router_topk > c.num_experts())
        reject("moe_router_topk", c.moe_router_topk,
               fmt::format("must be at most num_moe_experts ({})", c.num_experts()));
    require_allowed("moe_router_score_function", c.moe_router_score_function);
    const bool softmax = c.moe_router_score_function == "softmax";
    if (c.moe_router_topk == 1 && softmax && !c.moe_router_pre_softmax &&
        !c.is_sinkhorn())
        reject(
            "moe_router_topk", c.moe_router_topk,
            "must be above 1 for softmax without moe_router_pre_softmax (a softmax over "
            "one expert has no gradient)");
    if (c.moe_router_dtype) require_allowed("moe_router_dtype", *c.moe_router_dtype);
    if (c.moe_router_enable_expert_bias && softmax)
        reject("moe_router_enable_expert_bias", true,
               "needs moe_router_score_function sigmoid or sqrtsoftplus");
    if (!c.moe_router_norm_topk_prob && c.is_sinkhorn())
        reject("moe_router_norm_topk_prob", false,
               "must be true with sinkhorn, whose weights are never normalised");
    if (!c.moe_router_norm_topk_prob && softmax)
        reject("moe_router_norm_topk_prob", false,
               "needs moe_router_score_function sigmoid or sqrtsoftplus; for softmax "
               "moe_router_pre_softmax says it");
    require_finite("moe_router_bias_update_rate", c.moe_router_bias_update_rate);
    if (c.moe_router_force_biased)
        require_finite("moe_router_force_biased", *c.moe_router_force_biased);
    if (const auto eps = c.moe_input_jitter_eps;
        eps && !(std::isfinite(*eps) && *eps > 0.0))
        reject("moe_input_jitter_eps", *eps, "must be finite and positive");
    if (c.moe_router_topk_scaling_factor)
        require_finite("moe_router_topk_scaling_factor",
                       *c.moe_router_topk_scaling_factor);
    check_groups(c);
}

/// Source: router.py, TopKRouter.quantile_balancing.
void check_quantile_balancing(const MoEConfig& c) {
    require_finite("moe_router_quantile_balancing_ema",
                   c.moe_router_quantile_balancing_ema);
    if (!c.is_quantile_balancing()) return;
    if (c.moe_router_topk == c.num_experts())
        reject("moe_router_topk", c.moe_router_topk,
               "must be below num_moe_experts with quantile_balancing (the best expert "
               "that is not chosen says how far the others are)");
    if (c.moe_router_num_groups)
        reject("moe_router_num_groups", *c.moe_router_num_groups,
               "must be left out with quantile_balancing");
    if (c.moe_router_fusion)
        reject("moe_router_fusion", true, "must be false with quantile_balancing");
}

/// Megatron lets replay through where a choice of another kind ignores it.
void check_given_experts(const MoEConfig& c) {
    const bool other_choice = c.is_sinkhorn() || c.is_quantile_balancing();
    if (c.moe_enable_routing_replay && other_choice)
        reject("moe_enable_routing_replay", true,
               "must be false with " + c.moe_router_load_balancing_type[0]);
    if (!c.moe_router_hash_vocab_size) return;
    const std::int64_t vocab = *c.moe_router_hash_vocab_size;
    require_positive("moe_router_hash_vocab_size", vocab);
    const auto refuse = [&](bool given, const std::string& what) {
        if (given)
            reject("moe_router_hash_vocab_size", vocab,
                   "must be left out with " + what + ": the token's id chooses");
    };
    if (other_choice) refuse(true, c.moe_router_load_balancing_type[0]);
    refuse(c.moe_router_num_groups.has_value(), "moe_router_num_groups");
    refuse(c.moe_router_enable_expert_bias, "moe_router_enable_expert_bias");
}

void check_losses(const MoEConfig& c) {
    const auto& types = c.moe_router_load_balancing_type;
    const auto& coeffs = c.moe_aux_loss_coeff;
    if (types.empty())
        reject("moe_router_load_balancing_type", "empty", "must name at least one type");
    for (std::size_t i = 0; i < types.size(); ++i) {
        require_allowed("moe_router_load_balancing_type", types[i]);
        if (std::count(types.begin(), types.end(), types[i]) > 1)
            reject("moe_router_load_balancing_type",
                   fmt::format("{}", fmt::join(types, " ")), "must name each type once");
        if ((types[i] == "sinkhorn" || types[i] == "quantile_balancing") &&
            types.size() > 1)
            reject("moe_router_load_balancing_type",
                   fmt::format("{}", fmt::join(types, " ")),
                   types[i] + " must stand alone");
    }
    if (coeffs.size() != types.size())
        reject("moe_aux_loss_coeff", fmt::format("{}", fmt::join(coeffs, " ")),
               fmt::format(
                   "must have as many entries as moe_router_load_balancing_type ({})",
                   types.size()));
    for (double coeff : coeffs) {
        if (!(std::isfinite(coeff) && coeff >= 0.0))
            reject("moe_aux_loss_coeff", coeff, "must be finite and not negative");
        if ((c.is_sinkhorn() || c.is_quantile_balancing()) && coeff != 0.0)
            reject("moe_aux_loss_coeff", coeff, "must be 0 with " + types[0]);
    }
    if (c.moe_z_loss_coeff &&
        !(std::isfinite(*c.moe_z_loss_coeff) && *c.moe_z_loss_coeff >= 0))
        reject("moe_z_loss_coeff", *c.moe_z_loss_coeff,
               "must be finite and not negative");
}

void check_capacity(const MoEConfig& c) {
    require_allowed("moe_token_drop_policy", c.moe_token_drop_policy);
    if (!c.moe_expert_capacity_factor) {
        if (c.moe_pad_expert_input_to_capacity)
            reject("moe_pad_expert_input_to_capacity", true,
                   "needs moe_expert_capacity_factor");
        return;
    }
    require_finite("moe_expert_capacity_factor", *c.moe_expert_capacity_factor);
    if (c.is_sinkhorn() || c.is_quantile_balancing())
        reject("moe_expert_capacity_factor", *c.moe_expert_capacity_factor,
               "needs moe_router_load_balancing_type aux_loss, seq_aux_loss, "
               "global_aux_loss or none");
}

/// Modules that are not this layer's are let through. Source: transformer_config.py.
void check_recompute(const MoEConfig& c) {
    if (c.recompute_granularity == "full")
        reject("recompute_granularity", "full",
               "must be selective: full would run whole transformer layers again");
    if (c.recompute_granularity)
        require_allowed("recompute_granularity", *c.recompute_granularity);
    if (!c.recompute_modules) return;
    for (const std::string& module : *c.recompute_modules)
        require_allowed("recompute_modules", module);
    if (recomputes(c, "moe_act") && !c.moe_grouped_gemm)
        reject("recompute_modules", "moe_act", "needs moe_grouped_gemm");
    if (recomputes(c, "shared_experts") && c.moe_shared_expert_overlap)
        reject("recompute_modules", "shared_experts",
               "needs moe_shared_expert_overlap false");
}

}  // namespace

void check_rules(const MoEConfig& config, bool etp_given) {
    check_shape(config);
    std::string broken;  // what each of the others finds first
    const auto collect = [&](const auto& check) {
        try {
            check(config);
        } catch (const InputError& error) {
            broken += (broken.empty() ? "" : "; ") + std::string(error.what());
        }
    };
    collect(check_experts);
    collect(check_router);
    collect(check_losses);
    collect(check_quantile_balancing);
    collect(check_given_experts);
    collect(check_capacity);
    collect([&](const MoEConfig& c) { check_ranks(c, etp_given); });
    collect(check_dispatcher);
    collect(check_recompute);
    if (!broken.empty()) throw InputError(broken);
}

}  // namespace moe
