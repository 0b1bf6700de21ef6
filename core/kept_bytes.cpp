#include "core/kept_bytes.h"

#include "core/buffer_pool.h"
#include "core/transfer.h"

namespace moe {

std::int64_t count_kept_bytes(MoELayer& layer, const Tensor& hidden,
                              const RunContext& context) {
    const ComponentSpec& taker = layer.spec().dispatcher;
    const Placement place = {find_tier("spec", taker.tier).memory_space(), taker.dtype};
    const std::int64_t before = tensor_bytes();
    MoELayer::Forward forward =
        layer.forward(transfer(hidden, place).clone(), {}, context);
    forward.losses.read();
    forward.losses = {};
    forward.output = {};
    return tensor_bytes() - before;
}

Floor kept_by_formula(const MoEConfig& config, const StepSizes& sizes,
                      const ModuleSpec& spec) {
    ModuleSpec uniform = ModuleSpec::uniform(spec.experts), raised = spec;
    for (ModuleSpec* each : {&uniform, &raised}) each->raise_router_dtype(config);
    if (raised != uniform) return {};
    const DType dtype = spec.experts.dtype;
    return Floors(config, sizes, formats_of(config, dtype))
        .kept(find_tier("spec", spec.experts.tier)
                  .kept(config, raised.router.dtype, dtype));
}

}  // namespace moe
