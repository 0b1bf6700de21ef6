#include "cli/closeness.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/transfer.h"

namespace moe {
namespace {

/// (3, 7) for a flat index.
std::string coordinates(std::int64_t index, const Shape& shape) {
    Shape position(shape.size());
    for (std::size_t axis = shape.size(); axis-- > 0;) {
        position[axis] = index % shape[axis];
        index /= shape[axis];
    }
    return to_string(position);
}

}  // namespace

Closeness measure_closeness(const TensorView& got, const TensorView& expected) {
    Closeness result;
    result.same_shape = got.shape == expected.shape;
    if (!result.same_shape) return result;
    const std::vector<double> a = to_doubles(got), b = to_doubles(expected);

    // Squares of what is very small or very large would vanish or overflow.
    double scale = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        for (double value : {a[i], b[i]})
            if (std::isfinite(value)) scale = std::max(scale, std::abs(value));
    if (scale == 0.0) scale = 1.0;

    double difference = 0.0, norm = 0.0, worst = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const bool finite = std::isfinite(a[i]) && std::isfinite(b[i]);
        const double distance =
            finite ? std::abs(a[i] - b[i]) : std::numeric_limits<double>::infinity();
        result.finite = result.finite && finite;
        difference += (distance / scale) * (distance / scale);
        norm += (b[i] / scale) * (b[i] / scale);
        if (distance <= worst) continue;
        worst = distance;
        result.worst = static_cast<std::int64_t>(i);
        result.worst_got = a[i];
        result.worst_expected = b[i];
    }
    if (difference > 0.0)
        result.error = norm > 0.0 ? std::sqrt(difference / norm)
                                  : std::numeric_limits<double>::infinity();
    return result;
}

std::string describe_worst(const Closeness& closeness, const TensorView& got,
                           const TensorView& expected) {
    if (!closeness.same_shape)
        return fmt::format("shape: got {}, expected {}", to_string(got.shape),
                           to_string(expected.shape));
    if (closeness.worst < 0) return "all equal";
    return fmt::format("{}worst element {}: got {:.9g}, expected {:.9g}",
                       closeness.finite ? "" : "not finite; ",
                       coordinates(closeness.worst, expected.shape), closeness.worst_got,
                       closeness.worst_expected);
}

double tier_bound(DType dtype, bool gradient) {
    switch (dtype) {
        case DType::f64: return 1e-12;
        case DType::f32: return 1e-5;
        default: return gradient ? 1e-2 : 6e-3;
    }
}

double golden_bound(DType dtype, const std::string& tensor_name, double source_error) {
    switch (dtype) {
        case DType::f64: return 1e-6;  // Megatron's own scores are fp32
        case DType::f32: return 2e-6;
        default: {
            const bool gradient = tensor_name.starts_with("expect.grad.");
            return std::max(tier_bound(dtype, gradient), 1.25 * source_error);
        }
    }
}

}  // namespace moe
