#include "bench/workload.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "core/error.h"
#include "core/parameters.h"
#include "core/rng.h"

namespace moe::bench {
namespace {

enum Stream : std::uint64_t { kHidden = 300, kGradient, kChoice };

/// (T, 1, H) of N(0, 1), rounded to bf16.
Tensor normal(std::int64_t tokens, std::int64_t hidden_size, std::uint64_t seed,
              Stream stream) {
    Tensor tensor = Tensor::empty({tokens, 1, hidden_size}, DType::f32);
    const Rng rng(seed, stream);
    float* values = tensor.data<float>();
    const std::int64_t count = tensor.numel();
#pragma omp parallel for schedule(static)
    for (std::int64_t i = 0; i < count; ++i)
        values[i] = static_cast<float>(
            BFloat16(static_cast<float>(rng.normal(std::uint64_t(i)))));
    return tensor;
}

/// The experts of token t, best first, from which its K are taken.
class Preference {
  public:
    Preference(const Routing& routing, std::int64_t tokens, std::int64_t experts,
               std::int64_t topk, std::uint64_t seed)
        : routing_(routing), E_(experts), K_(topk), rng_(seed, kChoice) {
        // Popularity falls from +2 to -1 logits over the experts, in random order
        popularity_.resize(std::size_t(E_));
        const std::vector<std::int64_t> order = shuffled(E_, 0);
        for (std::int64_t i = 0; i < E_; ++i)
            popularity_[std::size_t(order[std::size_t(i)])] =
                E_ == 1 ? 0.0 : 2.0 - 3.0 * double(i) / double(E_ - 1);
        if (routing.kind == Routing::Kind::balanced) place_ = shuffled(tokens, 1);
    }

    std::vector<std::int64_t> of(std::int64_t t) const {
        std::vector<std::int64_t> experts(static_cast<std::size_t>(E_));
        if (routing_.kind == Routing::Kind::balanced) {
            // Windows of K neighbours, one after another around the circle of experts
            const std::int64_t first = place_[std::size_t(t)] * K_ % E_;
            for (std::int64_t i = 0; i < E_; ++i)
                experts[std::size_t(i)] = (first + i) % E_;
            return experts;
        }
        std::vector<double> keys(static_cast<std::size_t>(E_));
        for (std::int64_t e = 0; e < E_; ++e)
            keys[std::size_t(e)] = rng_.normal(std::uint64_t(t * E_ + e)) + extra(e);
        std::iota(experts.begin(), experts.end(), 0);
        std::stable_sort(experts.begin(), experts.end(), [&](auto a, auto b) {
            return keys[std::size_t(a)] > keys[std::size_t(b)];
        });
        return experts;
    }

  private:
    double extra(std::int64_t e) const {
        if (routing_.kind == Routing::Kind::skewed) return popularity_[std::size_t(e)];
        return routing_.kind == Routing::Kind::hot && e < routing_.hot ? 1e3 : 0.0;
    }
    /// 0 … count - 1 in random order.
    std::vector<std::int64_t> shuffled(std::int64_t count, std::uint64_t which) const {
        std::vector<std::int64_t> order(static_cast<std::size_t>(count));
        std::iota(order.begin(), order.end(), 0);
        const std::uint64_t base = (which + 1) << 48;
        for (std::int64_t i = count; i-- > 1;)
            std::swap(order[std::size_t(i)],
                      order[rng_.below(base + std::uint64_t(i), std::uint32_t(i + 1))]);
        return order;
    }

    Routing routing_;
    std::int64_t E_, K_;
    Rng rng_;
    std::vector<double> popularity_;
    std::vector<std::int64_t> place_;
};

/// The largest bf16 value that is smaller.
float bf16_below(float value) {
    BFloat16 rounded(std::nextafterf(value, -INFINITY));
    if (static_cast<float>(rounded) < value) return static_cast<float>(rounded);
    // Rounding went back up: step by the spacing of bf16, 2^-8 of the value
    const float step = std::max(std::abs(value) * 0x1p-8f, 0x1p-133f);
    return static_cast<float>(BFloat16(value - step));
}

/// Gives the largest of the first E elements to the preferred experts, in order. A tie
/// between the last chosen and the first left out is broken: ties go to the lower index.
void arrange(float* values, const std::vector<std::int64_t>& preferred,
             std::int64_t topk) {
    std::vector<float> sorted(values, values + preferred.size());
    std::sort(sorted.begin(), sorted.end(), std::greater<>());
    for (std::size_t i = std::size_t(topk); i < sorted.size(); ++i)
        if (sorted[i] >= sorted[std::size_t(topk) - 1])
            sorted[i] = bf16_below(sorted[std::size_t(topk) - 1]);
    for (std::size_t i = 0; i < preferred.size(); ++i) values[preferred[i]] = sorted[i];
}

}  // namespace

Routing parse_routing(const std::string& field, const std::string& text,
                      const MoEConfig& config) {
    if (text == "balanced") return {Routing::Kind::balanced};
    if (text == "uniform") return {Routing::Kind::uniform};
    if (text == "skewed") return {Routing::Kind::skewed};
    const std::int64_t K = config.moe_router_topk, E = config.num_experts();
    if (text.starts_with("hot:")) {
        std::int64_t hot = 0;
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data() + 4, end, hot);
        if (error == std::errc() && stop == end && hot >= K && hot <= E)
            return {Routing::Kind::hot, hot};
        reject(field, text, fmt::format("hot needs from K = {} to E = {} experts", K, E));
    }
    reject(field, text, "must be balanced, uniform, skewed, or hot:N (N experts)");
}

Inputs make_inputs(const MoEConfig& config, const Routing& routing, std::int64_t tokens,
                   std::uint64_t seed) {
    const std::int64_t H = config.hidden_size, E = config.num_experts();
    const std::int64_t K = config.moe_router_topk;
    if (H < E)
        reject("hidden_size", H,
               fmt::format(
                   "must be at least num_moe_experts = {}: take a smaller --scale", E));
    Inputs inputs;
    inputs.parameters = random_parameters(config, seed);
    Tensor weight = Tensor::zeros({E, H}, DType::f32);
    for (std::int64_t e = 0; e < E; ++e) weight.data<float>()[e * H + e] = 1.0f;
    inputs.parameters["router.weight"] = weight;
    // A bias would choose other experts than the logits do
    for (const char* bias : {"router.bias", "router.expert_bias", "router.qb_beta"})
        if (inputs.parameters.count(bias) > 0)
            inputs.parameters[bias] = Tensor::zeros({E}, DType::f32);

    inputs.hidden = normal(tokens, H, seed, kHidden);
    inputs.doutput = normal(tokens, H, seed, kGradient);
    const Preference preference(routing, tokens, E, K, seed);
    float* hidden = inputs.hidden.data<float>();
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < tokens; ++t)
        arrange(hidden + t * H, preference.of(t), K);
    return inputs;
}

}  // namespace moe::bench
