// moe.Experts and moe.SharedExperts: the products.

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "core/components.h"
#include "core/error.h"
#include "core/glu_interleaving.h"
#include "core/moe_layer.h"
#include "core/transfer.h"
#include "python/bindings/arrays.h"
#include "python/bindings/checks.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

struct ExpertsObject : Runner {
    ExpertsObject(const Config& given, const TensorMap& parameters,
                  const ModuleSpec& spec)
        : Runner(spec, nullptr), config(given.config) {
        const TensorMap own = component_parameters(config, parameters, "experts.");
        experts = run([&] {
            return find_tier("spec", spec.experts.tier)
                .make_experts(config, spec.experts.dtype, own);
        });
    }

    MoEConfig config;
    std::unique_ptr<Experts> experts;
};

struct ExpertsForward {
    std::shared_ptr<ExpertsObject> object;
    Experts::Output output;
};

std::shared_ptr<ExpertsForward> run_experts(std::shared_ptr<ExpertsObject> self,
                                            const Tensor& rows, const Tensor& counts,
                                            const Tensor& row_probs) {
    check_rows("rows", rows, self->config.latent_size());
    check_floating("row_probs", row_probs, {rows.dim(0)});
    const Tensor per_expert = read_counts(self->config, counts, rows.dim(0));
    auto result = std::make_shared<ExpertsForward>();
    result->object = self;
    self->run([&] {
        const Placement& place = self->experts->placement();
        result->output = self->experts->forward(
            to_experts(rows, *self->experts), per_expert,
            transfer(row_probs, probs_placement(place)), RunContext{});
    });
    return result;
}

nb::tuple run_experts_backward(ExpertsForward& self, const Tensor& doutput) {
    check_floating("grad_rows", doutput, self.output.rows.shape());
    Experts::Gradients made;
    TensorMap gradients;
    self.object->run([&] {
        Experts& experts = *self.object->experts;
        made = experts.backward(gradients, to_experts(doutput, experts),
                                *self.output.saved, RunContext{});
        experts.finish_wgrad(RunContext{});
        gradients = restore_glu_interleaving(self.object->config, gradients);
    });
    return nb::make_tuple(to_python(made.drows), to_python(made.drow_probs),
                          to_python(gradients));
}

struct SharedObject : Runner {
    SharedObject(const Config& given, const TensorMap& parameters, const ModuleSpec& spec,
                 const Groups* groups)
        : Runner(spec, groups), config(given.config) {
        if (config.shared_ffn() == 0)
            reject("moe_shared_expert_intermediate_size", "none",
                   "must be given: this layer has no shared experts");
        const TensorMap own = component_parameters(config, parameters, "shared_experts.");
        const GroupsPtr of_rank = groups_from(groups);
        shared = run([&] {
            return find_tier("spec", spec.shared_experts.tier)
                .make_shared_experts(config, spec.shared_experts.dtype, own, of_rank);
        });
    }

    MoEConfig config;
    std::unique_ptr<SharedExperts> shared;
};

struct SharedForward {
    std::shared_ptr<SharedObject> object;
    SharedExperts::Output output;
};

std::shared_ptr<SharedForward> run_shared(std::shared_ptr<SharedObject> self,
                                          const Tensor& hidden) {
    check_rows("hidden_states", hidden, self->config.hidden_size);
    auto result = std::make_shared<SharedForward>();
    result->object = self;
    self->run([&] {
        result->output = self->shared->forward(
            transfer(hidden, self->shared->placement()), RunContext{});
    });
    return result;
}

nb::tuple run_shared_backward(SharedForward& self, const Tensor& doutput) {
    check_floating("grad_output", doutput, self.output.output.shape());
    Tensor dhidden;
    TensorMap gradients;
    self.object->run([&] {
        SharedExperts& shared = *self.object->shared;
        const Placement& place = shared.placement();
        dhidden = Tensor::zeros({doutput.dim(0), self.object->config.hidden_size},
                                place.dtype, place.space);
        shared.backward(dhidden, gradients, transfer(doutput, place), *self.output.saved,
                        RunContext{});
        gradients = restore_glu_interleaving(self.object->config, gradients);
    });
    return nb::make_tuple(to_python(dhidden), to_python(gradients));
}

