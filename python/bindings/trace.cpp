// moe.trace(): the twenty steps of a layer, with what each of them made.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "core/error.h"
#include "core/transfer.h"
#include "python/bindings/arrays.h"
#include "python/bindings/layer.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

/// moe.TraceStep
struct TraceStep {
    Step step;
    std::vector<std::pair<std::string, Tensor>> values;  // on the host
    double seconds = 0.0;
    std::vector<std::string> host_waits;
};

/// moe.Trace
struct Trace {
    std::vector<TraceStep> steps;  // those that had something to tell, in their order
    bool emulated = false;
    std::shared_ptr<Forward> forward;
    std::optional<Gradients> gradients;
};

/// Copies every value to the host. Times of a fused run of steps go to its first.
class Recorder : public Observer {
  public:
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        Tensor copied = Tensor::empty(view.shape, view.dtype);
        copy(copied.view(), view);
        of(step).values.emplace_back(name, copied);
    }
    void on_time(const Steps& steps, double seconds) override {
        of(steps.first).seconds += seconds;
    }
    void on_host_wait(Step step, const std::string& where) override {
        of(step).host_waits.push_back(where);
    }
    std::vector<TraceStep> take() {
        std::sort(steps_.begin(), steps_.end(),
                  [](const auto& a, const auto& b) { return a.step < b.step; });
        return std::move(steps_);
    }

  private:
    TraceStep& of(Step step) {
        for (TraceStep& known : steps_)
            if (known.step == step) return known;
        steps_.push_back({step, {}, 0.0, {}});
        return steps_.back();
    }

    std::vector<TraceStep> steps_;
};

Trace trace(std::shared_ptr<Layer> layer, const Tensor& hidden, const Tensor& doutput,
            const Tensor& mask, RunContext context) {
    Recorder recorder;
    context.observer = &recorder;
    Trace result;
    result.emulated = layer->layer->spec().is_emulated();
    result.forward = run_forward(layer, hidden, mask, context);
    if (doutput.defined())
        result.gradients = run_backward(*result.forward, doutput, context);
    result.forward->context.observer = nullptr;
    result.steps = recorder.take();
    return result;
}

nb::dict values_of(const TraceStep& step) {
    nb::dict result;
    for (const auto& [name, tensor] : step.values)
        result[name.c_str()] = to_python(tensor);
    return result;
}

nb::object value_named(const Trace& trace, const std::string& name) {
    std::string known;
    for (const TraceStep& step : trace.steps)
        for (const auto& [own, tensor] : step.values) {
            if (own == name) return to_python(tensor);
            known += (known.empty() ? "" : ", ") + own;
        }
    reject("value", name, "this trace has " + known);
}

nb::list value_names(const Trace& trace) {
    nb::list names;
    for (const TraceStep& step : trace.steps)
        for (const auto& [name, tensor] : step.values) names.append(name);
    return names;
}

