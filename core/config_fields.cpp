// Config fields by name: one table serves JSON files, the command line and printing.

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/config.h"
#include "core/error.h"
#include "core/known_names.h"
#include "core/lacking_fields.h"

namespace moe {
namespace {

using nlohmann::json;

/// Calls visit(name, member, help) for every field, in declaration order.
template <typename Config, typename Visit>
void visit_fields(Config& c, Visit&& visit) {
#define FIELD(name, help) visit(#name, c.name, help)
    FIELD(hidden_size, "H, hidden size");
    FIELD(num_moe_experts, "E, number of routed experts");
    FIELD(ffn_hidden_size, "FFN width of a dense layer (default 4 H)");
    FIELD(moe_ffn_hidden_size, "F, FFN width of one expert (default: ffn_hidden_size)");
    FIELD(moe_shared_expert_intermediate_size, "width of the shared expert (none)");
    FIELD(moe_shared_expert_gate, "sigmoid gate on the shared expert's output");
    FIELD(moe_shared_expert_overlap, "shared expert runs between the dispatcher's steps");
    FIELD(moe_latent_size, "width between two projections around the dispatch (none: H)");
    FIELD(moe_mlp_glu_interleave_size,
          "FC1 stores gate and up rows in turn, in blocks of so many (none)");
    FIELD(moe_shared_expert_glu_interleave_size,
          "the same for the shared expert's weights (none)");
    FIELD(gated_linear_unit, "act(gate) * up instead of act(x)");
    FIELD(activation_func,
          "silu, gelu, quick_gelu, squared_relu, or, not Megatron's, gelu_tanh");
    FIELD(activation_func_clamp_value, "clamp of both GLU halves (none)");
    FIELD(glu_linear_offset, "constant added to the linear half of a GLU");
    FIELD(add_bias_linear, "bias on router, FC1 and FC2");
    FIELD(moe_apply_probs_on_input, "scale an expert's input, not its output (K = 1)");
    FIELD(moe_grouped_gemm, "optimized_gpu: one product over all experts, not one each");
    FIELD(moe_router_topk, "K, experts per token");
    FIELD(moe_router_pre_softmax, "softmax over all experts, before top-k");
    FIELD(moe_router_score_function, "softmax, sigmoid or sqrtsoftplus");
    FIELD(moe_router_num_groups, "G, groups of experts for limited routing (none)");
    FIELD(moe_router_group_topk, "groups a token may use (none)");
    FIELD(moe_router_group_score_topk,
          "best experts that make a group's score (K / moe_router_group_topk); not "
          "Megatron's");
    FIELD(moe_router_norm_topk_prob,
          "sigmoid, sqrtsoftplus: weights over their sum; not Megatron's");
    FIELD(moe_router_hash_vocab_size,
          "V: experts by token id, from a table of V rows (none); not Megatron's");
    FIELD(moe_router_topk_scaling_factor, "factor on the final probabilities (none)");
    FIELD(moe_router_dtype,
          "fp32 or fp64: the router's precision (none: the layer's)");
    FIELD(moe_router_enable_expert_bias, "bias that steers selection, not weights");
    FIELD(moe_router_bias_update_rate, "step of the expert bias");
    FIELD(moe_router_quantile_balancing_ema,
          "quantile_balancing: how much of the old number of an expert stays");
    FIELD(moe_input_jitter_eps,
          "the router's input times random numbers within 1 - this and 1 + this (none)");
    FIELD(moe_router_fusion, "optimized_gpu: one kernel from logits to losses' sums");
    FIELD(moe_router_force_load_balancing, "random logits, for benchmarks");
    FIELD(moe_router_force_biased,
          "random logits and a bias of N(0, |this|) for each expert (none)");
    FIELD(moe_enable_routing_replay, "take the experts of a recorded run, where given");
    FIELD(moe_router_load_balancing_type,
          "aux_loss, seq_aux_loss, global_aux_loss (one or several), sinkhorn, "
          "quantile_balancing or none");
    FIELD(moe_aux_loss_coeff, "coefficient of each load balancing type");
    FIELD(moe_z_loss_coeff, "coefficient of the z-loss (none)");
    FIELD(calculate_per_token_loss, "scale auxiliary losses by the number of tokens");
    FIELD(moe_expert_capacity_factor, "drop tokens over ceil(T K / E * factor) (none)");
    FIELD(moe_pad_expert_input_to_capacity, "pad every expert to its capacity");
    FIELD(moe_token_drop_policy, "probs or position: who stays");
    FIELD(moe_token_dispatcher_type, "allgather, alltoall or flex");
    FIELD(moe_flex_dispatcher_backend,
          "flex: whose rules hold, deepep's, hybridep's or ncclep's; rows travel by our "
          "own kernels with each");
    FIELD(moe_enable_deepep, "the older name of flex with deepep");
    FIELD(moe_permute_fusion,
          "optimized_gpu gathers rows in the products, and copies none");
    FIELD(moe_router_padding_for_quantization,
          "alltoall, flex: pad every expert's rows to a multiple");
    FIELD(moe_router_padding_for_fp8, "the older name of the field above");
    FIELD(fp8_recipe, "multiple for that padding: mxfp8 32 rows, all others 16");
    FIELD(moe_flex_peer_heap_bytes,
          "flex: most bytes of each rank's peer memory (none: as it needs); not "
          "Megatron's");
    FIELD(moe_flex_max_tokens_per_rank,
          "flex, optimized_gpu: most tokens of any rank, so that no host asks the others "
          "(none: they do); not Megatron's");
    FIELD(moe_expert_rank_capacity_factor,
          "flex: drop rows of a rank's experts over T K * factor (none)");
    FIELD(recompute_granularity, "selective: the modules below run again in backward");
    FIELD(recompute_modules,
          "moe_act, shared_experts, moe: kept by their input alone (none)");
    FIELD(tensor_model_parallel_size, "TP");
    FIELD(context_parallel_size, "CP");
    FIELD(expert_model_parallel_size, "EP");
    FIELD(expert_tensor_parallel_size, "ETP (default: TP)");
    FIELD(sequence_parallel, "shard the sequence over TP");
    FIELD(overlap_dispatch_backward_with_experts_wgrad,
          "optimized_gpu: experts' weight gradients run beside the dispatch backward");
#undef FIELD
}

template <typename T>
constexpr FieldKind kind_of() {
    if constexpr (std::is_same_v<T, bool>)
        return FieldKind::boolean;
    else if constexpr (std::is_same_v<T, std::int64_t>)
        return FieldKind::integer;
    else if constexpr (std::is_same_v<T, double>)
        return FieldKind::number;
    else if constexpr (std::is_same_v<T, std::string>)
        return FieldKind::text;
    else
        return FieldKind::list;
}

template <typename T>
struct Unwrap {
    using type = T;
    static constexpr bool optional = false;
};
template <typename T>
struct Unwrap<std::optional<T>> {
    using type = T;
    static constexpr bool optional = true;
};

/// What went wrong with one value; the caller knows the field's name.
struct TypeMismatch {
    const char* expected;
};

void read(const json& value, bool& target) {
    if (!value.is_boolean()) throw TypeMismatch{"must be true or false"};
    target = value.get<bool>();
}

void read(const json& value, std::int64_t& target) {
    const bool fits = value.is_number_integer() &&
                      (!value.is_number_unsigned() ||
                       value.get<std::uint64_t>() <= std::uint64_t{INT64_MAX});
    if (!fits) throw TypeMismatch{"must be an integer"};
    target = value.get<std::int64_t>();
}

void read(const json& value, double& target) {
    if (!value.is_number()) throw TypeMismatch{"must be a number"};
    target = value.get<double>();
}

void read(const json& value, std::string& target) {
    if (!value.is_string()) throw TypeMismatch{"must be a string"};
    target = value.get<std::string>();
}

/// A list, or a single element in its place, as Megatron writes both.
template <typename T>
void read(const json& value, std::vector<T>& target) {
    std::vector<T> elements(value.is_array() ? value.size() : 1);
    if (elements.empty()) throw TypeMismatch{"must not be an empty list"};
    for (std::size_t i = 0; i < elements.size(); ++i)
        read(value.is_array() ? value[i] : value, elements[i]);
    target = std::move(elements);
}

template <typename T>
void read(const json& value, std::optional<T>& target) {
    if (value.is_null()) return target.reset();
    read(value, target.emplace());
}

template <typename T>
nlohmann::ordered_json write(const T& value) {
    return value;
}
template <typename T>
nlohmann::ordered_json write(const std::optional<T>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

std::string in_ascii(const json& value) {
    return value.dump(-1, ' ', true, json::error_handler_t::replace);
}

/// Why there is no field of that name.
std::string why_unknown(const std::string& name) {
    if (const std::string& why = why_not_here(name); !why.empty()) return why;
    std::vector<std::string> names;
    for (const FieldInfo& info : config_fields()) names.push_back(info.name);
    const std::string meant = nearest(name, names);
    return "no such config field here (`moe info --fields` lists them)" +
           (meant.empty() ? "" : "; did you mean " + meant + "?");
}

/// Sets a field. @return "", or why it cannot be set
std::string try_to_set(MoEConfig& config, const std::string& name, const json& value) {
    bool known = is_off(name, value);
    std::string why;
    visit_fields(config, [&](const std::string& candidate, auto& member, const char*) {
        if (candidate != name) return;
        known = true;
        try {
            read(value, member);
        } catch (const TypeMismatch& mismatch) {
            why = mismatch.expected;
        }
    });
    return known ? why : why_unknown(name);
}

/// What a file's fields are refused for, together.
class Refusals {
  public:
    void add(const std::string& name, const json& value, const std::string& why) {
        for (auto& [reason, fields] : by_reason_)
            if (reason == why) return fields.push_back({name, in_ascii(value)});
        by_reason_.push_back({why, {{name, in_ascii(value)}}});
    }
    /// "<where>: a = 1, b = 2: <why>; c = 3: <why>", if there is any.
    void raise(const std::string& where) const {
        if (by_reason_.empty()) return;
        std::string text;
        for (const auto& [why, fields] : by_reason_) {
            if (!text.empty()) text += "; ";
            for (std::size_t i = 0; i < std::min(fields.size(), kMost); ++i)
                text += fmt::format("{}{} = {}", i == 0 ? "" : ", ", fields[i].first,
                                    fields[i].second);
            if (fields.size() > kMost)
                text += fmt::format(" and {} more", fields.size() - kMost);
            text += ": " + why;
        }
        throw InputError(one_line(where.empty() ? text : where + ": " + text));
    }

  private:
    static constexpr std::size_t kMost = 12;
    using Field = std::pair<std::string, std::string>;
    std::vector<std::pair<std::string, std::vector<Field>>> by_reason_;
};

}  // namespace

void set_field(MoEConfig& config, const std::string& name, const json& value,
               const std::string& where) {
    if (const std::string why = try_to_set(config, name, value); !why.empty())
        reject(where.empty() ? name : where + ": " + name, in_ascii(value), why);
}

MoEConfig config_from_json(const json& json, const std::string& where) {
    if (!json.is_object())
        reject(where.empty() ? "config" : where, in_ascii(json),
               "must be a JSON object of config fields");
    MoEConfig config;
    Refusals refusals;
    for (const auto& [name, value] : json.items())
        if (const std::string why = try_to_set(config, name, value); !why.empty())
            refusals.add(name, value, why);
    refusals.raise(where);
    return config;
}

nlohmann::ordered_json config_to_json(const MoEConfig& config) {
    nlohmann::ordered_json result;
    visit_fields(config, [&](const char* name, const auto& member, const char*) {
        result[name] = write(member);
    });
    return result;
}

const std::vector<FieldInfo>& config_fields() {
    static const std::vector<FieldInfo> fields = [] {
        std::vector<FieldInfo> list;
        MoEConfig config;
        visit_fields(config, [&](const char* name, auto& member, const char* help) {
            using Member = typename Unwrap<std::decay_t<decltype(member)>>::type;
            list.push_back({name, kind_of<Member>(),
                            Unwrap<std::decay_t<decltype(member)>>::optional, help});
        });
        return list;
    }();
    return fields;
}

}  // namespace moe
