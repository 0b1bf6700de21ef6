#include "core/glu_interleaving.h"

#include "core/transfer.h"

namespace moe {
namespace {

/// b of that tensor's rows; none where gates are followed by ups, or there are none.
std::optional<std::int64_t> block_of(const MoEConfig& config, const std::string& name) {
    if (!config.gated_linear_unit) return std::nullopt;
    if (name.starts_with("experts.linear_fc1."))
        return config.moe_mlp_glu_interleave_size;
    if (name.starts_with("shared_experts.linear_fc1."))
        return config.moe_shared_expert_glu_interleave_size;
    return std::nullopt;
}

/// (…, F / b, 2, b, …) as (…, 2, F / b, b, …), or the other way round.
TensorMap reorder(const MoEConfig& config, TensorMap tensors, bool restore) {
    for (auto& [name, tensor] : tensors) {
        const auto block = block_of(config, name);
        if (!block) continue;
        const bool of_experts =
            name.starts_with("experts.");  // (L, 2F, …), not (2F_s, …)
        const std::int64_t experts = of_experts ? tensor.dim(0) : 1;
        const std::int64_t blocks = tensor.dim(of_experts ? 1 : 0) / 2 / *block;
        tensor = restore ? swap_blocks(tensor, experts, 2, blocks)
                         : swap_blocks(tensor, experts, blocks, 2);
    }
    return tensors;
}

}  // namespace

bool has_glu_interleaving(const MoEConfig& config) {
    return block_of(config, "experts.linear_fc1.weight") ||
           block_of(config, "shared_experts.linear_fc1.weight");
}

TensorMap remove_glu_interleaving(const MoEConfig& config, const TensorMap& tensors) {
    return reorder(config, tensors, false);
}

TensorMap restore_glu_interleaving(const MoEConfig& config, const TensorMap& tensors) {
    return reorder(config, tensors, true);
}

}  // namespace moe
