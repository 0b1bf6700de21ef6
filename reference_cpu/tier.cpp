#include "reference_cpu/tier.h"

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/tier.h"
#include "reference_cpu/alltoall_dispatcher.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/experts.h"
#include "reference_cpu/shared_experts.h"
#include "reference_cpu/topk_router.h"

namespace moe::cpu {
namespace {

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
    std::vector<DType> dtypes() const override {
        return {DType::f64, DType::f32};
    }

    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters) const override {
        return make<Router, TopKRouter>(dtype, config, parameters);
    }
    std::unique_ptr<TokenDispatcher> make_dispatcher(const MoEConfig&,
                                                     DType dtype) const override {
        return make<TokenDispatcher, AlltoAllDispatcher>(dtype);
    }
    std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                          const TensorMap& parameters) const override {
        return make<Experts, GroupedMLP>(dtype, config, parameters);
    }
    std::unique_ptr<SharedExperts> make_shared_experts(
        const MoEConfig& config, DType dtype,
        const TensorMap& parameters) const override {
        return make<SharedExperts, SharedExpertMLP>(dtype, config, parameters);
    }
};

}  // namespace

void register_reference_cpu() {
    register_tier(std::make_unique<ReferenceCpu>());
}

}  // namespace moe::cpu
