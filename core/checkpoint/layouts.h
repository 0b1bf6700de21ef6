/// @file
/// How a layer is written: the names and the order of the tensors of one model's files.
#pragma once

#include <string>
#include <vector>

#include "core/checkpoint/model.h"
#include "core/tensor.h"

namespace moe::checkpoint {

/// Names within a layer. "" for what the layout has no name for; "{}" is the expert.
struct Layout {
    std::string name;              ///< of the model whose it is: "mixtral"
    bool stacked = false;          ///< DBRX's (E F, H)
    Packed packed = Packed::rows;  ///< where experts are in one tensor
    std::string router, router_bias, expert_bias, tid2eid;
    std::string fc1, gate, up, fc2;  ///< FC1 whole, or in two parts
    std::string fc1_bias, fc2_bias;
    std::string shared_fc1, shared_gate, shared_up, shared_fc2, shared_gate_weight;
    std::string latent;  ///< in front of fc1_latent_proj.weight
    bool per_expert() const { return fc2.find("{}") != fc2.npos; }
};

const std::vector<Layout>& layouts();
std::vector<std::string> layout_names();
/// InputError naming `field` for a name that is none.
const Layout& find_layout(const std::string& field, const std::string& name);

/// A layer's tensors under the layout's names; of the same memory where nothing moves.
/// InputError where the layout has no name for one of them.
/// @param parameters  as Layer has them
TensorMap in_layout(const Layout& layout, const MoEConfig& config,
                    const TensorMap& parameters);

/// What FC1's packed tensor says in its file's metadata: "rows", "columns",
/// "interleaved"; "" for experts that are not packed.
std::string packed_in_words(const Layout& layout);

}  // namespace moe::checkpoint
