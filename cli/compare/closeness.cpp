#include "cli/compare/closeness.h"

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

/// Elements [begin, end) of an array on the host.
std::vector<double> slice(const TensorView& array, std::int64_t begin, std::int64_t end) {
    auto* bytes = static_cast<std::byte*>(array.bytes);
    return to_doubles(
        {bytes + std::size_t(begin) * size_of(array.dtype), array.dtype, {end - begin}});
}

/// What a block of elements adds to the whole.
struct Block {
    double scale = 0.0, difference = 0.0, norm = 0.0, worst = 0.0;
    Closeness closeness;
};

/// Large enough for threads, small enough that a layer's gradients need no copy in fp64.
constexpr std::int64_t kBlockElements = 1 << 16;

double largest_finite(const std::vector<double>& a, const std::vector<double>& b) {
    double largest = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i)
        for (double value : {a[i], b[i]})
            if (std::isfinite(value)) largest = std::max(largest, std::abs(value));
    return largest;
}

void measure(Block& block, const std::vector<double>& a, const std::vector<double>& b,
             std::int64_t begin, double scale) {
    Closeness& result = block.closeness;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const bool finite = std::isfinite(a[i]) && std::isfinite(b[i]);
        const double distance =
            finite ? std::abs(a[i] - b[i]) : std::numeric_limits<double>::infinity();
        result.finite = result.finite && finite;
        block.difference += (distance / scale) * (distance / scale);
        block.norm += (b[i] / scale) * (b[i] / scale);
        if (distance <= block.worst) continue;
        block.worst = distance;
        result.worst = begin + static_cast<std::int64_t>(i);
        result.worst_got = a[i];
        result.worst_expected = b[i];
    }
}

Tensor on_host(const TensorView& view) {
    return transfer(view, {MemorySpace::host, view.dtype});
}

}  // namespace

Closeness measure_closeness(const TensorView& got, const TensorView& expected,
                            double noise) {
    if (got.space != MemorySpace::host)
        return measure_closeness(on_host(got), expected, noise);
    if (expected.space != MemorySpace::host)
        return measure_closeness(got, on_host(expected), noise);
    Closeness result;
    result.same_shape = got.shape == expected.shape;
    if (!result.same_shape) return result;

    // The same blocks whatever the number of threads, so that the sums round alike
    const std::int64_t count = got.numel();
    std::vector<Block> blocks((count + kBlockElements - 1) / kBlockElements);
    const auto num_blocks = static_cast<std::int64_t>(blocks.size());
    const auto each_block = [&](auto&& work) {
#pragma omp parallel for schedule(static) if (num_blocks > 1)
        for (std::int64_t i = 0; i < num_blocks; ++i) {
            const std::int64_t begin = i * kBlockElements;
            const std::int64_t end = std::min(count, begin + kBlockElements);
            work(blocks[i], slice(got, begin, end), slice(expected, begin, end), begin);
        }
    };

    // Squares of what is very small or very large would vanish or overflow.
    each_block([](Block& block, const auto& a, const auto& b, std::int64_t) {
        block.scale = largest_finite(a, b);
    });
    double scale = 0.0;
    for (const Block& block : blocks) scale = std::max(scale, block.scale);
    if (scale == 0.0) scale = 1.0;
    each_block([&](Block& block, const auto& a, const auto& b, std::int64_t begin) {
        measure(block, a, b, begin, scale);
    });

    double difference = 0.0, norm = 0.0, worst = 0.0;
    for (const Block& block : blocks) {
        result.finite = result.finite && block.closeness.finite;
        difference += block.difference;
        norm += block.norm;
        if (block.worst <= worst) continue;
        worst = block.worst;
        result.worst = block.closeness.worst;
        result.worst_got = block.closeness.worst_got;
        result.worst_expected = block.closeness.worst_expected;
    }
    result.distance = scale * std::sqrt(difference);
    if (difference > 0.0)
        result.error = norm > 0.0 ? std::sqrt(difference / norm)
                                  : std::numeric_limits<double>::infinity();
    if (result.finite && result.distance <= noise && scale * std::sqrt(norm) <= noise)
        result.error = 0.0;
    return result;
}

double noise_of(const std::string& name, const MoEConfig& config,
                std::int64_t num_tokens) {
    if (name != "d_logits_losses" || num_tokens == 0) return 0.0;
    double coefficient = 0.0;
    for (const double each : config.moe_aux_loss_coeff) coefficient += std::abs(each);
    const double tokens = double(num_tokens);
    return 1e-5 * coefficient / std::sqrt(tokens) *
           (config.calculate_per_token_loss ? tokens : 1.0);
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

double tier_bound(const MoEConfig& config, DType dtype, bool gradient,
                  std::int64_t num_tokens) {
    const double few =
        dtype == DType::bf16
            ? 1.0 + 2.0 / std::sqrt(double(std::max<std::int64_t>(num_tokens, 1)))
            : 1.0;
    return tier_bound(dtype, gradient) * few * (config.moe_latent_size ? 1.5 : 1.0);
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
