#include "core/tier.h"

#include <algorithm>

#include "core/error.h"
#include "core/known_names.h"

namespace moe {
namespace {

std::vector<std::unique_ptr<Tier>>& registry() {
    static std::vector<std::unique_ptr<Tier>> list;
    return list;
}

}  // namespace

std::vector<DType> Tier::dtypes() const {
    std::vector<DType> common = dtypes(ComponentKind::router);
    for (const ComponentKind kind : {ComponentKind::dispatcher, ComponentKind::experts,
                                     ComponentKind::shared_experts})
        std::erase_if(common, [others = dtypes(kind)](DType dtype) {
            return std::find(others.begin(), others.end(), dtype) == others.end();
        });
    return common;
}

void register_tier(std::unique_ptr<Tier> tier) {
    registry().push_back(std::move(tier));
}

std::vector<const Tier*> tiers() {
    std::vector<const Tier*> list;
    for (const auto& tier : registry()) list.push_back(tier.get());
    return list;
}

const Tier& find_tier(const std::string& field, const std::string& name) {
    std::vector<std::string> names;
    for (const Tier* tier : tiers()) {
        if (tier->name() == name) {
            if (!tier->missing().empty()) reject(field, name, tier->missing());
            return *tier;
        }
        names.push_back(tier->name());
    }
    reject_unknown(field, name, names, "available tiers are");
}

}  // namespace moe
