/// @file
/// The layer's parameters: their names (Megatron's, those of the golden files), shapes,
/// and seeded values.
#pragma once

#include <cstdint>

#include "core/config.h"
#include "core/tensor.h"

namespace moe {

/// Name and shape of every parameter that one rank of a layer of this config has: L = E /
/// EP experts, F / ETP and F_s / TP wide. All are trained but the buffers, see
/// is_buffer().
///
/// | name | shape |
/// |---|---|
/// | router.weight | (E, H) |
/// | router.bias, router.expert_bias, router.qb_beta | (E) |
/// | router.tid2eid | (V, K) integers, with moe_router_hash_vocab_size |
/// | fc1_latent_proj.weight, .bias | (ℓ, H), (ℓ), with moe_latent_size |
/// | fc2_latent_proj.weight, .bias | (H, ℓ), (H), with moe_latent_size |
/// | experts.linear_fc1.weight, .bias | (L, 2F or F, ℓ), (L, 2F or F): gate, then up |
/// | experts.linear_fc2.weight, .bias | (L, ℓ, F), (L, ℓ) |
/// | shared_experts.linear_fc1.weight | (2F_s or F_s, H) |
/// | shared_experts.linear_fc2.weight | (H, F_s) |
/// | shared_experts.gate_weight | (1, H) |
///
/// Gates and ups in turn, in blocks: see core/glu_interleaving.h.
std::map<std::string, Shape> parameter_shapes(const MoEConfig& config);

/// True for "router.expert_bias", "router.qb_beta" and "router.tid2eid", which have no
/// gradient.
bool is_buffer(const std::string& parameter);

/// Throws InputError unless `parameters` holds exactly these shapes; tensors of other
/// names are ignored. A missing buffer is allowed: it starts at zero; but for
/// "router.tid2eid", which must give every token id K different experts.
/// @param where  named in errors before the tensor, e.g. the file; may be empty
void check_parameters(const MoEConfig& config, const TensorMap& parameters,
                      const std::string& where);

/// Seeded fp32 values, all exactly representable in bf16, so that every dtype starts from
/// the same numbers: weights N(0, 1 / fan-in), biases N(0, 0.1), buffers N(0, 0.01).
/// "router.tid2eid" is i64, each of its rows a draw of K experts.
TensorMap random_parameters(const MoEConfig& config, std::uint64_t seed);

}  // namespace moe
