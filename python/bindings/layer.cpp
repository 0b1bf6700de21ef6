// moe.MoELayer: the whole layer, forward and backward.

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <fmt/ranges.h>

#include "cli/compare/closeness.h"
#include "core/error.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "python/bindings/arrays.h"
#include "python/bindings/layer.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

void require_known(const MoEConfig& config, const TensorMap& parameters) {
    const auto shapes = parameter_shapes(config);
    for (const auto& [name, tensor] : parameters) {
        if (shapes.contains(name)) continue;
        std::vector<std::string> known;
        for (const auto& [own, shape] : shapes) known.push_back(own);
        reject(name, "given", fmt::format("this layer has {}", fmt::join(known, ", ")));
    }
}

}  // namespace

Layer::Layer(const Config& config, TensorMap given, const ModuleSpec& spec,
             const Groups* of_rank)
    : Runner(spec, of_rank), groups(groups_from(of_rank)), parameters(std::move(given)) {
    require_known(config.config, parameters);
    layer = run([&] {
        return std::make_unique<MoELayer>(config.config, spec, parameters, groups);
    });
}

Layer::Layer(const Layer& like, TensorMap given)
    : Runner(like), groups(like.groups), parameters(std::move(given)) {
    require_known(like.layer->config(), parameters);
    layer = run([&] {
        return std::make_unique<MoELayer>(like.layer->config(), like.layer->spec(),
                                          parameters, groups);
    });
}

Tensor in_three_axes(const std::string& field, const Tensor& tensor) {
    if (tensor.shape().size() == 3) return tensor;
    if (tensor.shape().size() != 2)
        reject(field, to_string(tensor.shape()),
               "must be (S, B, H), or (T, H) with B = 1");
    return tensor.reshaped({tensor.dim(0), 1, tensor.dim(1)});
}

RunContext context_from(const MoEConfig& config, bool training,
                        double main_loss_backward_scale, nb::handle token_ids,
                        nb::handle target_topk_idx) {
    RunContext context;
    context.training = training;
    context.main_loss_backward_scale = main_loss_backward_scale;
    context.token_ids = tensor_or_none(token_ids, "token_ids");
    if (context.token_ids.defined() && !config.moe_router_hash_vocab_size)
        reject("token_ids", to_string(context.token_ids.shape()),
               "must be left out without moe_router_hash_vocab_size");
    context.target_topk_idx = tensor_or_none(target_topk_idx, "target_topk_idx");
    return context;
}

std::shared_ptr<Forward> run_forward(std::shared_ptr<Layer> layer, const Tensor& hidden,
                                     const Tensor& padding_mask,
                                     const RunContext& context) {
    auto result = std::make_shared<Forward>();
    result->layer = layer;
    result->context = context;
    result->shape = hidden.shape();
    const Tensor input = in_three_axes("hidden_states", hidden);
    layer->run([&] {
        auto made = layer->layer->forward(input, padding_mask, context);
        result->losses = made.losses.read();
        result->saved = std::move(made.saved);
        result->output = made.output.reshaped(result->shape);
    });
    return result;
}

Gradients run_backward(Forward& forward, const Tensor& grad_output,
                       const RunContext& context) {
    if (grad_output.shape() != forward.shape)
        reject("grad_output", to_string(grad_output.shape()),
               "must have the shape of the output, " + to_string(forward.shape));
    const Tensor doutput = in_three_axes("grad_output", grad_output);
    return forward.layer->run([&] {
        auto made = forward.layer->layer->backward(doutput, forward.saved, context);
        return Gradients{made.hidden_states.reshaped(forward.shape),
                         std::move(made.parameters)};
    });
}

nb::dict to_python(const std::map<std::string, double>& losses) {
    nb::dict result;
    for (const auto& [name, value] : losses) result[name.c_str()] = value;
    return result;
}

