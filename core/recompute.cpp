#include "core/recompute.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

namespace moe {

bool recomputes(const MoEConfig& config, const std::string& module) {
    if (config.recompute_granularity != "selective" || !config.recompute_modules)
        return false;
    const std::vector<std::string>& modules = *config.recompute_modules;
    const bool named = std::find(modules.begin(), modules.end(), module) != modules.end();
    return named && (module != "shared_experts" || config.shared_ffn() > 0);
}

std::string recomputed_in_words(const MoEConfig& config) {
    const bool whole = recomputes(config, "moe");
    const bool shared = recomputes(config, "shared_experts");
    std::vector<std::string> steps, modules;
    if (shared || (whole && config.shared_ffn() > 0)) steps.push_back("①");
    if (whole) steps.push_back("⑥–⑩");
    if (recomputes(config, "moe_act")) {
        modules.push_back("moe_act");
        if (!whole) steps.push_back("⑧");
    }
    if (shared) modules.push_back("shared_experts");
    if (whole) modules.push_back("moe");
    if (modules.empty()) return "";
    return fmt::format("{} again in backward: recompute_modules {}",
                       fmt::join(steps, " and "), fmt::join(modules, " "));
}

}  // namespace moe
