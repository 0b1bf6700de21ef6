// routing_rule.cu: what of the config concerns the routing.

#include "optimized_gpu/routing_rule.h"

#include <algorithm>

#include "core/error.h"

namespace moe::optimized {

void check_router_limits(const MoEConfig& config) {
    if (config.num_experts() > kMostExperts)
        reject("num_moe_experts", config.num_experts(),
               fmt::format("at most {} in optimized_gpu; naive_gpu takes more",
                           kMostExperts));
    if (config.moe_router_topk > kMostChoices)
        reject("moe_router_topk", config.moe_router_topk,
               fmt::format("at most {} in optimized_gpu; naive_gpu takes more",
                           kMostChoices));
}

RoutingRule make_routing_rule(const MoEConfig& config) {
    check_router_limits(config);
    const std::string& name = config.moe_router_score_function;
    RoutingRule rule;
    rule.num_experts = int(config.num_experts());
    rule.topk = int(config.moe_router_topk);
    rule.function = name == "softmax"   ? ScoreFunction::softmax
                    : name == "sigmoid" ? ScoreFunction::sigmoid
                                        : ScoreFunction::sqrtsoftplus;
    MOE_CHECK(rule.function != ScoreFunction::sqrtsoftplus || name == "sqrtsoftplus");
    rule.pre_softmax = config.moe_router_pre_softmax;
    rule.norm_topk_prob = config.moe_router_norm_topk_prob;
    if (config.moe_router_group_topk) {
        rule.num_groups = int(*config.moe_router_num_groups);
        rule.group_topk = int(*config.moe_router_group_topk);
        rule.group_score_topk =
            int(config.moe_router_group_score_topk.value_or(rule.topk / rule.group_topk));
    }
    const double factor = config.moe_router_topk_scaling_factor.value_or(0.0);
    if (factor != 0.0) rule.scaling_factor = static_cast<float>(factor);
    return rule;
}

std::int64_t count_populations(const MoEConfig& config, std::int64_t micro_batch) {
    if (config.aux_loss_coeff("seq_aux_loss") > 0.0)
        return std::max<std::int64_t>(micro_batch, 1);
    return config.moe_z_loss_coeff || config.aux_loss_coeff("aux_loss") > 0.0 ||
           config.aux_loss_coeff("global_aux_loss") > 0.0;
}

}  // namespace moe::optimized
