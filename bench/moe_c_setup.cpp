#include "bench/moe_c_setup.h"

#include <nlohmann/json.hpp>

#include "cli/files.h"
#include "core/error.h"
#include "core/tier.h"

namespace moe::bench {

std::string describe_suppliers() {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const Tier* tier : tiers()) {
        if (!tier->missing().empty()) continue;
        const bool host = tier->memory_space() == MemorySpace::host;
        for (DType dtype : tier->dtypes()) {
            const ComponentSpec supplier{tier->name(), dtype};
            list.push_back({{"supplier", to_string(supplier)},
                            {"space", host ? "host" : "device"},
                            {"emulated", tier->is_emulated()},
                            {"device", tier->device()}});
        }
    }
    return list.dump();
}

MoEConfig parse_config(const std::string& text) {
    const std::size_t start = text.find_first_not_of(" \t\r\n");
    const bool is_json = start != std::string::npos && text[start] == '{';
    MoEConfig config =
        is_json ? config_from_json(parse_json("config", text), "") : preset(text, 1);
    config.finalize();
    const auto only_one = [](const char* field, std::int64_t size) {
        if (size != 1) reject(field, size, "must be 1: this layer is on one rank");
    };
    only_one("tensor_model_parallel_size", config.tensor_model_parallel_size);
    only_one("context_parallel_size", config.context_parallel_size);
    only_one("expert_model_parallel_size", config.expert_model_parallel_size);
    only_one("expert_tensor_parallel_size", *config.expert_tensor_parallel_size);
    if (config.moe_router_hash_vocab_size)
        reject("moe_router_hash_vocab_size", *config.moe_router_hash_vocab_size,
               "must be left out: this interface takes no token ids");
    return config;
}

ModuleSpec parse_spec(const std::string& text) {
    const ComponentSpec otherwise{"reference_cpu", DType::f32};
    if (text.find('=') != std::string::npos) return ModuleSpec::parse(text, otherwise);
    if (text.empty() || text.find(',') != std::string::npos)
        reject("spec", text, "must be tier:dtype, or component=tier:dtype,…");
    return ModuleSpec::uniform(ModuleSpec::parse("experts=" + text, otherwise).experts);
}

}  // namespace moe::bench
