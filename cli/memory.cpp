#include "cli/memory.h"

#include <fstream>
#include <functional>
#include <numeric>
#include <string>

#include "core/error.h"
#include "core/parameters.h"
#include "core/tensor.h"

namespace moe {
namespace {

/// Bytes the system could give, or 0 when it does not say.
double available_memory() {
    std::ifstream file("/proc/meminfo");
    std::string name, unit;
    for (double kibibytes; file >> name >> kibibytes >> unit;)
        if (name == "MemAvailable:") return 1024.0 * kibibytes;
    return 0.0;
}

}  // namespace

double estimate_memory(const MoEConfig& config, std::int64_t num_tokens) {
    const double T = num_tokens, N = T * double(config.moe_router_topk);
    const double H = config.hidden_size, latent = config.latent_size();
    const double E = config.num_experts();
    const double F = config.ffn(), Z = config.fc1_rows(config.ffn());
    const double Fs = config.shared_ffn(), Zs = config.fc1_rows(config.shared_ffn());
    double weights = 0.0;
    for (const auto& [name, shape] : parameter_shapes(config))
        weights += std::accumulate(shape.begin(), shape.end(), 1.0, std::multiplies<>());
    const double values = N * (5 * latent + 2 * Z + 2 * F) +
                          T * (6 * H + (config.moe_latent_size ? 4 * latent : 0.0) +
                               8 * E + 2 * Zs + 2 * Fs);
    // Weights: fp32 master, a copy and a gradient per supplier, its record. Values: kept
    // by the layer and recorded, for the reference and for the tier under test.
    return 8.0 * (4.5 * weights + 3.0 * values);
}

void require_memory(const MoEConfig& config, std::int64_t num_tokens) {
    const double needed = estimate_memory(config, num_tokens);
    const double available = available_memory();
    if (available == 0.0 || needed <= available) return;
    reject("memory", fmt::format("about {:.1f} GB needed", needed / 1e9),
           fmt::format(
               "{:.1f} GB are available; take fewer tokens (--seq-length) or a larger "
               "--scale",
               available / 1e9));
}

}  // namespace moe
