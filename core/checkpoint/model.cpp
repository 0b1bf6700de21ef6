#include "core/checkpoint/model.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "core/checkpoint/families.h"
#include "core/error.h"
#include "core/known_names.h"

namespace moe::checkpoint {
namespace {

using nlohmann::json;

/// The part that describes the decoder, and the model_type that decides.
struct Decoder {
    json fields;
    std::string type, where;
};

Decoder find_decoder(json fields, std::string where) {
    std::string type = fields.value("model_type", "");
    for (const char* part :
         {"thinker_config", "text_config", "language_config", "llm_config"}) {
        if (!fields.contains(part) || !fields[part].is_object()) continue;
        fields = json(fields[part]);
        where += std::string(": ") + part;
        const json& own = fields.contains("model_type") ? fields["model_type"] : json();
        if (own.is_string() && !own.get<std::string>().empty()) type = own;
    }
    for (const char* ending : {"_text", "_thinker"})
        if (type.ends_with(ending)) type.resize(type.size() - std::string(ending).size());
    return {fields, type, where};
}

std::string activation_of(const Fields& fields) {
    const std::string name =
        fields.text({"mlp_hidden_act", "hidden_act", "activation"}).value_or("silu");
    static const std::map<std::string, std::string> known = {
        {"silu", "silu"},          {"swish", "silu"},
        {"gelu", "gelu"},          {"gelu_pytorch_tanh", "gelu_tanh"},
        {"gelu_new", "gelu_tanh"}, {"quick_gelu", "quick_gelu"},
        {"relu2", "squared_relu"}};
    const auto found = known.find(name);
    if (found == known.end())
        fields.refuse(fields.text({"mlp_hidden_act"}) ? "mlp_hidden_act" : "hidden_act",
                      "the layer has silu, gelu, gelu_pytorch_tanh, quick_gelu, relu2");
    return found->second;
}

void set_sizes(const Fields& fields, const Family& family, MoEConfig& config) {
    const bool nested = fields.any({"ffn_config"}).is_object();  // DBRX
    const Fields ffn = nested ? fields.inside("ffn_config") : fields;
    config.hidden_size = nested ? fields.required_integer({"d_model", "hidden_size"})
                                : fields.required_integer({"hidden_size"});
    config.num_moe_experts = ffn.required_integer(
        {"num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"});
    config.moe_router_topk =
        ffn.required_integer({"num_experts_per_tok", "num_experts_per_token", "moe_topk",
                              "moe_top_k", "moe_k"});
    config.moe_ffn_hidden_size = nested ? ffn.required_integer({"ffn_hidden_size"})
                                        : fields.required_integer({family.ffn});
    std::int64_t shared = 0;
    if (family.shared_width != nullptr)
        shared = fields.integer({family.shared_width}).value_or(0);
    if (family.shared_count != nullptr)
        shared = *config.moe_ffn_hidden_size *
                 fields.integer({family.shared_count}).value_or(0);
    if (shared > 0) config.moe_shared_expert_intermediate_size = shared;
    config.moe_shared_expert_gate = family.shared_gate && shared > 0;
}

/// Scores of another function than the model's own code knows.
void require_function(const Fields& fields, const std::string& function) {
    for (const char* name :
         {"scoring_func", "score_function", "moe_router_activation_func"})
        if (const auto said = fields.text({name}); said && *said != function)
            fields.refuse(name, "must be " + function + ", as in the model's code");
}

void set_scores(const Fields& fields, Scores scores, MoEConfig& config) {
    const auto norm = [&](bool otherwise) {
        return fields.boolean({"norm_topk_prob", "moe_renormalize"}).value_or(otherwise);
    };
    switch (scores) {
        case Scores::softmax: break;
        case Scores::softmax_by_field:
            config.moe_router_pre_softmax = !norm(false);
            break;
        case Scores::softmax_unless: config.moe_router_pre_softmax = !norm(true); break;
        case Scores::softmax_of_all: config.moe_router_pre_softmax = true; break;
        case Scores::sigmoid: break;
        case Scores::sigmoid_by_field:
            config.moe_router_norm_topk_prob = norm(false);
            break;
        case Scores::sigmoid_unless: config.moe_router_norm_topk_prob = norm(true); break;
        case Scores::sqrtsoftplus: return;
    }
    const bool softmax = scores <= Scores::softmax_of_all;
    config.moe_router_score_function = softmax ? "softmax" : "sigmoid";
    if (!softmax) require_function(fields, "sigmoid");
}

/// A group's score is the sum of its two best, in all models that add the bias first.
void set_groups(const Fields& fields, MoEConfig& config) {
    const std::int64_t groups =
        fields.integer({"n_group", "num_expert_group"}).value_or(1);
    if (groups <= 1) return;
    const std::int64_t limit = fields.required_integer({"topk_group"});
    config.moe_router_num_groups = groups;
    config.moe_router_group_topk = limit;
    if (limit > 0 && config.moe_router_topk / limit != 2)
        config.moe_router_group_score_topk = 2;
}

void require_layer(const Fields& fields) {
    const auto count =
        fields.integer({"num_hidden_layers", "n_layers", "n_layer", "num_layers"});
    const std::int64_t layer = fields.layer();
    if (layer < 0 || (count && layer >= *count))
        reject(
            "layer", layer,
            count ? fmt::format("must be from 0 to {}, in {}", *count - 1, fields.where())
                  : "must not be negative");
    if (const std::string why = why_dense(fields); !why.empty())
        reject("layer", layer,
               fmt::format("must be a layer of experts, which it is not: {}: {}",
                           fields.where(), why));
}

const Family& find_family(const Decoder& decoder) {
    const std::string field = decoder.where + ": model_type";
    if (const auto lacking = lacking_models().find(decoder.type);
        lacking != lacking_models().end())
        reject(field, decoder.type, "the layer lacks " + lacking->second);
    const auto found = families().find(decoder.type);
    if (found == families().end())
        reject_unknown(field, decoder.type, known_models(), "known are");
    return found->second;
}

/// What all of them share: SwiGLU without biases, and the fused kernels.
MoEConfig plain_layer() {
    MoEConfig config;
    config.gated_linear_unit = true;
    config.add_bias_linear = false;
    config.moe_token_dispatcher_type = "alltoall";
    config.moe_permute_fusion = config.moe_router_fusion = true;
    config.moe_grouped_gemm = true;
    config.moe_router_load_balancing_type = {"none"};
    return config;
}

Model read_hugging_face(const Decoder& decoder, std::int64_t layer) {
    const Family& family = find_family(decoder);
    const Fields fields(decoder.fields, decoder.where, layer);
    require_layer(fields);
    Model model;
    model.type = decoder.type;
    model.packed = family.packed;
    model.config = plain_layer();
    MoEConfig& config = model.config;
    set_sizes(fields, family, config);
    set_scores(fields, family.scores, config);
    config.activation_func = activation_of(fields);
    if (family.scaling != nullptr) {
        const double factor = fields.number({family.scaling}).value_or(1.0);
        if (factor != 1.0) config.moe_router_topk_scaling_factor = factor;
    }
    config.moe_router_enable_expert_bias = family.expert_bias;
    if (family.groups) set_groups(fields, config);
    if (family.fp32_router) config.moe_router_dtype = "fp32";
    if (family.more != nullptr) family.more(fields, model);
    // Megatron normalises two weights and more; one alone would always be 1
    if (config.moe_router_topk == 1 && config.moe_router_score_function != "softmax" &&
        config.moe_router_norm_topk_prob && !config.moe_apply_probs_on_input)
        reject(decoder.where + ": experts per token", 1,
               "must be above 1 where weights are normalised");
    if (fields.number({"router_aux_loss_coef"}).value_or(0.0) != 0.0)
        model.notes.push_back(
            "router_aux_loss_coef is left out: it weighs another loss than Megatron's");
    return model;
}

/// Ranks are the run's, not the layer's.
Model read_megatron(const json& fields, const std::string& where, std::int64_t layer) {
    if (layer < 0) reject("layer", layer, "must not be negative");
    Model model;
    model.type = "megatron";
    MoEConfig& config = model.config = config_from_json(fields, where);
    config.tensor_model_parallel_size = config.context_parallel_size = 1;
    config.expert_model_parallel_size = 1;
    config.expert_tensor_parallel_size = 1;
    config.sequence_parallel = false;
    if (config.moe_token_dispatcher_type == "flex")
        config = config.with_dispatcher("alltoall");
    return model;
}

}  // namespace

Model read_model(const std::string& config_json, const std::string& where,
                 std::int64_t layer) {
    const json fields = json::parse(config_json, nullptr, false);
    if (!fields.is_object()) reject(where, "no JSON object", "must be a model's config");
    const Decoder decoder = find_decoder(fields, where);
    Model model = decoder.type.empty() && fields.contains("num_moe_experts")
                      ? read_megatron(fields, where, layer)
                      : read_hugging_face(decoder, layer);
    try {
        model.config.finalize();
    } catch (const InputError& error) {
        throw InputError(where + ": " + error.what());
    }
    return model;
}

std::vector<std::string> known_models() {
    std::vector<std::string> names;
    for (const auto& [type, family] : families()) names.push_back(type);
    return names;
}

}  // namespace moe::checkpoint
