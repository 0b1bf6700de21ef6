/// @file
/// A tier for tests: the reference under another name, to be spoilt in places.
#pragma once

#include "core/tier.h"

namespace moe::test {

/// Hands out the reference's components in fp32.
class StandIn : public Tier {
  public:
    explicit StandIn(std::string name) : name_(std::move(name)) {}
    std::string name() const override { return name_; }
    std::string device() const override { return "CPU"; }
    std::vector<DType> dtypes(ComponentKind) const override { return {DType::f32}; }
    std::vector<KeptTensor> kept(const MoEConfig& config, DType router,
                                 DType dtype) const override {
        return good().kept(config, router, dtype);
    }
    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters,
                                        const GroupsPtr& groups) const override {
        return good().make_router(config, dtype, parameters, groups);
    }
    std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype, const GroupsPtr& groups) const override {
        return good().make_dispatcher(config, dtype, groups);
    }
    std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                          const TensorMap& parameters) const override {
        return good().make_experts(config, dtype, parameters);
    }
    std::unique_ptr<LatentProjection> make_latent_projection(
        LatentProj which, DType dtype, const TensorMap& parameters) const override {
        return good().make_latent_projection(which, dtype, parameters);
    }
    std::unique_ptr<SharedExperts> make_shared_experts(
        const MoEConfig& config, DType dtype, const TensorMap& parameters,
        const GroupsPtr& groups) const override {
        return good().make_shared_experts(config, dtype, parameters, groups);
    }

  private:
    static const Tier& good() { return find_tier("tier", "reference_cpu"); }
    std::string name_;
};

}  // namespace moe::test
