#include "core/checkpoint/layer.h"

#include <algorithm>

#include "core/checkpoint/experts.h"
#include "core/checkpoint/read_layer.h"
#include "core/error.h"
#include "core/given_experts.h"
#include "core/parameters.h"
#include "core/transfer.h"

namespace moe::checkpoint {
namespace {

void read_expert_bias(Taker& taker, const Model& model, Layer& layer) {
    const std::int64_t E = model.config.num_experts();
    const std::string& name = taker.single(Role::expert_bias, "expert bias");
    const Tensor bias = taker.take(name, {E}, {1, E}).reshaped({E});  // ERNIE's is (1, E)
    if (model.config.moe_router_enable_expert_bias) {
        layer.parameters["router.expert_bias"] = bias;
        return;
    }
    if (!model.expert_bias_must_be_zero)
        reject(taker.source().where(name), "unexpected",
               "the model's layer has no expert bias");
    const std::vector<double> values = to_doubles(bias);
    if (std::any_of(values.begin(), values.end(), [](double v) { return v != 0.0; }))
        reject(taker.source().where(name), "not zero",
               "the layer lacks an expert bias beside softmax scores");
    layer.notes.push_back("the expert bias is zero, and left out");
}

void read_router(Taker& taker, const Model& model, Layer& layer) {
    const MoEConfig& c = model.config;
    const std::int64_t E = c.num_experts();
    TensorMap& parameters = layer.parameters;
    parameters["router.weight"] =
        taker.take(taker.single(Role::router_weight, "router"), {E, c.hidden_size});
    if (c.add_bias_linear)
        parameters["router.bias"] =
            taker.take(taker.single(Role::router_bias, "router bias"), {E});
    if (c.moe_router_enable_expert_bias || taker.has(Role::expert_bias))
        read_expert_bias(taker, model, layer);
    if (c.is_quantile_balancing() && taker.has(Role::qb_beta))
        parameters["router.qb_beta"] =
            taker.take(taker.single(Role::qb_beta, "qb_beta"), {E});
    if (c.moe_router_hash_vocab_size)
        parameters[kTid2Eid] =
            taker.take_integers(taker.single(Role::tid2eid, "table tid2eid"),
                                {*c.moe_router_hash_vocab_size, c.moe_router_topk});
}

/// Gates, then ups: (2 F_s, H).
Tensor read_shared_halves(Taker& taker, std::int64_t Fs, std::int64_t H) {
    const std::string& gate_name =
        taker.single(Role::shared_gate, "gate projection of the shared expert");
    const std::string& up_name =
        taker.single(Role::shared_up, "up projection of the shared expert");
    const Tensor gate = taker.take(gate_name, {Fs, H}), up = taker.take(up_name, {Fs, H});
    if (gate.dtype() != up.dtype())
        reject(taker.source().where(up_name), to_string(up.dtype()),
               "must be " + to_string(gate.dtype()) + " as the gate's");
    Tensor both = taker.make({2 * Fs, H}, gate.dtype());
    std::copy_n(bytes_at(gate, 0), gate.size_bytes(), bytes_at(both, 0));
    std::copy_n(bytes_at(up, 0), up.size_bytes(), bytes_at(both, Fs * H));
    return both;
}

void read_shared(Taker& taker, const MoEConfig& c, TensorMap& parameters) {
    const std::int64_t Fs = c.shared_ffn(), H = c.hidden_size;
    if (Fs == 0) return;
    const auto take = [&](Role role, const char* what, const Shape& shape) {
        return taker.take(taker.single(role, what), shape);
    };
    const char* const up = "up projection of the shared expert";
    parameters["shared_experts.linear_fc1.weight"] =
        taker.has(Role::shared_fc1) ? take(Role::shared_fc1, up, {c.fc1_rows(Fs), H})
        : !c.gated_linear_unit      ? take(Role::shared_up, up, {Fs, H})
                                    : read_shared_halves(taker, Fs, H);
    parameters["shared_experts.linear_fc2.weight"] =
        take(Role::shared_fc2, "down projection of the shared expert", {H, Fs});
    if (c.moe_shared_expert_gate)
        parameters["shared_experts.gate_weight"] =
            take(Role::shared_gate_weight, "gate of the shared expert", {1, H});
}

void read_latent(Taker& taker, const MoEConfig& c, TensorMap& parameters) {
    if (!c.moe_latent_size) return;
    const std::int64_t l = *c.moe_latent_size, H = c.hidden_size;
    const auto read = [&](Role role, const std::string& name, const Shape& shape) {
        parameters[name] = taker.take(taker.single(role, name), shape);
    };
    read(Role::fc1_latent, "fc1_latent_proj.weight", {l, H});
    read(Role::fc2_latent, "fc2_latent_proj.weight", {H, l});
    if (!c.add_bias_linear) return;
    read(Role::fc1_latent_bias, "fc1_latent_proj.bias", {l});
    read(Role::fc2_latent_bias, "fc2_latent_proj.bias", {H});
}

}  // namespace

Layer read_layer(const Source& source, const Block& block, const Model& model,
                 const Options& options) {
    Taker taker(source, block);
    Layer layer;
    layer.config = model.config;
    layer.notes = model.notes;
    read_router(taker, model, layer);
    layer.layout = read_experts(taker, model, options, layer);
    read_shared(taker, model.config, layer.parameters);
    read_latent(taker, model.config, layer.parameters);
    taker.require_nothing_left();
    layer.copied = taker.copied();
    layer.names = taker.names();
    const std::string& router = block.parts.at(Role::router_weight).names[0];
    check_parameters(layer.config, layer.parameters,
                     "the block of " + source.where(router));
    return layer;
}

Layer load_layer(const std::string& dir, std::int64_t layer, const Options& options) {
    const Source source = Source::folder(dir);
    const std::string path = dir + "/config.json";
    const Model model = read_model(read_text_file(path), path, layer);
    return read_layer(source, find_block(source, dir, layer, model.config.num_experts()),
                      model, options);
}

Layer layer_from_tensors(const std::string& config_json, const TensorMap& tensors,
                         std::int64_t layer, const Options& options) {
    const Model model = read_model(config_json, "config.json", layer);
    const Source source = Source::memory(tensors);
    return read_layer(source, find_block(source, "", layer, model.config.num_experts()),
                      model, options);
}

}  // namespace moe::checkpoint
