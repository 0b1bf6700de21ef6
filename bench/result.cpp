#include "bench/result.h"

#include <algorithm>

namespace moe::bench {

Calibration best_of(const Calibration& a, const Calibration& b) {
    return {std::max(a.copy_gb_per_s, b.copy_gb_per_s),
            std::max(a.product_tflops, b.product_tflops)};
}

double tflops(const Measurement& measurement) {
    return measurement.flops / (1e-3 * measurement.ms.value().median) / 1e12;
}

double gb_per_s(const Measurement& measurement) {
    return measurement.bytes / (1e-3 * measurement.ms.value().median) / 1e9;
}

}  // namespace moe::bench
