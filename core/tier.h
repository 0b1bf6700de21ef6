/// @file
/// A tier: one complete implementation of the layer's components. Tiers register
/// themselves; nothing else knows their types.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/kept.h"
#include "core/latent_projection.h"

namespace moe {

namespace distributed {
struct ProcessGroups;
}
/// A rank's groups (distributed/process_groups.h); null for a layer on one rank.
using GroupsPtr = std::shared_ptr<const distributed::ProcessGroups>;

/// The components of a layer.
enum class ComponentKind { router, dispatcher, experts, shared_experts };

/// Supplies components in the dtypes it has.
class Tier {
  public:
    virtual ~Tier() = default;

    /// E.g. "reference_cpu".
    virtual std::string name() const = 0;
    /// What this machine lacks to run it, or nothing: "needs an NVIDIA GPU and …".
    virtual std::string missing() const { return ""; }
    /// What it runs on, for people: "CPU, 2 threads, AVX2". Only when nothing is missing.
    virtual std::string device() const = 0;
    /// True when its kernels run on the CPU executor: its times then say nothing about a
    /// GPU, and nobody shows them.
    virtual bool is_emulated() const { return false; }
    /// Where its components want their tensors.
    virtual MemorySpace memory_space() const { return MemorySpace::host; }
    /// False when its components exchange nothing: only layers on one rank.
    virtual bool works_on_ranks() const { return true; }
    /// InputError for a layer that it cannot do; who can is named.
    virtual void check(const MoEConfig&) const {}
    /// Floating-point types of a component, most precise first. A router may have
    /// more of them than the layer: see ModuleSpec::raise_router_dtype.
    virtual std::vector<DType> dtypes(ComponentKind) const = 0;
    /// Those of a layer that is all of this tier: what every component has.
    std::vector<DType> dtypes() const;

    /// What a layer, all of this tier, keeps for its backward.
    /// @param router  dtype of the router, @param dtype  of all else
    virtual std::vector<KeptTensor> kept(const MoEConfig& config, DType router,
                                         DType dtype) const = 0;

    /// Factories. `parameters` holds the layer's weights under the names of
    /// core/parameters.h, in any dtype and memory space; a component takes its own.
    /// `groups` is who a component talks to; null: nobody, it is alone.
    virtual std::unique_ptr<Router> make_router(
        const MoEConfig& config, DType dtype, const TensorMap& parameters,
        const GroupsPtr& groups = nullptr) const = 0;
    /// By config.moe_token_dispatcher_type.
    virtual std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype,
        const GroupsPtr& groups = nullptr) const = 0;
    virtual std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                                  const TensorMap& parameters) const = 0;
    /// With moe_latent_size; it is the experts' supplier who is asked.
    virtual std::unique_ptr<LatentProjection> make_latent_projection(
        LatentProj which, DType dtype, const TensorMap& parameters) const = 0;
    virtual std::unique_ptr<SharedExperts> make_shared_experts(
        const MoEConfig& config, DType dtype, const TensorMap& parameters,
        const GroupsPtr& groups = nullptr) const = 0;
};

/// Adds a tier; each tier has a function register_<name>() that calls this.
void register_tier(std::unique_ptr<Tier> tier);

/// All registered tiers, in the order of registration; also those that cannot run here.
std::vector<const Tier*> tiers();

/// The tier of that name. InputError, naming `field`, when there is none or when it
/// cannot run here.
const Tier& find_tier(const std::string& field, const std::string& name);

}  // namespace moe
