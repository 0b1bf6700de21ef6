#include "reference_cpu/tier.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/recompute.h"
#include "core/tier.h"
#include "distributed/process_groups.h"
#include "reference_cpu/allgather_dispatcher.h"
#include "reference_cpu/alltoall_dispatcher.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/experts.h"
#include "reference_cpu/flex_dispatcher.h"
#include "reference_cpu/latent_projection.h"
#include "reference_cpu/shared_experts.h"
#include "reference_cpu/topk_router.h"

namespace moe::cpu {
namespace {

/// The groups given, or those of a layer on one rank.
GroupsPtr or_single(const GroupsPtr& groups) {
    return groups != nullptr ? groups : distributed::single_rank_groups();
}

/// A component in the dtype asked for, as its interface.
template <typename Interface, template <typename> class Component, typename... Arguments>
std::unique_ptr<Interface> make(DType dtype, const Arguments&... arguments) {
    if (dtype == DType::f64) return std::make_unique<Component<double>>(arguments...);
    MOE_CHECK(dtype == DType::f32);
    return std::make_unique<Component<float>>(arguments...);
}

class ReferenceCpu : public Tier {
  public:
    std::string name() const override { return "reference_cpu"; }
    std::string device() const override {
        int threads = 1;
#ifdef _OPENMP
        threads = omp_get_max_threads();
#endif
        return fmt::format("CPU, {} thread{}, Eigen {}.{}.{} ({})", threads,
                           threads == 1 ? "" : "s", EIGEN_WORLD_VERSION,
                           EIGEN_MAJOR_VERSION, EIGEN_MINOR_VERSION,
                           Eigen::SimdInstructionSetsInUse());
    }
    /// A router of bf16, to hold those of others against, rounds what fp64 computes.
    std::vector<DType> dtypes(ComponentKind kind) const override {
        if (kind == ComponentKind::router) return {DType::f64, DType::f32, DType::bf16};
        return {DType::f64, DType::f32};
    }
    /// All of it once more for every expert that a token visits: nothing is computed
    /// twice but recompute_modules.
    std::vector<KeptTensor> kept(const MoEConfig& config, DType router,
                                 DType dtype) const override {
        const int halves = config.gated_linear_unit ? 2 : 1;
        const bool shared = config.shared_ffn() > 0, whole = recomputes(config, "moe");
        std::vector<KeptTensor> kept = {{"tokens", 1, "TH", router}};
        if (router != dtype && (whole || shared || config.moe_latent_size))
            kept.push_back({"tokens", 1, "TH", dtype});
        if (whole) return kept;
        kept.push_back({"rows", 1, "Nl", dtype});
        kept.push_back({"h", halves, "NF", dtype});
        if (!recomputes(config, "moe_act")) kept.push_back({"act(h) p", 1, "NF", dtype});
        if (config.moe_apply_probs_on_input)
            kept.push_back({"rows weighted", 1, "Nl", dtype});
        if (config.moe_latent_size) kept.push_back({"latent output", 1, "Tl", dtype});
        if (!shared || recomputes(config, "shared_experts")) return kept;
        kept.push_back({"shared h", halves, "TFs", dtype});
        kept.push_back({"shared act(h)", 1, "TFs", dtype});
        kept.push_back({"shared output", 1, "TH", dtype});
        return kept;
    }

    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters,
                                        const GroupsPtr& groups) const override {
        if (dtype == DType::bf16)
            return std::make_unique<TopKRouter<double>>(config, parameters,
                                                        or_single(groups), dtype);
        return make<Router, TopKRouter>(dtype, config, parameters, or_single(groups));
    }
    std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype, const GroupsPtr& groups) const override {
        const GroupsPtr mine = or_single(groups);
        if (config.moe_token_dispatcher_type == "allgather")
            return make<TokenDispatcher, AllGatherDispatcher>(dtype, config, mine);
        if (config.moe_token_dispatcher_type == "flex")
            return make<TokenDispatcher, FlexDispatcher>(dtype, config, mine);
        return make<TokenDispatcher, AlltoAllDispatcher>(dtype, config, mine);
    }
    std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                          const TensorMap& parameters) const override {
        return make<Experts, ExpertMLPs>(dtype, config, parameters);
    }
    std::unique_ptr<LatentProjection> make_latent_projection(
        LatentProj which, DType dtype, const TensorMap& parameters) const override {
        return make<LatentProjection, LatentLinear>(dtype, which, parameters);
    }
    std::unique_ptr<SharedExperts> make_shared_experts(
        const MoEConfig& config, DType dtype, const TensorMap& parameters,
        const GroupsPtr& groups) const override {
        return make<SharedExperts, SharedExpertMLP>(dtype, config, parameters,
                                                    or_single(groups));
    }
};

}  // namespace

void register_reference_cpu() {
    register_tier(std::make_unique<ReferenceCpu>());
}

}  // namespace moe::cpu
