/// @file
/// What a layer over many ranks sends, and how long that would take at least on links of
/// known speed: a model, never a measurement. Routing is even, and a round of messages
/// takes α + bytes / β.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "cli/ranks/routes.h"
#include "core/config.h"

namespace moe::wire {

/// A kind of link.
struct Link {
    double alpha;  ///< seconds that a round of messages takes when it carries nothing
    double beta;   ///< bytes per second that a GPU sends, to all its peers together
};

/// GPUs in nodes. β of NVLink: what stores of registers reach on H100, of 450 GB/s, by
/// the paper on ParallelKittens; of the network: one NIC of 400 Gbit/s for each GPU. α:
/// what NCCL's tuning model (src/graph/tuning.cc, ring, Simple) assumes for a step.
struct Machine {
    std::int64_t gpus_per_node = 8;
    Link nvlink{3.4e-6, 340e9};
    Link network{14.0e-6, 50e9};
    double products = 800e12;  ///< FLOP/s of large bf16 products
};

/// What one rank sends in one step, on average.
struct Sent {
    double nvlink_bytes = 0.0, network_bytes = 0.0;
    /// Messages or barriers, one after the other, that peers wait for.
    int rounds = 0;
    /// Both kinds of links at once.
    double seconds = 0.0;
};

/// One dispatcher over EP ranks.
struct Estimate {
    std::string dispatcher;
    std::int64_t ranks = 0;
    double rows = 0.0;  ///< sent to other ranks in ⑥, per token
    double network_rows = 0.0;
    std::array<Sent, kExchangeSteps.size()> steps;

    /// Of ⑥ and ⑩, or ⑪ and ⑮.
    double seconds(bool backward) const;
    double seconds() const { return seconds(false) + seconds(true); }
    double nvlink_bytes() const;  ///< in all steps
    double network_bytes() const;
};

/// A layer over ever more ranks.
struct Outlook {
    std::string model;
    MoEConfig config;            ///< of the layer on one rank
    std::int64_t tokens = 0;     ///< of each rank
    double experts_seconds = 0;  ///< of a rank's products, forward and backward
    std::vector<Estimate> estimates;
    std::vector<std::string> left_out;  ///< "flex: needs …"
};

/// Rounds of a dispatcher in a step: what its collectives, pushes, pulls and barriers do
/// one after the other.
int rounds_of(const std::string& dispatcher, Step step);

/// @param config  finalized, with its dispatcher and expert_model_parallel_size; shards
///                of experts have no part in it
/// @param tokens  of each rank
Estimate estimate(const MoEConfig& config, std::int64_t tokens, const Machine& machine);

/// EP = 2, 4, … 64, as far as it divides the experts and fills nodes, through each of
/// the dispatchers, in bf16. InputError for a layer whose routing is not even: capacity,
/// padding.
/// @param config  not finalized, without parallel sizes
Outlook look_ahead(const std::string& model, const MoEConfig& config,
                   const std::vector<std::string>& dispatchers, std::int64_t tokens,
                   const Machine& machine);

}  // namespace moe::wire
