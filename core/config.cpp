#include "core/config.h"

#include <algorithm>
#include <cmath>

#include "core/config_rules.h"
#include "core/error.h"
#include "core/recompute.h"

namespace moe {

void MoEConfig::finalize() {
    require_positive("hidden_size", hidden_size);
    if (!ffn_hidden_size) ffn_hidden_size = 4 * hidden_size;
    if (!moe_ffn_hidden_size) moe_ffn_hidden_size = ffn_hidden_size;
    const bool etp_given = expert_tensor_parallel_size.has_value();
    if (!etp_given) expert_tensor_parallel_size = tensor_model_parallel_size;
    if (moe_router_padding_for_fp8) moe_router_padding_for_quantization = true;
    // Megatron reads a negative factor as "no capacity".
    if (moe_expert_capacity_factor && *moe_expert_capacity_factor < 0.0)
        moe_expert_capacity_factor.reset();

    check_rules(*this, etp_given);
}

std::vector<std::string> MoEConfig::warnings() const {
    std::vector<std::string> lines;
    if (num_experts() >= 32 && !moe_router_dtype)
        lines.push_back(
            "moe_router_dtype is not set: with 32 or more experts Megatron advises fp32 "
            "or fp64 routing");
    if (moe_router_padding_for_fp8)
        lines.push_back(
            "moe_router_padding_for_fp8 is deprecated: use "
            "moe_router_padding_for_quantization");
    if (moe_enable_deepep)
        lines.push_back(
            "moe_enable_deepep is deprecated: use moe_flex_dispatcher_backend deepep");
    // Megatron's own configs name core_attn there, which is no part of this layer
    MoEConfig selective = *this;
    selective.recompute_granularity = "selective";
    if (!recompute_granularity && !recomputed_in_words(selective).empty())
        lines.push_back(
            "recompute_modules does nothing without recompute_granularity selective");
    if (moe_token_dispatcher_type == "flex" && moe_flex_dispatcher_backend != "deepep")
        lines.push_back("moe_flex_dispatcher_backend " + moe_flex_dispatcher_backend +
                        " means Megatron's rules for it: rows travel as with deepep, by "
                        "this project's own kernels");
    return lines;
}

double MoEConfig::aux_loss_coeff(const std::string& type) const {
    const auto& types = moe_router_load_balancing_type;
    const auto position = std::find(types.begin(), types.end(), type);
    return position == types.end() ? 0.0 : moe_aux_loss_coeff[position - types.begin()];
}

MoEConfig MoEConfig::with_dispatcher(const std::string& type) const {
    MoEConfig config = *this;
    config.moe_token_dispatcher_type = type;
    if (type == "flex") return config;
    config.moe_flex_dispatcher_backend = MoEConfig{}.moe_flex_dispatcher_backend;
    config.moe_enable_deepep = false;
    config.moe_flex_peer_heap_bytes.reset();
    config.moe_flex_max_tokens_per_rank.reset();
    config.moe_expert_rank_capacity_factor.reset();
    return config;
}

bool MoEConfig::is_quantile_balancing() const {
    return moe_router_load_balancing_type ==
           std::vector<std::string>{"quantile_balancing"};
}

bool MoEConfig::is_sinkhorn() const {
    return moe_router_load_balancing_type == std::vector<std::string>{"sinkhorn"};
}

std::int64_t get_capacity(const MoEConfig& config, std::int64_t num_tokens) {
    const double even_share =
        static_cast<double>(num_tokens * config.moe_router_topk) / config.num_experts();
    const double capacity = std::ceil(even_share * *config.moe_expert_capacity_factor);
    return static_cast<std::int64_t>(std::min(capacity, 0x1p62));
}

std::int64_t expert_rank_capacity(const MoEConfig& config, std::int64_t max_tokens) {
    const bool has_shards = config.moe_flex_dispatcher_backend == "ncclep";
    const std::int64_t choices =
        config.moe_router_topk * (has_shards ? *config.expert_tensor_parallel_size : 1);
    const double rows =
        double(max_tokens * choices) * *config.moe_expert_rank_capacity_factor;
    return std::int64_t(std::floor(rows));
}

std::int64_t get_align_size_for_quantization(const MoEConfig& config) {
    return config.fp8_recipe == "mxfp8" ? 32 : 16;
}

}  // namespace moe
