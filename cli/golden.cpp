// golden.cpp: run a golden case and compare. Reading it is in golden_file.cpp.

#include "cli/golden.h"

#include "cli/closeness.h"
#include "core/moe_layer.h"
#include "core/transfer.h"

namespace moe {
namespace {

/// Keeps the intermediate values that golden files may hold.
class Recorder : public Observer {
  public:
    explicit Recorder(TensorMap& values) : values_(values) {}
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        if (!is_backward(step)) values_["expect." + name] = transfer(view, host(view));
    }

  private:
    static Placement host(const TensorView& view) {
        return {MemorySpace::host, view.dtype};
    }
    TensorMap& values_;
};

TensorCheck check(const GoldenCase& golden, const std::string& name, const TensorMap& got,
                  DType dtype) {
    TensorCheck result{.name = name, .detail = "the layer has no such value"};
    const auto found = got.find(name);
    if (found == got.end()) return result;
    const Tensor& expected = golden.expected.at(name);
    const Tensor& value = found->second;

    if (is_floating(expected.dtype())) {
        double source_error = 0.0;
        if (const auto errors = golden.source_errors.find(to_string(dtype));
            errors != golden.source_errors.end())
            if (const auto error = errors->second.find(name);
                error != errors->second.end())
                source_error = error->second;
        result.bound = golden_bound(dtype, name, source_error);
    }
    const Closeness closeness = measure_closeness(value, expected);
    result.error = closeness.error;
    result.ok = closeness.within(result.bound);
    result.detail = result.ok ? "" : describe_worst(closeness, value, expected);
    return result;
}

}  // namespace

TensorMap run_golden(const GoldenCase& golden, const ModuleSpec& spec) {
    TensorMap values;
    Recorder recorder(values);
    RunContext context{.observer = &recorder};
    MoELayer layer(golden.config, spec, golden.parameters);

    auto forward = layer.forward(golden.hidden_states, golden.padding_mask, context);
    values["expect.output"] = forward.output;
    for (const auto& [name, loss] : forward.losses)
        values["expect.loss." + name] = Tensor::from<double>({}, {loss});
    if (const Tensor bias = layer.update_expert_bias(); bias.defined())
        values["expect.expert_bias_updated"] = bias;

    if (!golden.grad_output.defined()) return values;
    auto gradients = layer.backward(golden.grad_output, forward.saved, context);
    values["expect.grad.hidden_states"] = gradients.hidden_states;
    for (const auto& [name, gradient] : gradients.parameters)
        values["expect.grad." + name] = gradient;
    return values;
}

CaseResult verify_golden(const GoldenCase& golden, const ModuleSpec& spec) {
    CaseResult result{golden.name, spec, true, {}};
    const TensorMap got = run_golden(golden, spec);
    for (const auto& [name, expected] : golden.expected) {
        result.checks.push_back(check(golden, name, got, spec.coarsest_dtype()));
        result.ok = result.ok && result.checks.back().ok;
    }
    return result;
}

}  // namespace moe
