// losses.cpp: whose tokens the losses look at.

#include "cli/ranks/losses.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "core/transfer.h"

namespace moe {
namespace {

using distributed::ParallelSizes;

/// The K experts with the largest scores, of equal ones the first.
std::vector<std::int64_t> best(const double* scores, std::int64_t E, std::int64_t K) {
    std::vector<std::int64_t> order(E);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
        return scores[a] > scores[b];
    });
    order.resize(K);
    return order;
}

std::vector<double> z_by_rank(const WholeRecord& whole, const RankTokens& tokens) {
    const std::int64_t E = whole.logits.dim(1);
    const std::vector<double> logits = to_doubles(whole.logits);
    std::vector<double> losses;
    for (const auto& mine : tokens.of_rank) {
        double sum = 0.0;
        for (const std::int64_t t : mine) {
            const double* x = &logits[t * E];
            const double largest = *std::max_element(x, x + E);
            double sum_of_exp = 0.0;
            for (std::int64_t e = 0; e < E; ++e) sum_of_exp += std::exp(x[e] - largest);
            const double lse = largest + std::log(sum_of_exp);
            sum += lse * lse;
        }
        losses.push_back(sum / double(std::max<std::size_t>(1, mine.size())));
    }
    return losses;
}

/// How many tokens chose each expert, and how many there are.
struct Population {
    std::vector<double> counts;
    double tokens = 0.0;
};

}  // namespace

std::string losses_of(const MoEConfig& config) {
    std::string names;
    const auto add = [&](const std::string& name) {
        names += (names.empty() ? "" : ", ") + name;
    };
    for (const std::string& type : config.moe_router_load_balancing_type)
        if (type.ends_with("aux_loss") && config.aux_loss_coeff(type) != 0.0) add(type);
    if (config.moe_z_loss_coeff.value_or(0.0) != 0.0) add("z_loss");
    return names;
}

bool has_losses_of_replica(const MoEConfig& config) {
    return config.aux_loss_coeff("aux_loss") != 0.0 ||
           config.aux_loss_coeff("seq_aux_loss") != 0.0 ||
           config.moe_z_loss_coeff.value_or(0.0) != 0.0;
}

MoEConfig without_losses(MoEConfig config) {
    std::fill(config.moe_aux_loss_coeff.begin(), config.moe_aux_loss_coeff.end(), 0.0);
    config.moe_z_loss_coeff.reset();
    return config;
}

bool depends_on_rank(const MoEConfig& config) {
    return config.moe_expert_capacity_factor.has_value() || config.is_sinkhorn();
}

std::string why_no_losses(const MoEConfig& config, const ParallelSizes& sizes) {
    if (losses_of(config).empty()) return "";
    if (depends_on_rank(config) && sizes.tensor * sizes.context > 1)
        return "one rank takes each rank's tokens in turn (capacity and sinkhorn look at "
               "them together), and losses look at whole sequences";
    const bool random = config.has_random_logits() || config.moe_input_jitter_eps;
    if (random && sizes.data() > 1 && has_losses_of_replica(config))
        return "random logits and jitter are drawn for all replicas together, and losses "
               "look at each by itself";
    return "";
}

std::vector<double> losses_by_rank(const std::string& name,
                                   std::span<const WholeRecord> whole,
                                   const MoEConfig& config, const RankTokens& tokens,
                                   const ParallelSizes& sizes) {
    if (name == "z_loss") return z_by_rank(whole.back(), tokens);
    const std::int64_t E = config.num_experts(), K = config.moe_router_topk;
    const std::int64_t B = tokens.micro_batch;
    const std::int64_t sequences = B * sizes.data();  // of all replicas: t = s B + b
    const bool by_sequence = name.starts_with("seq"), global = name.starts_with("global");
    const auto population_of = [&](std::int64_t t) {
        const std::int64_t sequence = t % sequences;
        return by_sequence ? sequence : global ? 0 : sequence / B;
    };
    std::vector<double> scores;
    std::map<std::int64_t, Population> populations;
    const std::span<const WholeRecord> counted = global ? whole : whole.last(1);
    for (const WholeRecord& record : counted) {
        scores = to_doubles(record.aux_scores);
        for (std::int64_t t = 0; t < record.aux_scores.dim(0); ++t) {
            Population& of_token = populations[population_of(t)];
            of_token.counts.resize(E);
            of_token.tokens += &record == &counted.back() ? 1.0 : 0.0;
            for (const std::int64_t e : best(&scores[t * E], E, K))
                of_token.counts[e] += 1.0 / double(counted.size());
        }
    }
    std::vector<double> losses;
    for (const auto& mine : tokens.of_rank) {
        double loss = 0.0;
        for (const std::int64_t t : mine) {
            const Population& of_token = populations.at(population_of(t));
            const double N = of_token.tokens;
            for (std::int64_t e = 0; e < E; ++e)
                loss += double(E) / (double(K) * N * N) * of_token.counts[e] *
                        scores[t * E + e];
        }
        losses.push_back(by_sequence ? loss / double(B) : loss);
    }
    return losses;
}

}  // namespace moe
