#include "bench/reference.h"

#include <algorithm>
#include <set>

#include "core/glu_interleaving.h"
#include "core/moe_layer.h"
#include "core/transfer.h"

namespace moe::bench {
namespace {

/// Keeps the values that parts are given or held against; all of them would be too many.
class Recorder : public Observer {
  public:
    explicit Recorder(TensorMap& values) : values_(values) {}

    void on_value(Step, const std::string& name, const TensorView& view) override {
        static const std::set<std::string> wanted = {"topk_idx",
                                                     "probs",
                                                     "routing_map",
                                                     "tokens_per_expert",
                                                     "dispatched_hidden_states",
                                                     "dispatched_probs",
                                                     "expert_output",
                                                     "d_expert_output",
                                                     "d_dispatched_hidden_states",
                                                     "d_dispatched_probs",
                                                     "d_hidden_states_routed",
                                                     "d_probs",
                                                     "d_hidden_states_router",
                                                     "shared_output",
                                                     "latent_hidden_states",
                                                     "latent_output",
                                                     "d_latent_output",
                                                     "d_latent_hidden_states"};
        if (wanted.count(name) > 0)
            values_[name] = transfer(view, {MemorySpace::host, view.dtype});
    }

  private:
    TensorMap& values_;
};

}  // namespace

Reference run_reference(const MoEConfig& config, Inputs inputs, DType dtype) {
    Reference reference;
    reference.config = config;
    reference.inputs = std::move(inputs);
    reference.supplier = {"reference_cpu", dtype};
    MoELayer layer(config, ModuleSpec::uniform(reference.supplier),
                   reference.inputs.parameters);
    Recorder recorder(reference.values);
    const RunContext context{.observer = &recorder};
    auto forward = layer.forward(reference.inputs.hidden, {}, context);
    auto backward = layer.backward(reference.inputs.doutput, forward.saved, context);
    reference.values["output"] = forward.output;
    reference.values["d_hidden_states"] = backward.hidden_states;
    reference.gradients = std::move(backward.parameters);
    reference.plain_parameters =
        remove_glu_interleaving(config, reference.inputs.parameters);
    reference.plain_gradients = remove_glu_interleaving(config, reference.gradients);
    reference.sizes = {reference.inputs.hidden.dim(0),
                       reference.at("dispatched_probs").numel()};
    return reference;
}

Workload describe_workload(const Reference& reference, const std::string& model,
                           const std::string& routing) {
    const MoEConfig& c = reference.config;
    const Tensor& counts = reference.at("tokens_per_expert");
    std::vector<std::int64_t> rows(counts.data<std::int32_t>(),
                                   counts.data<std::int32_t>() + counts.numel());
    std::sort(rows.begin(), rows.end());
    return {.model = model,
            .routing = routing,
            .tokens = reference.sizes.num_tokens,
            .H = c.hidden_size,
            .E = c.num_experts(),
            .K = c.moe_router_topk,
            .F = c.ffn(),
            .Fs = c.shared_ffn(),
            .rows = reference.sizes.num_rows,
            .min_rows = rows.front(),
            .median_rows = rows[rows.size() / 2],
            .max_rows = rows.back()};
}

}  // namespace moe::bench
