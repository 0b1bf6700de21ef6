#include "bench/roofline.h"

#include <algorithm>

#include "core/error.h"

namespace moe::bench {
namespace {

using Kernels = std::vector<KernelCost>;
using Rows = Floors::Rows;

KernelCost kernel(const char* name, const Floor& floor) {
    return {name, floor.flops, double(floor.total_bytes())};
}

void append(Kernels& kernels, const Kernels& more) {
    kernels.insert(kernels.end(), more.begin(), more.end());
}

/// One of the two projections, or its backward: so many products of T x ℓ x H.
KernelCost projection(const char* name, const MoEConfig& config, const StepSizes& sizes,
                      DType dtype, int products) {
    const double T = double(sizes.num_tokens), H = double(config.hidden_size);
    const double l = double(config.latent_size());
    return {name, 2.0 * products * T * H * l,
            double(size_of(dtype)) * products * (T * H + T * l + H * l)};
}

Kernels router_forward(const Floors& floors) {
    return {kernel("gate + top-k", floors.gating_and_routing())};
}

Kernels router_backward(const Floors& floors) {
    return {kernel("top-k backward", floors.losses_to_routing_backward()),
            kernel("gate dX", floors.gating_dx()), kernel("gate dW", floors.gating_dw())};
}

Kernels experts_forward(const Floors& floors, Rows rows) {
    return {kernel("FC1 + activation", rows == Rows::gathered
                                           ? floors.dispatch_to_activation()
                                           : floors.fc1_and_activation()),
            kernel("FC2", floors.step(Step::fc2))};
}

Kernels experts_backward(const Floors& floors, Rows rows) {
    return {kernel("dH", floors.experts_dh(rows)),
            kernel("dW2", floors.experts_dw2(rows)), kernel("dX", floors.experts_dx()),
            kernel("dW1", floors.experts_dw1(rows))};
}

/// @param rows  of what lies between the projections
Kernels forward_of(const std::string& subject, const Floors& floors, const Floors& rows,
                   bool has_shared) {
    if (subject == "router") return router_forward(floors);
    // Alone, a dispatcher writes what a fused product would gather.
    if (subject == "dispatcher")
        return {kernel("gather rows", rows.step(Step::dispatch)),
                kernel("sum rows", rows.step(Step::combine))};
    if (subject == "experts") return experts_forward(rows, Rows::dispatched);
    const Kernels shared = experts_forward(floors.shared_experts(), Rows::dispatched);
    if (subject == "shared_experts") return shared;
    MOE_CHECK(subject == "layer");
    Kernels kernels = router_forward(floors);
    append(kernels, experts_forward(rows, Rows::gathered));
    kernels.push_back(kernel("sum rows", rows.step(Step::combine)));
    if (has_shared) append(kernels, shared);
    return kernels;
}

Kernels backward_of(const std::string& subject, const Floors& floors, const Floors& rows,
                    bool has_shared) {
    if (subject == "router") return router_backward(floors);
    const KernelCost sum = kernel("sum rows", rows.step(Step::dispatch_backward));
    if (subject == "dispatcher")
        return {kernel("gather rows", rows.step(Step::combine_backward)), sum};
    if (subject == "experts") return experts_backward(rows, Rows::dispatched);
    const Kernels shared = experts_backward(floors.shared_experts(), Rows::dispatched);
    if (subject == "shared_experts") return shared;
    MOE_CHECK(subject == "layer");
    Kernels kernels = experts_backward(rows, Rows::gathered);
    kernels.push_back(sum);
    append(kernels, router_backward(floors));
    if (has_shared) append(kernels, shared);
    return kernels;
}

}  // namespace

std::vector<KernelCost> kernels_of(const std::string& subject, const std::string& pass,
                                   const MoEConfig& config, const StepSizes& sizes,
                                   DType dtype) {
    // Rows are sent in ℓ, and the projections are kernels of their own
    const bool latent = config.moe_latent_size.has_value();
    MoEConfig sent = config;
    if (latent) {
        sent.hidden_size = config.latent_size();
        sent.moe_latent_size.reset();
        sent.moe_shared_expert_intermediate_size.reset();
    }
    const Formats formats = formats_of(config, dtype);
    const Floors floors(config, sizes, formats), rows(sent, sizes, formats);
    const bool has_shared = config.shared_ffn() > 0;
    Kernels kernels;
    if (pass != "backward")
        append(kernels, forward_of(subject, floors, rows, has_shared));
    if (pass != "forward")
        append(kernels, backward_of(subject, floors, rows, has_shared));
    if (latent && subject == "layer")
        for (const char* name : {"down to latent", "up from latent"}) {
            if (pass != "backward")
                kernels.push_back(projection(name, config, sizes, dtype, 1));
            if (pass != "forward")
                kernels.push_back(projection(name, config, sizes, dtype, 2));
        }
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
