// moe.Router: who goes where.

#include <nanobind/stl/map.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "core/components.h"
#include "core/error.h"
#include "core/transfer.h"
#include "python/bindings/arrays.h"
#include "python/bindings/checks.h"
#include "python/bindings/layer.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

struct RouterObject : Runner {
    RouterObject(const Config& given, const TensorMap& parameters, ModuleSpec spec,
                 const Groups* groups)
        : Runner(spec, groups), config(given.config) {
        spec.raise_router_dtype(config);
        const TensorMap own = component_parameters(config, parameters, "router.");
        const GroupsPtr of_rank = groups_from(groups);
        router = run([&] {
            return find_tier("spec", spec.router.tier)
                .make_router(config, spec.router.dtype, own, of_rank);
        });
    }

    MoEConfig config;
    std::unique_ptr<Router> router;
};

struct Routed {
    std::shared_ptr<RouterObject> object;
    RunContext context;
    Shape shape;
    Router::Output output;
    Losses losses;
};

std::shared_ptr<Routed> run_router(std::shared_ptr<RouterObject> self,
                                   const Tensor& hidden, const Tensor& mask,
                                   const RunContext& context) {
    const Tensor input = in_three_axes("hidden_states", hidden);
    const std::int64_t S = input.dim(0), B = input.dim(1);
    check_floating("hidden_states", input, {S, B, self->config.hidden_size});
    if (mask.defined() && (mask.dtype() != DType::u8 || mask.shape() != Shape{B, S}))
        reject("padding_mask", to_string(mask.dtype()) + " " + to_string(mask.shape()),
               "must be bool or uint8 (B, S) = " + to_string(Shape{B, S}));
    auto result = std::make_shared<Routed>();
    result->object = self;
    result->context = context;
    result->shape = hidden.shape();
    self->run([&] {
        const Placement& place = self->router->placement();
        const Tensor of_tokens = mask.defined() ? transpose(mask) : Tensor();  // (S, B)
        result->output = self->router->forward(
            transfer(input, place), transfer(of_tokens, place), result->context);
        result->losses = result->output.losses.read();
        if (!result->output.probs.defined()) self->router->make_dense(result->output);
    });
    return result;
}

nb::tuple run_router_backward(Routed& self, const Tensor& dprobs) {
    check_floating("grad_probs", dprobs, self.output.probs.shape());
    Tensor dhidden;
    TensorMap gradients;
    self.object->run([&] {
        Router& router = *self.object->router;
        const Placement& place = router.placement();
        Tensor by_choice = transfer(dprobs, place);
        if (self.output.topk_probs.defined())
            by_choice = router.make_dense_backward(by_choice, *self.output.saved);
        dhidden = Tensor::zeros({dprobs.dim(0), self.object->config.hidden_size},
                                place.dtype, place.space);
        router.backward(dhidden, gradients, by_choice, *self.output.saved, self.context);
    });
    return nb::make_tuple(to_python(dhidden.reshaped(self.shape)), to_python(gradients));
}

}  // namespace

void bind_router(nb::module_& module) {
    nb::class_<Routed>(module, "Routed", "What a Router chose, kept for its backward.")
        .def_prop_ro(
            "probs", [](const Routed& r) { return to_python(r.output.probs); },
            nb::sig("def probs(self) -> Tensor"), "(T, E), 0 where not routed.")
        .def_prop_ro(
            "routing_map",
            [](const Routed& r) { return to_python(r.output.routing_map); },
            nb::sig("def routing_map(self) -> Tensor"), "(T, E) uint8, 1 where routed.")
        .def_prop_ro(
            "losses", [](const Routed& r) { return to_python(r.losses); },
            nb::sig("def losses(self) -> dict[str, float]"), "Before their coefficients.")
        .def(
            "backward",
            [](Routed& self, nb::handle dprobs) {
                return run_router_backward(self, tensor_from(dprobs, "grad_probs"));
            },
            nb::arg("grad_probs").none(),
            nb::sig("def backward(self, grad_probs: ArrayLike) "
                    "-> tuple[Tensor, dict[str, Tensor]]"),
            "From the gradient by probs (T, E): that by the hidden states, and those of "
            "router.weight and router.bias; the auxiliary losses' are within.");

    nb::class_<RouterObject>(module, "Router",
                             R"(Chooses K experts of each token, and their weights.

parameters: of them only those named ``router.…``.
Source: Megatron's router.py, TopKRouter. Raises InputError as MoELayer does.)")
        .def(
            "__init__",
            [](RouterObject* self, const Config& config, nb::handle parameters,
               nb::handle spec, const Groups* groups) {
                new (self) RouterObject(config, tensors_from(parameters, "parameters"),
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
            [](std::shared_ptr<RouterObject> self, nb::handle hidden, nb::handle mask,
               bool training, double scale, nb::handle token_ids, nb::handle target) {
                return run_router(
                    self, tensor_from(hidden, "hidden_states"),
                    tensor_or_none(mask, "padding_mask"),
                    context_from(self->config, training, scale, token_ids, target));
            },
            nb::arg("hidden_states").none(), nb::arg("padding_mask") = nb::none(),
            nb::kw_only(), nb::arg("training") = true,
            nb::arg("main_loss_backward_scale") = 1.0, nb::arg("token_ids") = nb::none(),
            nb::arg("target_topk_idx") = nb::none(),
            nb::sig("def forward(self, hidden_states: ArrayLike, "
                    "padding_mask: ArrayLike | None = None, *, training: bool = True, "
                    "main_loss_backward_scale: float = 1.0, "
                    "token_ids: ArrayLike | None = None, "
                    "target_topk_idx: ArrayLike | None = None) -> Routed"),
            "Arguments and errors as of MoELayer.forward().")
        .def(
            "update_expert_bias",
            [](RouterObject& self) {
                return to_python(
                    self.run([&] { return self.router->update_expert_bias(); }));
            },
            nb::sig("def update_expert_bias(self) -> Tensor | None"),
            "As MoELayer.update_expert_bias().");
}

}  // namespace moe::python
