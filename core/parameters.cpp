#include "core/parameters.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "core/given_experts.h"
#include "core/rng.h"

namespace moe {
namespace {

/// K different experts for each token id, all equally likely. (V, K) i64
Tensor random_tid2eid(const MoEConfig& config, const Rng& rng) {
    const std::int64_t V = *config.moe_router_hash_vocab_size;
    const std::int64_t E = config.num_experts(), K = config.moe_router_topk;
    Tensor table = Tensor::empty({V, K}, DType::i64);
    std::vector<std::int64_t> experts(E);
    std::iota(experts.begin(), experts.end(), 0);
    for (std::int64_t v = 0; v < V; ++v)
        for (std::int64_t k = 0; k < K; ++k) {
            std::swap(experts[k], experts[k + rng.below(v * K + k, E - k)]);
            table.data<std::int64_t>()[v * K + k] = experts[k];
        }
    return table;
}

}  // namespace

std::map<std::string, Shape> parameter_shapes(const MoEConfig& c) {
    const std::int64_t E = c.num_experts(), L = c.num_local_experts();
    const std::int64_t H = c.hidden_size, latent = c.latent_size(), F = c.local_ffn();
    std::map<std::string, Shape> shapes = {
        {"router.weight", {E, H}},
        {"experts.linear_fc1.weight", {L, c.fc1_rows(F), latent}},
        {"experts.linear_fc2.weight", {L, latent, F}},
    };
    if (c.moe_router_enable_expert_bias) shapes["router.expert_bias"] = {E};
    if (c.is_quantile_balancing()) shapes["router.qb_beta"] = {E};
    if (c.moe_router_hash_vocab_size)
        shapes[kTid2Eid] = {*c.moe_router_hash_vocab_size, c.moe_router_topk};
    if (c.add_bias_linear) {
        shapes["router.bias"] = {E};
        shapes["experts.linear_fc1.bias"] = {L, c.fc1_rows(F)};
        shapes["experts.linear_fc2.bias"] = {L, latent};
    }
    if (c.moe_latent_size) {
        shapes["fc1_latent_proj.weight"] = {latent, H};
        shapes["fc2_latent_proj.weight"] = {H, latent};
        if (c.add_bias_linear) {
            shapes["fc1_latent_proj.bias"] = {latent};
            shapes["fc2_latent_proj.bias"] = {H};
        }
    }
    if (const std::int64_t shared = c.local_shared_ffn(); shared > 0) {
        shapes["shared_experts.linear_fc1.weight"] = {c.fc1_rows(shared), H};
        shapes["shared_experts.linear_fc2.weight"] = {H, shared};
        if (c.moe_shared_expert_gate) shapes["shared_experts.gate_weight"] = {1, H};
    }
    return shapes;
}

bool is_buffer(const std::string& parameter) {
    return parameter == "router.expert_bias" || parameter == "router.qb_beta" ||
           parameter == kTid2Eid;
}

void check_parameters(const MoEConfig& config, const TensorMap& parameters,
                      const std::string& where) {
    const std::string prefix = where.empty() ? "" : where + ": ";
    for (const auto& [name, shape] : parameter_shapes(config)) {
        const auto found = parameters.find(name);
        if (found == parameters.end()) {
            if (is_buffer(name) && name != kTid2Eid) continue;
            reject(prefix + name, "absent", "required, with shape " + to_string(shape));
        }
        if (found->second.shape() != shape)
            reject(prefix + name, "shape " + to_string(found->second.shape()),
                   "must have shape " + to_string(shape));
        if (name == kTid2Eid) {
            read_experts(prefix + name, found->second, shape[0], config);
            continue;
        }
        if (!is_floating(found->second.dtype()))
            reject(prefix + name, to_string(found->second.dtype()),
                   "must be fp64, fp32 or bf16");
    }
}

TensorMap random_parameters(const MoEConfig& config, std::uint64_t seed) {
    TensorMap parameters;
    std::uint64_t stream = 0;
    for (const auto& [name, shape] : parameter_shapes(config)) {
        const Rng rng(seed, ++stream);
        if (name == kTid2Eid) {
            parameters[name] = random_tid2eid(config, rng);
            continue;
        }
        const double deviation = is_buffer(name) ? 0.01
                                 : name.ends_with("bias")
                                     ? 0.1
                                     : 1.0 / std::sqrt(double(shape.back()));
        Tensor tensor = Tensor::empty(shape, DType::f32);
        float* values = tensor.data<float>();
        const std::int64_t count = tensor.numel();
#pragma omp parallel for schedule(static)
        for (std::int64_t i = 0; i < count; ++i)
            values[i] = static_cast<float>(
                BFloat16(static_cast<float>(deviation * rng.normal(i))));
        parameters[name] = tensor;
    }
    return parameters;
}

}  // namespace moe
