#include "core/tier.h"

#include "core/error.h"
#include "core/known_names.h"

namespace moe {
namespace {

std::vector<std::unique_ptr<Tier>>& registry() {
    static std::vector<std::unique_ptr<Tier>> list;
    return list;
}

}  // namespace

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
