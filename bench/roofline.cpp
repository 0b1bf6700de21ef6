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

Kernels forward_of(const std::string& subject, const Floors& floors, bool has_shared) {
    if (subject == "router") return router_forward(floors);
    // Alone, a dispatcher writes what a fused product would gather.
    if (subject == "dispatcher")
        return {kernel("gather rows", floors.step(Step::dispatch)),
                kernel("sum rows", floors.step(Step::combine))};
    if (subject == "experts") return experts_forward(floors, Rows::dispatched);
    const Kernels shared = experts_forward(floors.shared_experts(), Rows::dispatched);
    if (subject == "shared_experts") return shared;
    MOE_CHECK(subject == "layer");
    Kernels kernels = router_forward(floors);
    append(kernels, experts_forward(floors, Rows::gathered));
    kernels.push_back(kernel("sum rows", floors.step(Step::combine)));
    if (has_shared) append(kernels, shared);
    return kernels;
}

Kernels backward_of(const std::string& subject, const Floors& floors, bool has_shared) {
    if (subject == "router") return router_backward(floors);
    const KernelCost sum = kernel("sum rows", floors.step(Step::dispatch_backward));
    if (subject == "dispatcher")
        return {kernel("gather rows", floors.step(Step::combine_backward)), sum};
    if (subject == "experts") return experts_backward(floors, Rows::dispatched);
    const Kernels shared = experts_backward(floors.shared_experts(), Rows::dispatched);
    if (subject == "shared_experts") return shared;
    MOE_CHECK(subject == "layer");
    Kernels kernels = experts_backward(floors, Rows::gathered);
    kernels.push_back(sum);
    append(kernels, router_backward(floors));
    if (has_shared) append(kernels, shared);
    return kernels;
}

}  // namespace

std::vector<KernelCost> kernels_of(const std::string& subject, const std::string& pass,
                                   const MoEConfig& config, const StepSizes& sizes,
                                   DType dtype) {
    const Floors floors(config, sizes, formats_of(config, dtype));
    const bool has_shared = config.shared_ffn() > 0;
    Kernels kernels;
    if (pass != "backward") append(kernels, forward_of(subject, floors, has_shared));
    if (pass != "forward") append(kernels, backward_of(subject, floors, has_shared));
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
