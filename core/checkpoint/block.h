/// @file
/// Which tensors of a checkpoint are an MoE block's, and what each of them is.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "core/checkpoint/source.h"

namespace moe::checkpoint {

/// What a tensor is. FC1 is whole (gates and ups in one tensor) or in two parts.
enum class Role {
    router_weight,
    router_bias,
    expert_bias,
    qb_beta,
    tid2eid,
    fc1,
    fc1_gate,
    fc1_up,
    fc2,
    fc1_bias,
    fc2_bias,
    shared_fc1,
    shared_gate,
    shared_up,
    shared_fc2,
    shared_gate_weight,
    fc1_latent,
    fc1_latent_bias,
    fc2_latent,
    fc2_latent_bias,
};

/// A name within a block, read.
struct Part {
    Role role = Role::router_weight;
    std::int64_t expert = -1;  ///< -1: not of one expert
    bool stacked = false;      ///< DBRX's (E F, H)
    std::string last;          ///< "gate_proj": for words about the layout
};

/// What `name` is in an MoE block, its name there or with the block's own in front:
/// "mlp.experts.3.w1.weight". False for a name that no block has.
bool read_name(const std::string& name, Part& part);

/// Tensors of one role: one, or one for each expert.
struct Tensors {
    std::vector<std::string> names;
    bool per_expert = false, stacked = false;
    std::string last;
};

struct Block {
    std::string prefix;  ///< "model.layers.3."
    std::map<Role, Tensors> parts;
    bool has(Role role) const { return parts.contains(role); }
};

/// The MoE block of a layer. InputError for a layer that is not there or has no router, a
/// tensor of its block that is no part of one, a quantised one, and an expert that is
/// absent.
/// @param place    the folder, for errors; "" for tensors in memory, which may also be
/// one
///                 block's, named without a layer
/// @param experts  E
Block find_block(const Source& source, const std::string& place, std::int64_t layer,
                 std::int64_t experts);

/// The layer whose router's weight has this name; nothing for another name.
std::optional<std::int64_t> layer_of_router(const std::string& name);

}  // namespace moe::checkpoint