namespace {

Tensor as_mask(nb::handle mask) {
    return tensor_or_none(mask, "padding_mask");
}

double relative_error(nb::handle got, nb::handle expected) {
    const Tensor a = tensor_from(got, "got"), b = tensor_from(expected, "expected");
    if (a.shape() != b.shape())
        reject("got", to_string(a.shape()),
               "must have the shape of what is expected, " + to_string(b.shape()));
    const Unlocked unlocked;
    return measure_closeness(a, b).error;
}

void bind_forward(nb::module_& module) {
    nb::class_<Gradients>(module, "Gradients", "What a backward made.")
        .def_prop_ro(
            "hidden_states",
            [](const Gradients& g) { return to_python(g.hidden_states); },
            nb::sig("def hidden_states(self) -> Tensor"), "Shape of the hidden states.")
        .def_prop_ro(
            "parameters", [](const Gradients& g) { return to_python(g.parameters); },
            nb::sig("def parameters(self) -> dict[str, Tensor]"),
            "By name, each where its component works.");

    nb::class_<Forward>(module, "Forward",
                        "One forward of a MoELayer, kept for its backward.")
        .def_prop_ro(
            "output", [](const Forward& f) { return to_python(f.output); },
            nb::sig("def output(self) -> Tensor"),
            "Shape of the hidden states, where the dispatcher works.")
        .def_prop_ro(
            "losses", [](const Forward& f) { return to_python(f.losses); },
            nb::sig("def losses(self) -> dict[str, float]"),
            "Auxiliary losses before their coefficients; empty outside training.")
        .def(
            "backward",
            [](Forward& self, nb::handle grad_output,
               std::optional<double> main_loss_backward_scale) {
                RunContext context = self.context;
                if (main_loss_backward_scale)
                    context.main_loss_backward_scale = *main_loss_backward_scale;
                return run_backward(self, tensor_from(grad_output, "grad_output"),
                                    context);
            },
            nb::arg("grad_output").none(),
            nb::arg("main_loss_backward_scale") = nb::none(),
            nb::sig("def backward(self, grad_output: ArrayLike, "
                    "main_loss_backward_scale: float | None = None) -> Gradients"),
            "Gradients of sum(output * grad_output) and the auxiliary losses. It may be "
            "called again.\n\n"
            "grad_output: shape of the output, floating-point.\n"
            "main_loss_backward_scale: of the losses' gradients (Megatron's "
            "MoEAuxLossAutoScaler); that of the forward if left out.");
}

}  // namespace

