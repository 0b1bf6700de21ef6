/// @file
/// What is timed: a known model's layer, tokens drawn from N(0, 1), and a routing of the
/// kind asked for that is the same in every tier and every precision.
#pragma once

#include <cstdint>
#include <string>

#include "bench/result.h"
#include "core/config.h"
#include "core/tensor.h"

namespace moe::bench {

/// How tokens fall on experts.
struct Routing {
    enum class Kind {
        balanced,  ///< every expert gets T K / E rows, as far as that is whole
        uniform,   ///< K of E at random
        skewed,    ///< at random, popular experts a few times as often as others
        hot        ///< only the first `hot` experts, the others get nothing
    };
    Kind kind = Kind::uniform;
    std::int64_t hot = 0;
};

/// Reads "balanced", "uniform", "skewed" or "hot:8". InputError naming `field`
/// otherwise; hot needs K <= hot <= E.
Routing parse_routing(const std::string& field, const std::string& text,
                      const MoEConfig& config);

/// A layer with its input.
struct Inputs {
    TensorMap parameters;  ///< fp32 on the host, exactly representable in bf16
    Tensor hidden;         ///< (T, 1, H) fp32 N(0, 1), exactly representable in bf16
    Tensor doutput;        ///< (T, 1, H) the same
};

/// The router's weight is one 1 in each row, so that logit e of a token is element e of
/// its hidden state, to the last bit in every dtype: all tiers must choose the same
/// experts. The routing is made by the order of those E elements; their values stay what
/// N(0, 1) gave. InputError when H < E.
Inputs make_inputs(const MoEConfig& config, const Routing& routing, std::int64_t tokens,
                   std::uint64_t seed);

}  // namespace moe::bench
