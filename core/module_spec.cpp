#include "core/module_spec.h"

#include <algorithm>
#include <map>
#include <sstream>

#include "core/error.h"
#include "core/tier.h"

namespace moe {
namespace {

/// A component's supplier from "tier" or "tier:dtype".
ComponentSpec parse_supplier(const std::string& component, const std::string& text,
                             DType otherwise) {
    const std::string field = "spec " + component;
    const std::size_t colon = text.find(':');
    ComponentSpec spec{text.substr(0, colon), otherwise};
    const auto dtypes = find_tier(field, spec.tier).dtypes();
    if (colon != std::string::npos)
        spec.dtype = parse_dtype(field, text.substr(colon + 1));
    else if (std::find(dtypes.begin(), dtypes.end(), spec.dtype) == dtypes.end())
        spec.dtype = dtypes.front();
    if (std::find(dtypes.begin(), dtypes.end(), spec.dtype) == dtypes.end()) {
        std::string list;
        for (DType dtype : dtypes) list += (list.empty() ? "" : ", ") + to_string(dtype);
        reject(field, to_string(spec), "this tier has " + list);
    }
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
    const std::map<std::string, ComponentSpec*> components = {
        {"router", &spec.router},
        {"dispatcher", &spec.dispatcher},
        {"experts", &spec.experts},
        {"shared_experts", &spec.shared_experts}};
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) {
        const std::size_t equals = part.find('=');
        const std::string name = part.substr(0, equals);
        const auto component = components.find(name);
        if (component == components.end() || equals == std::string::npos)
            reject(
                "spec", part,
                "must be component=tier or component=tier:dtype; components are router, "
                "dispatcher, experts, shared_experts");
        *component->second =
            parse_supplier(name, part.substr(equals + 1), otherwise.dtype);
    }
    return spec;
}

void ModuleSpec::raise_router_dtype(const MoEConfig& config) {
    const DType wanted =
        parse_dtype("moe_router_dtype", config.moe_router_dtype.value_or("fp32"));
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
