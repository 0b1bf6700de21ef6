#include "core/module_spec.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "core/error.h"
#include "core/tier.h"

namespace moe {
namespace {

using Member = ComponentSpec ModuleSpec::*;
const std::map<std::string, std::pair<ComponentKind, Member>> kComponents = {
    {"router", {ComponentKind::router, &ModuleSpec::router}},
    {"dispatcher", {ComponentKind::dispatcher, &ModuleSpec::dispatcher}},
    {"experts", {ComponentKind::experts, &ModuleSpec::experts}},
    {"shared_experts", {ComponentKind::shared_experts, &ModuleSpec::shared_experts}}};

bool has(const Tier& tier, ComponentKind kind, DType dtype) {
    const std::vector<DType> dtypes = tier.dtypes(kind);
    return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end();
}

/// "reference_cpu, naive_gpu": who can run here and has it.
std::string names_of_tiers_with(ComponentKind kind, DType dtype) {
    std::string names;
    for (const Tier* tier : tiers())
        if (tier->missing().empty() && has(*tier, kind, dtype))
            names += (names.empty() ? "" : ", ") + tier->name();
    return names.empty() ? "no tier here" : names;
}

void require_dtype(const std::string& component, ComponentKind kind,
                   const ComponentSpec& spec) {
    const std::string field = "spec " + component;
    const Tier& tier = find_tier(field, spec.tier);
    if (has(tier, kind, spec.dtype)) return;
    std::string list;
    for (DType dtype : tier.dtypes(kind))
        list += (list.empty() ? "" : ", ") + to_string(dtype);
    reject(field, to_string(spec),
           "this tier has " + list + "; " + to_string(spec.dtype) + " is in " +
               names_of_tiers_with(kind, spec.dtype));
}

/// A component's supplier from "tier" or "tier:dtype".
ComponentSpec parse_supplier(const std::string& component, ComponentKind kind,
                             const std::string& text, DType otherwise) {
    const std::string field = "spec " + component;
    const std::size_t colon = text.find(':');
    ComponentSpec spec{text.substr(0, colon), otherwise};
    const Tier& tier = find_tier(field, spec.tier);
    if (colon != std::string::npos)
        spec.dtype = parse_dtype(field, text.substr(colon + 1));
    else if (!has(tier, kind, spec.dtype))
        spec.dtype = tier.dtypes(kind).front();
    require_dtype(component, kind, spec);
    return spec;
}

}  // namespace

std::string to_string(const ComponentSpec& spec) {
    return spec.tier + ":" + to_string(spec.dtype);
}

ModuleSpec ModuleSpec::uniform(const ComponentSpec& supplier) {
    return {supplier, supplier, supplier, supplier};
}

ModuleSpec ModuleSpec::parse(const std::string& text, const ComponentSpec& otherwise) {
    ModuleSpec spec = uniform(otherwise);
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        const std::size_t equals = part.find('=');
        const std::string name = part.substr(0, equals);
        const auto component = kComponents.find(name);
        if (component == kComponents.end() || equals == std::string::npos)
            reject(
                "spec", part,
                "must be component=tier or component=tier:dtype; components are router, "
                "dispatcher, experts, shared_experts");
        const auto& [kind, member] = component->second;
        spec.*member =
            parse_supplier(name, kind, part.substr(equals + 1), otherwise.dtype);
    }
    return spec;
}

void ModuleSpec::check_dtypes() const {
    for (const auto& [name, component] : kComponents)
        require_dtype(name, component.first, this->*component.second);
}

void ModuleSpec::raise_router_dtype(const MoEConfig& config) {
    if (!config.moe_router_dtype) return;
    const DType wanted = parse_dtype("moe_router_dtype", *config.moe_router_dtype);
    if (size_of(wanted) > size_of(router.dtype)) router.dtype = wanted;
}

DType ModuleSpec::coarsest_dtype() const {
    DType coarsest = router.dtype;
    for (const ComponentSpec* component : {&dispatcher, &experts, &shared_experts})
        if (size_of(component->dtype) < size_of(coarsest)) coarsest = component->dtype;
    return coarsest;
}

bool ModuleSpec::is_emulated() const {
    for (const ComponentSpec* component :
         {&router, &dispatcher, &experts, &shared_experts})
        if (find_tier("spec", component->tier).is_emulated()) return true;
    return false;
}

bool ModuleSpec::works_on_ranks() const {
    for (const ComponentSpec* component :
         {&router, &dispatcher, &experts, &shared_experts})
        if (!find_tier("spec", component->tier).works_on_ranks()) return false;
    return true;
}

bool ModuleSpec::uses_device() const {
    for (const ComponentSpec* component :
         {&router, &dispatcher, &experts, &shared_experts})
        if (find_tier("spec", component->tier).memory_space() == MemorySpace::device)
            return true;
    return false;
}

std::string to_string(const ModuleSpec& spec) {
    if (spec.router == spec.dispatcher && spec.router == spec.experts &&
        spec.router == spec.shared_experts)
        return to_string(spec.router);
    return "router=" + to_string(spec.router) +
           " dispatcher=" + to_string(spec.dispatcher) +
           " experts=" + to_string(spec.experts) +
           " shared_experts=" + to_string(spec.shared_experts);
}

}  // namespace moe
