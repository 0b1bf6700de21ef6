/// @file
/// How equality is judged: finite first, integers exactly, floats by relative Frobenius
/// error.
#pragma once

#include <string>

#include "core/config.h"
#include "core/tensor.h"

namespace moe {

/// How far `got` lies from `expected`, and where most.
struct Closeness {
    bool same_shape = true;
    bool finite = true;  ///< no NaN or infinity in either
    double error =
        0.0;  ///< ‖got - expected‖ / ‖expected‖; infinite when that is 0/0-like
    double distance = 0.0;    ///< ‖got - expected‖
    std::int64_t worst = -1;  ///< flat index of the largest difference, -1 if equal
    double worst_got = 0.0, worst_expected = 0.0;

    /// True when finite, of one shape and within the bound (0 means exactly equal).
    bool within(double bound) const { return same_shape && finite && error <= bound; }
};

/// Compares values of any dtype, on the host or elsewhere. An expectation that is all
/// zero must be met exactly: any other value has an infinite error.
/// @param noise  where neither the expectation nor the distance has a larger norm, both
///               are 0 but for rounding, and the error is 0
Closeness measure_closeness(const TensorView& got, const TensorView& expected,
                            double noise = 0.0);

/// The noise of a value of a step: where every token goes to every expert, the gradient
/// of the auxiliary losses by the logits ("d_logits_losses") is 0, and what a tier has is
/// what rounding leaves of terms as large as the coefficient over √T. 0 of other values.
double noise_of(const std::string& name, const MoEConfig& config,
                std::int64_t num_tokens);

/// "element (3, 7): got 0.25, expected 0.5", or "shape …", or "not finite …".
std::string describe_worst(const Closeness& closeness, const TensorView& got,
                           const TensorView& expected);

/// The bound on the relative error of a golden case. `source_error` is what Megatron's
/// own layer makes in that dtype, 0 if unknown.
double golden_bound(DType dtype, const std::string& tensor_name, double source_error);

/// The bound on the relative error between tiers on the same inputs.
double tier_bound(DType dtype, bool gradient);

/// The same for a whole layer: with moe_latent_size half as much again, as values are
/// rounded behind two more products on their way; and in bf16 1 + 2 / √T times as much,
/// as the errors of few tokens do not average out.
double tier_bound(const MoEConfig& config, DType dtype, bool gradient,
                  std::int64_t num_tokens);

}  // namespace moe
