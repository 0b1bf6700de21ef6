// losses.cpp: whose tokens the losses look at.

#include "cli/ranks/losses.h"

#include <algorithm>

namespace moe {

std::string losses_of(const MoEConfig& config) {
    std::string names;
    const auto add = [&](const std::string& name) {
        names += (names.empty() ? "" : ", ") + name;
    };
    for (const std::string& type : config.moe_router_load_balancing_type)
        if (type.ends_with("aux_loss") && config.aux_loss_coeff(type) != 0.0) add(type);
    if (config.moe_z_loss_coeff.value_or(0.0) != 0.0) add("z_loss");
    return names;
}

bool has_losses_of_replica(const MoEConfig& config) {
    return config.aux_loss_coeff("aux_loss") != 0.0 ||
           config.aux_loss_coeff("seq_aux_loss") != 0.0 ||
           config.moe_z_loss_coeff.value_or(0.0) != 0.0;
}

MoEConfig without_losses(MoEConfig config) {
    std::fill(config.moe_aux_loss_coeff.begin(), config.moe_aux_loss_coeff.end(), 0.0);
    config.moe_z_loss_coeff.reset();
    return config;
}

bool depends_on_rank(const MoEConfig& config) {
    return config.moe_expert_capacity_factor.has_value() || config.is_sinkhorn();
}

std::string why_no_losses(const MoEConfig& config,
                          const distributed::ParallelSizes& sizes) {
    if (losses_of(config).empty()) return "";
    if (depends_on_rank(config) && sizes.tensor * sizes.context > 1)
        return "one rank takes each rank's tokens in turn (capacity and sinkhorn look at "
               "them together), and losses look at whole sequences";
    if (config.has_random_logits() && sizes.data() > 1 && has_losses_of_replica(config))
        return "random logits are drawn for all replicas together, and losses look at "
               "each by itself";
    return "";
}

}  // namespace moe