void bind_steps(nb::module_& module) {
    nb::enum_<Step> steps(
        module, "Step", "The twenty steps of the layer, numbered as in docs and tiers.");
    steps.value("shared_experts", Step::shared_experts)
        .value("gating", Step::gating)
        .value("routing", Step::routing)
        .value("token_dropping", Step::token_dropping)
        .value("auxiliary_losses", Step::auxiliary_losses)
        .value("dispatch", Step::dispatch)
        .value("fc1", Step::fc1)
        .value("activation", Step::activation)
        .value("fc2", Step::fc2)
        .value("combine", Step::combine)
        .value("combine_backward", Step::combine_backward)
        .value("fc2_backward", Step::fc2_backward)
        .value("activation_backward", Step::activation_backward)
        .value("fc1_backward", Step::fc1_backward)
        .value("dispatch_backward", Step::dispatch_backward)
        .value("auxiliary_losses_backward", Step::auxiliary_losses_backward)
        .value("token_dropping_backward", Step::token_dropping_backward)
        .value("routing_backward", Step::routing_backward)
        .value("gating_backward", Step::gating_backward)
        .value("shared_experts_backward", Step::shared_experts_backward);

    nb::class_<TraceStep>(module, "TraceStep", "What one step made.")
        .def_ro("step", &TraceStep::step)
        .def_prop_ro(
            "number", [](const TraceStep& s) { return int(s.step); },
            "1 to 20; step n is undone by step 21 - n.")
        .def_prop_ro(
            "circled", [](const TraceStep& s) { return circled(s.step); },
            "\"①\" … \"⑳\".")
        .def_prop_ro("title", [](const TraceStep& s) { return title(s.step); })
        .def_prop_ro("values", &values_of,
                     nb::sig("def values(self) -> dict[str, Tensor]"),
                     "Copies on the host, by names that are the same in every tier.")
        .def_ro("host_waits", &TraceStep::host_waits,
                "Megatron's names of the places where the host waits for the device.")
        .def("__repr__", [](const TraceStep& s) {
            std::string names;
            for (const auto& [name, tensor] : s.values)
                names += " " + name + to_string(tensor.shape());
            return circled(s.step) + " " + title(s.step) + ":" + names;
        });
}

}  // namespace

void bind_trace(nb::module_& module) {
    bind_steps(module);
    nb::class_<Trace>(module, "Trace", "A forward, and a backward if asked for, watched.")
        .def_ro("steps", &Trace::steps, "Those that made something, in their order.")
        .def(
            "seconds",
            [](const Trace& self) {
                nb::dict result;
                if (self.emulated)
                    reject("seconds", "of the CPU executor",
                           "say nothing about a GPU, and are not shown");
                for (const TraceStep& step : self.steps)
                    if (step.seconds > 0) result[nb::cast(step.step)] = step.seconds;
                return result;
            },
            nb::sig("def seconds(self) -> dict[Step, float]"),
            "How long each step took, watching included; a fused run of steps under its "
            "first. InputError where kernels ran on the CPU executor.")
        .def("__getitem__", &value_named, nb::arg("name"),
             nb::sig("def __getitem__(self, name: str) -> Tensor"),
             "The first value of that name: trace[\"logits\"].")
        .def("keys", &value_names, nb::sig("def keys(self) -> list[str]"),
             "Names of values, in their order.")
        .def(
            "__iter__", [](const Trace& self) { return nb::iter(value_names(self)); },
            nb::sig("def __iter__(self) -> collections.abc.Iterator[str]"))
        .def_prop_ro("forward", [](const Trace& t) { return t.forward; })
        .def_prop_ro(
            "gradients", [](const Trace& t) { return t.gradients; },
            "None without grad_output.");
    module.def(
        "trace",
        [](std::shared_ptr<Layer> layer, nb::handle hidden, nb::handle doutput,
           nb::handle mask, bool training, nb::handle token_ids, nb::handle target) {
            return trace(
                layer, tensor_from(hidden, "hidden_states"),
                tensor_or_none(doutput, "grad_output"),
                tensor_or_none(mask, "padding_mask"),
                context_from(layer->layer->config(), training, 1.0, token_ids, target));
        },
        nb::arg("layer"), nb::arg("hidden_states").none(),
        nb::arg("grad_output") = nb::none(), nb::arg("padding_mask") = nb::none(),
        nb::kw_only(), nb::arg("training") = true, nb::arg("token_ids") = nb::none(),
        nb::arg("target_topk_idx") = nb::none(),
        nb::sig("def trace(layer: MoELayer, hidden_states: ArrayLike, "
                "grad_output: ArrayLike | None = None, "
                "padding_mask: ArrayLike | None = None, *, training: bool = True, "
                "token_ids: ArrayLike | None = None, "
                "target_topk_idx: ArrayLike | None = None) -> Trace"),
        "Runs the layer and keeps a copy of every intermediate value. Arguments and "
        "errors as of MoELayer.forward(); with grad_output also the backward.");
}

}  // namespace moe::python
