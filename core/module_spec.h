/// @file
/// ModuleSpec: which tier, in which precision, supplies each component.
#pragma once

#include <string>

#include "core/config.h"
#include "core/dtype.h"

namespace moe {

/// One component's supplier.
struct ComponentSpec {
    std::string tier = "reference_cpu";
    DType dtype = DType::f32;
    bool operator==(const ComponentSpec&) const = default;
};

/// "reference_cpu:fp32".
std::string to_string(const ComponentSpec& spec);

/// Suppliers of all components. Source of the idea: Megatron's ModuleSpec
/// (spec_utils.py).
struct ModuleSpec {
    ComponentSpec router, dispatcher, experts, shared_experts;
    bool operator==(const ModuleSpec&) const = default;

    /// The same tier and precision for all.
    static ModuleSpec uniform(const ComponentSpec& supplier);

    /// Reads "experts=reference_cpu:fp32,router=reference_cpu:fp64". A component that is
    /// not named takes `otherwise`; ":dtype" may be left out, then it is that of
    /// `otherwise`, or the tier's most precise one if it does not have that. InputError
    /// for unknown components, tiers, dtypes, or ones the tier does not have; see Tier.
    static ModuleSpec parse(const std::string& text, const ComponentSpec& otherwise);

    /// InputError for a component in a dtype in which its tier has none; who has one is
    /// named.
    void check_dtypes() const;

    /// The router works at least in moe_router_dtype; without one it has the layer's, bf16
    /// in a layer of bf16: see core/router_rounding.h. Source: router.py, Router.gating.
    void raise_router_dtype(const MoEConfig& config);

    /// The least precise dtype of all: it decides what errors may be.
    DType coarsest_dtype() const;

    /// True when kernels of any component run on the CPU executor (Tier::is_emulated).
    bool is_emulated() const;

    /// True when all components can be one rank's of several (Tier::works_on_ranks).
    bool works_on_ranks() const;

    /// True when any component works in device memory (Tier::memory_space).
    bool uses_device() const;
};

/// "router=… dispatcher=… experts=… shared_experts=…", or one supplier when all agree.
std::string to_string(const ModuleSpec& spec);

}  // namespace moe