void bind_layer(nb::module_& module) {
    bind_forward(module);
    nb::class_<Layer>(module, "MoELayer", R"(Megatron's MoE layer, forward and backward.

Router, dispatcher, experts and shared experts, wired as in moe_layer.py (MoELayer). The
residual addition is outside. Parameters that have the dtype and memory of the component
that wants them are shared, not copied: what is written to them later, the layer has.

config: a MoEConfig.
parameters: dict of arrays by Megatron's names, see parameter_shapes(), in any dtype. A
buffer that is left out (router.expert_bias) starts at zero.
spec: who supplies the components; a ModuleSpec or its text.
groups: of this rank, within run_ranks(); None for a layer on one rank.

Raises InputError for a parameter that lacks, is unknown or has another shape, and for a
tier or dtype that is not there. One call runs at a time; Python's lock is released while it does.)")
        .def(
            "__init__",
            [](Layer* self, const Config& config, nb::handle parameters, nb::handle spec,
               const Groups* groups) {
                new (self) Layer(config, tensors_from(parameters, "parameters"),
                                 spec_from(spec), groups);
            },
            nb::arg("config"), nb::arg("parameters").none(),
            nb::arg("spec") = "reference_cpu:fp32", nb::arg("groups") = nb::none(),
            nb::sig("def __init__(self, config: MoEConfig, "
                    "parameters: dict[str, ArrayLike], "
                    "spec: str | ModuleSpec = 'reference_cpu:fp32', "
                    "groups: ProcessGroups | None = None) -> None"))
        .def(
            "forward",
            [](std::shared_ptr<Layer> self, nb::handle hidden, nb::handle mask,
               bool training, double scale, nb::handle token_ids, nb::handle target) {
                return run_forward(self, tensor_from(hidden, "hidden_states"),
                                   as_mask(mask),
                                   context_from(self->layer->config(), training, scale,
                                                token_ids, target));
            },
            nb::arg("hidden_states").none(), nb::arg("padding_mask") = nb::none(),
            nb::kw_only(), nb::arg("training") = true,
            nb::arg("main_loss_backward_scale") = 1.0, nb::arg("token_ids") = nb::none(),
            nb::arg("target_topk_idx") = nb::none(),
            nb::sig("def forward(self, hidden_states: ArrayLike, "
                    "padding_mask: ArrayLike | None = None, *, training: bool = True, "
                    "main_loss_backward_scale: float = 1.0, "
                    "token_ids: ArrayLike | None = None, "
                    "target_topk_idx: ArrayLike | None = None) -> Forward"),
            R"(Runs the layer; its result keeps what the backward needs.

hidden_states: (S, B, H), or (T, H) for B = 1; float64, float32 or bfloat16.
padding_mask: (B, S) bool or uint8, true where padding.
training: losses are computed and experts counted for the bias.
token_ids: (B, S) int64, with moe_router_hash_vocab_size.
target_topk_idx: (T, K) int64, with moe_enable_routing_replay.

Raises InputError on wrong shapes and on a NaN or infinite logit.)")
        .def(
            "with_parameters",
            [](const Layer& self, nb::handle parameters) {
                return std::make_shared<Layer>(self,
                                               tensors_from(parameters, "parameters"));
            },
            nb::arg("parameters").none(),
            nb::sig("def with_parameters(self, parameters: dict[str, ArrayLike]) "
                    "-> MoELayer"),
            "Another layer of this config and spec, which works in the memory that this "
            "one has left and takes turns with it. Nothing has been counted in it.")
        .def(
            "update_expert_bias",
            [](Layer& self) {
                return to_python(
                    self.run([&] { return self.layer->update_expert_bias(); }));
            },
            nb::sig("def update_expert_bias(self) -> Tensor | None"),
            "Once per optimizer step: moves the expert bias (E) towards balance and "
            "returns it; None without one. Source: finalize_model_grads.py.")
        .def(
            "update_qb_beta",
            [](Layer& self) {
                return to_python(self.run([&] { return self.layer->update_qb_beta(); }));
            },
            nb::sig("def update_qb_beta(self) -> Tensor | None"),
            "The same of quantile balancing.")
        .def(
            "reset_global_aux_loss_tracker",
            [](Layer& self) {
                self.run([&] { self.layer->reset_global_aux_loss_tracker(); });
            },
            "Once per optimizer step: forgets the counts of the global auxiliary loss.")
        .def_prop_ro(
            "spec", [](const Layer& self) { return self.layer->spec(); },
            "With the router's dtype as moe_router_dtype has raised it.")
        .def("__repr__",
             [](const Layer& self) {
                 return "moe.MoELayer(" + to_string(self.layer->spec()) + ")";
             })
        .def_prop_ro(
            "parameters", [](const Layer& self) { return to_python(self.parameters); },
            nb::sig("def parameters(self) -> dict[str, Tensor]"), "As they were given.");

    module.def(
        "relative_error", &relative_error, nb::arg("got").none(),
        nb::arg("expected").none(),
        nb::sig("def relative_error(got: ArrayLike, expected: ArrayLike) -> float"),
        "‖got - expected‖ / ‖expected‖, how tiers are compared. Any dtype, on the "
        "host or elsewhere; 0 / 0 is 0, and x / 0 and NaN are infinite.");
}

}  // namespace moe::python
