/// @file
/// How equality is judged: finite first, integers exactly, floats by relative Frobenius
/// error.
#pragma once

#include <string>

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
Closeness measure_closeness(const TensorView& got, const TensorView& expected);

/// "element (3, 7): got 0.25, expected 0.5", or "shape …", or "not finite …".
std::string describe_worst(const Closeness& closeness, const TensorView& got,
                           const TensorView& expected);

/// The bound on the relative error of a golden case. `source_error` is what Megatron's
/// own layer makes in that dtype, 0 if unknown.
double golden_bound(DType dtype, const std::string& tensor_name, double source_error);

/// The bound on the relative error between tiers on the same inputs.
double tier_bound(DType dtype, bool gradient);

}  // namespace moe
