#include "bench/result.h"

namespace moe::bench {

double tflops(const Measurement& measurement) {
    return measurement.flops / (1e-3 * measurement.ms.value().median) / 1e12;
}

double gb_per_s(const Measurement& measurement) {
    return measurement.bytes / (1e-3 * measurement.ms.value().median) / 1e9;
}

}  // namespace moe::bench
