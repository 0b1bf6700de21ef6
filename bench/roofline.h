/// @file
/// The best known schedule of a part of the layer, kernel by kernel, and so a time that
/// nothing can be under. What each kernel must do is in core/floors.h.
///
/// The schedule is that of three kernels forward (FC1 with the activation, FC2, combine)
/// and five backward (dH, dW2, dX, dW1, sum over a token's rows), which keeps X and H
/// and gathers tokens inside the products. Source: SonicMoE, arXiv 2512.14080.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/result.h"
#include "core/config.h"
#include "core/floors.h"

namespace moe::bench {

/// One kernel: every operand read once, every result written once.
struct KernelCost {
    std::string name;
    double flops = 0.0;  ///< of matrix products; the rest is hidden behind its bytes
    double bytes = 0.0;  ///< with its metadata
};

/// The kernels of a part of the layer, see Measurement::subject and pass.
/// @param config  finalized
/// @param sizes   T, and N as it came out
/// @param dtype   of activations and weights; see formats_of()
std::vector<KernelCost> kernels_of(const std::string& subject, const std::string& pass,
                                   const MoEConfig& config, const StepSizes& sizes,
                                   DType dtype);

double total_flops(const std::vector<KernelCost>& kernels);
double total_bytes(const std::vector<KernelCost>& kernels);

/// Milliseconds: each kernel takes the longer of its arithmetic at the calibrated product
/// and its bytes at the calibrated copy, one after another. Without a calibrated product
/// only bytes count, and the floor is lower than it could be.
double floor_ms(const std::vector<KernelCost>& kernels, const Calibration& ceilings);

}  // namespace moe::bench
