/// @file
/// How a tensor core adds up the products of one instruction.
///
/// TUTORIAL: PTX leaves this open: "at least" the precision of the type, in any order.
/// The executor therefore has a model with parameters. By default it adds in order of
/// depth, each sum rounded to fp32, which a reader can follow by hand. The other form is
/// what measurements of NVIDIA's units have shown in general: the products of a block
/// and the sum so far are shifted to the largest exponent among them, cut off after some
/// bits, added exactly, and cut or rounded once. tests/conformance/accumulation_test.cu
/// measures which parameters a device has.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda_on_cpu/executor.h"

namespace cuda_on_cpu {

/// The sum `start` + a[0] b[0] + … as the unit forms it. Products of bf16, fp16 and tf32
/// are exact in fp32.
inline float accumulate(const Accumulation& unit, float start, const float* a,
                        std::int64_t a_step, const float* b, std::int64_t b_step,
                        int depth) {
    if (unit.products == 1) {
        for (int k = 0; k < depth; ++k) start += a[k * a_step] * b[k * b_step];
        return start;
    }
    for (int first = 0; first < depth; first += unit.products) {
        const int end = first + unit.products < depth ? first + unit.products : depth;
        double largest = std::fabs(start);
        bool finite = std::isfinite(start);
        for (int k = first; k < end; ++k) {
            const double product = double(a[k * a_step]) * b[k * b_step];
            largest = std::fmax(largest, std::fabs(product));
            finite = finite && std::isfinite(product);
        }
        if (!finite) {
            for (int k = first; k < end; ++k) start += a[k * a_step] * b[k * b_step];
            continue;
        }
        if (largest == 0.0) continue;
        // A unit in the last place that is kept beside the largest term
        const double unit_kept =
            std::ldexp(1.0, std::ilogb(largest) - 23 - unit.extra_bits);
        double sum = std::trunc(start / unit_kept);
        for (int k = first; k < end; ++k)
            sum += std::trunc(double(a[k * a_step]) * b[k * b_step] / unit_kept);
        sum *= unit_kept;
        start = float(sum);
        if (unit.truncates && std::fabs(double(start)) > std::fabs(sum))
            start = std::nextafter(start, 0.0f);
    }
    return start;
}

}  // namespace cuda_on_cpu
