#include "bench/roofline.h"

#include <algorithm>

#include "core/error.h"

namespace moe::bench {
namespace {

/// Sizes as doubles: their products pass 2^63 for no model of today, but a sum is easier.
struct Sizes {
    Sizes(const MoEConfig& config, const StepSizes& sizes, DType dtype)
        : T(double(sizes.num_tokens)),
          N(double(sizes.num_rows)),
          H(double(config.hidden_size)),
          E(double(config.num_experts())),
          F(double(config.ffn())),
          Z(double(config.fc1_rows(config.ffn()))),
          S(double(config.shared_ffn())),
          Y(double(config.fc1_rows(config.shared_ffn()))),
          b(double(size_of(dtype))) {}
    double T, N, H, E, F, Z, S, Y;
    double b;  // bytes of an element
};
constexpr double kFp32 = 4.0;

using Kernels = std::vector<KernelCost>;

void append(Kernels& kernels, const Kernels& more) {
    kernels.insert(kernels.end(), more.begin(), more.end());
}

// ②, then ③ to ⑤ in one; the logits and what is chosen are fp32.
Kernels router_forward(const Sizes& s) {
    return {
        {"gate", 2 * s.T * s.E * s.H, s.b * (s.T * s.H + s.E * s.H) + kFp32 * s.T * s.E},
        {"top-k", 0.0, kFp32 * 2 * s.T * s.E}};
}

// ⑯ to ⑱ in one; ⑲ reads and adds to dX
Kernels router_backward(const Sizes& s) {
    return {{"top-k backward", 0.0, kFp32 * 3 * s.T * s.E},
            {"gate dX", 2 * s.T * s.E * s.H,
             s.b * (2 * s.T * s.H + s.E * s.H) + kFp32 * s.T * s.E},
            {"gate dW", 2 * s.T * s.E * s.H,
             s.b * (s.T * s.H + s.E * s.H) + kFp32 * s.T * s.E}};
}

/// @param x_rows  rows of X that are read: N where they lie in expert order, T where the
///                product gathers them
Kernels experts_forward(const Sizes& s, double x_rows) {
    return {
        {"FC1 + activation", 2 * s.N * s.Z * s.H,
         s.b * (x_rows * s.H + s.E * s.Z * s.H + s.N * s.Z + s.N * s.F)},
        {"FC2", 2 * s.N * s.F * s.H, s.b * (s.N * s.F + s.E * s.F * s.H + s.N * s.H)}};
}

Kernels experts_backward(const Sizes& s, double x_rows) {
    return {
        {"dH", 2 * s.N * s.F * s.H,
         s.b * (x_rows * s.H + s.E * s.F * s.H + 2 * s.N * s.Z + s.N * s.F)},
        {"dW2", 2 * s.N * s.F * s.H, s.b * (x_rows * s.H + s.N * s.F + s.E * s.F * s.H)},
        {"dX", 2 * s.N * s.Z * s.H, s.b * (s.N * s.Z + s.E * s.Z * s.H + s.N * s.H)},
        {"dW1", 2 * s.N * s.Z * s.H, s.b * (s.N * s.Z + x_rows * s.H + s.E * s.Z * s.H)}};
}

// Alone, a dispatcher writes what a fused product would gather.
KernelCost gather(const Sizes& s) {
    return {"gather rows", 0.0, s.b * (s.T * s.H + s.N * s.H)};
}
KernelCost sum_rows(const Sizes& s) {
    return {"sum rows", 0.0, s.b * (s.N * s.H + s.T * s.H)};
}

// A dense MLP over all tokens: the same kernels as an expert's
Sizes shared(const Sizes& s) {
    Sizes one = s;
    one.N = s.T, one.E = 1.0, one.F = s.S, one.Z = s.Y;
    return one;
}

Kernels forward_of(const std::string& subject, const Sizes& s) {
    if (subject == "router") return router_forward(s);
    if (subject == "dispatcher") return {gather(s), sum_rows(s)};
    if (subject == "experts") return experts_forward(s, s.N);
    if (subject == "shared_experts") return experts_forward(shared(s), s.T);
    MOE_CHECK(subject == "layer");
    Kernels kernels = router_forward(s);
    append(kernels, experts_forward(s, s.T));
    kernels.push_back(sum_rows(s));
    if (s.S > 0) append(kernels, experts_forward(shared(s), s.T));
    return kernels;
}

Kernels backward_of(const std::string& subject, const Sizes& s) {
    if (subject == "router") return router_backward(s);
    if (subject == "dispatcher") return {gather(s), sum_rows(s)};
    if (subject == "experts") return experts_backward(s, s.N);
    if (subject == "shared_experts") return experts_backward(shared(s), s.T);
    MOE_CHECK(subject == "layer");
    Kernels kernels = experts_backward(s, s.T);
    kernels.push_back(sum_rows(s));
    append(kernels, router_backward(s));
    if (s.S > 0) append(kernels, experts_backward(shared(s), s.T));
    return kernels;
}

}  // namespace

std::vector<KernelCost> kernels_of(const std::string& subject, const std::string& pass,
                                   const MoEConfig& config, const StepSizes& sizes,
                                   DType dtype) {
    const Sizes s(config, sizes, dtype);
    Kernels kernels;
    if (pass != "backward") append(kernels, forward_of(subject, s));
    if (pass != "forward") append(kernels, backward_of(subject, s));
    return kernels;
}

double total_flops(const std::vector<KernelCost>& kernels) {
    double sum = 0.0;
    for (const KernelCost& kernel : kernels) sum += kernel.flops;
    return sum;
}

double total_bytes(const std::vector<KernelCost>& kernels) {
    double sum = 0.0;
    for (const KernelCost& kernel : kernels) sum += kernel.bytes;
    return sum;
}

double floor_ms(const std::vector<KernelCost>& kernels, const Calibration& ceilings) {
    double sum = 0.0;
    for (const KernelCost& kernel : kernels) {
        const double moving = kernel.bytes / (1e9 * ceilings.copy_gb_per_s);
        const double computing = ceilings.product_tflops
                                     ? kernel.flops / (1e12 * *ceilings.product_tflops)
                                     : 0.0;
        sum += std::max(moving, computing);
    }
    return 1e3 * sum;
}

}  // namespace moe::bench
