#include "optimized_gpu/tier.h"

#include "core/recompute.h"
#include "core/tier.h"
#include "distributed/process_groups.h"
#include "gpu/check.h"
#include "gpu/tensor.h"
#include "optimized_gpu/allgather_dispatcher.h"
#include "optimized_gpu/alltoall_dispatcher.h"
#include "optimized_gpu/experts.h"
#include "optimized_gpu/flex_dispatcher.h"
#include "optimized_gpu/latent_projection.h"
#include "optimized_gpu/local_dispatcher.h"
#include "optimized_gpu/routing_rule.h"
#include "optimized_gpu/row_map.h"
#include "optimized_gpu/shared_experts.h"
#include "optimized_gpu/topk_router.h"

namespace moe::optimized {
namespace {

/// What the kernels need of a GPU: cp.async, and products in bf16.
std::string missing_capability() {
    if (gpu::is_emulated()) return "";
    cudaDeviceProp device;
    gpu::check(cudaGetDeviceProperties(&device, 0), "device");
    if (device.major >= 8) return "";
    return fmt::format(
        "needs a GPU of compute capability 8.0 or newer (this one has {}.{}); naive_gpu "
        "runs on any",
        device.major, device.minor);
}

/// The groups given, or those of a layer on one rank.
GroupsPtr or_single(const GroupsPtr& groups) {
    return groups != nullptr ? groups : distributed::single_rank_groups();
}

/// Flex brings a row with all choices of its token, on every shard.
void check_flex_slots(const MoEConfig& config) {
    const std::int64_t shards = *config.expert_tensor_parallel_size;
    const bool exchanges = config.expert_model_parallel_size * shards > 1;
    if (exchanges && config.moe_token_dispatcher_type == "flex" &&
        config.moe_router_topk * shards > kMaxTopk)
        reject("moe_router_topk", config.moe_router_topk,
               fmt::format("at most {} in optimized_gpu with the flex dispatcher and "
                           "expert_tensor_parallel_size {}; naive_gpu takes any number",
                           kMaxTopk / shards, shards));
}

class OptimizedGpu : public Tier {
  public:
    std::string name() const override { return "optimized_gpu"; }
    std::string missing() const override {
        const std::string missing = gpu::missing_device();
        return missing.empty() ? missing_capability() : missing;
    }
    std::string device() const override { return gpu::device_name(); }
    bool is_emulated() const override { return gpu::is_emulated(); }
    MemorySpace memory_space() const override { return MemorySpace::device; }
    void check(const MoEConfig& config) const override {
        check_router_limits(config);
        check_flex_slots(config);
    }
    /// Products of experts are bf16's on tensor cores; rows may be either.
    std::vector<DType> dtypes(ComponentKind kind) const override {
        if (kind == ComponentKind::router) return {DType::f64, DType::f32, DType::bf16};
        if (kind == ComponentKind::dispatcher) return {DType::f32, DType::bf16};
        return {DType::bf16};
    }
    /// Tokens once, and h: rows are gathered again, and act(h) is taken again.
    /// Source: SonicMoE, arXiv 2512.14080.
    std::vector<KeptTensor> kept(const MoEConfig& config, DType,
                                 DType dtype) const override {
        const int halves = config.gated_linear_unit ? 2 : 1;
        const DType h = config.activation_func_clamp_value ? DType::f32 : dtype;
        // Room for all choices, whether dropped or not, unless experts are padded
        const std::string rows = config.moe_pad_expert_input_to_capacity ? "N" : "TK";
        std::vector<KeptTensor> kept = {{"tokens", 1, "TH", dtype}};
        if (recomputes(config, "moe")) return kept;
        kept.push_back({"h", halves, rows + "F", h});
        if (!config.moe_permute_fusion) kept.push_back({"rows", 1, rows + "l", dtype});
        if (config.moe_latent_size) {
            kept.push_back({"latent output", 1, "Tl", dtype});
            if (config.moe_permute_fusion)
                kept.push_back({"latent tokens", 1, "Tl", dtype});
        }
        if (config.moe_apply_probs_on_input)
            kept.push_back({"rows weighted", 1, rows + "l", dtype});
        if (config.shared_ffn() == 0 || recomputes(config, "shared_experts")) return kept;
        kept.push_back({"shared h", halves, "TFs", h});
        if (config.moe_shared_expert_gate)
            kept.push_back({"shared output", 1, "TH", dtype});
        return kept;
    }

    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters,
                                        const GroupsPtr& groups) const override {
        return std::make_unique<TopKRouter>(config, dtype, parameters, groups);
    }
    std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype, const GroupsPtr& groups) const override {
        if (groups == nullptr || groups->tp_ep->size() == 1)
            return std::make_unique<LocalDispatcher>(config, dtype);
        if (config.moe_token_dispatcher_type == "allgather")
            return std::make_unique<AllGatherDispatcher>(config, dtype, groups);
        if (config.moe_token_dispatcher_type == "flex")
            return std::make_unique<FlexDispatcher>(config, dtype, groups);
        return std::make_unique<AlltoAllDispatcher>(config, dtype, groups);
    }
    std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                          const TensorMap& parameters) const override {
        MOE_CHECK(dtype == DType::bf16);
        return std::make_unique<ExpertMLPs>(config, parameters);
    }
    std::unique_ptr<LatentProjection> make_latent_projection(
        LatentProj which, DType dtype, const TensorMap& parameters) const override {
        MOE_CHECK(dtype == DType::bf16);
        return std::make_unique<LatentLinear>(which, parameters);
    }
    std::unique_ptr<SharedExperts> make_shared_experts(
        const MoEConfig& config, DType dtype, const TensorMap& parameters,
        const GroupsPtr& groups) const override {
        MOE_CHECK(dtype == DType::bf16);
        return std::make_unique<SharedExpertMLP>(config, parameters, or_single(groups));
    }
};

}  // namespace

void register_optimized_gpu() {
    gpu::register_device_memory();
    register_tier(std::make_unique<OptimizedGpu>());
}

}  // namespace moe::optimized