void bind_shared_experts(nb::module_& module) {
    nb::class_<SharedForward>(module, "SharedExpertsForward",
                              "One forward of SharedExperts, kept for its backward.")
        .def_prop_ro(
            "output", [](const SharedForward& f) { return to_python(f.output.output); },
            nb::sig("def output(self) -> Tensor"), "(T, H).")
        .def(
            "backward",
            [](SharedForward& self, nb::handle doutput) {
                return run_shared_backward(self, tensor_from(doutput, "grad_output"));
            },
            nb::arg("grad_output").none(),
            nb::sig("def backward(self, grad_output: ArrayLike) "
                    "-> tuple[Tensor, dict[str, Tensor]]"),
            "Gradients by the hidden states (T, H), and of the parameters.");

    nb::class_<SharedObject>(module, "SharedExperts",
                             R"(The MLP that every token visits.

parameters: of them only those named ``shared_experts.…``.
Source: Megatron's shared_experts.py, SharedExpertMLP. InputError as of MoELayer.)")
        .def(
            "__init__",
            [](SharedObject* self, const Config& config, nb::handle parameters,
               nb::handle spec, const Groups* groups) {
                new (self) SharedObject(config, tensors_from(parameters, "parameters"),
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
            [](std::shared_ptr<SharedObject> self, nb::handle hidden) {
                return run_shared(self, tensor_from(hidden, "hidden_states"));
            },
            nb::arg("hidden_states").none(),
            nb::sig("def forward(self, hidden_states: ArrayLike) "
                    "-> SharedExpertsForward"),
            "hidden_states: (T, H).");
}

}  // namespace

void bind_experts(nb::module_& module) {
    nb::class_<ExpertsForward>(module, "ExpertsForward",
                               "One forward of Experts, kept for its backward.")
        .def_prop_ro(
            "rows", [](const ExpertsForward& f) { return to_python(f.output.rows); },
            nb::sig("def rows(self) -> Tensor"),
            "(N, H), already weighted by the probabilities.")
        .def(
            "backward",
            [](ExpertsForward& self, nb::handle doutput) {
                return run_experts_backward(self, tensor_from(doutput, "grad_rows"));
            },
            nb::arg("grad_rows").none(),
            nb::sig("def backward(self, grad_rows: ArrayLike) "
                    "-> tuple[Tensor, Tensor, dict[str, Tensor]]"),
            "From that by the output (N, H): gradients by the rows, by row_probs (N), "
            "and "
            "of the parameters.");

    nb::class_<ExpertsObject>(module, "Experts",
                              R"(The routed experts: an MLP per expert over its rows.

parameters: of them only those named ``experts.…``.
Source: Megatron's experts.py, TEGroupedMLP. Raises InputError as MoELayer does.)")
        .def(
            "__init__",
            [](ExpertsObject* self, const Config& config, nb::handle parameters,
               nb::handle spec) {
                new (self) ExpertsObject(config, tensors_from(parameters, "parameters"),
                                         spec_from(spec));
            },
            nb::arg("config"), nb::arg("parameters").none(),
            nb::arg("spec") = "reference_cpu:fp32",
            nb::sig("def __init__(self, config: MoEConfig, "
                    "parameters: dict[str, ArrayLike], "
                    "spec: str | ModuleSpec = 'reference_cpu:fp32') -> None"))
        .def(
            "forward",
            [](std::shared_ptr<ExpertsObject> self, nb::handle rows, nb::handle counts,
               nb::handle row_probs) {
                return run_experts(self, tensor_from(rows, "rows"),
                                   tensor_from(counts, "tokens_per_expert"),
                                   tensor_from(row_probs, "row_probs"));
            },
            nb::arg("rows").none(), nb::arg("tokens_per_expert").none(),
            nb::arg("row_probs").none(),
            nb::sig("def forward(self, rows: ArrayLike, tokens_per_expert: ArrayLike, "
                    "row_probs: ArrayLike) -> ExpertsForward"),
            "rows: (N, H) in the order of the experts.\n"
            "tokens_per_expert: (E) int32 or int64, summing to N.\n"
            "row_probs: (N).");
    bind_shared_experts(module);
}

}  // namespace moe::python
