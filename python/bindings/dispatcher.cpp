// moe.TokenDispatcher: tokens to their experts and back, on one rank or over several.

#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include "core/components.h"
#include "core/error.h"
#include "core/transfer.h"
#include "python/bindings/arrays.h"
#include "python/bindings/checks.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

struct DispatcherObject : Runner {
    DispatcherObject(const Config& given, const ModuleSpec& spec, const Groups* groups)
        : Runner(spec, groups), config(given.config) {
        const GroupsPtr of_rank = groups_from(groups);
        dispatcher = run([&] {
            return find_tier("spec", spec.dispatcher.tier)
                .make_dispatcher(config, spec.dispatcher.dtype, of_rank);
        });
    }

    MoEConfig config;
    std::unique_ptr<TokenDispatcher> dispatcher;
};

/// One dispatch; combine and both backwards belong to it.
struct DispatchObject {
    std::shared_ptr<DispatcherObject> object;
    std::int64_t num_tokens;
    TokenDispatcher::Dispatched dispatched;
    Tensor rows;

    template <typename Action>
    auto run(const Action& action) {
        return object->run(
            [&] { return action(*object->dispatcher, object->dispatcher->placement()); });
    }
};

std::shared_ptr<DispatchObject> dispatch(std::shared_ptr<DispatcherObject> self,
                                         const Tensor& hidden, const Tensor& probs,
                                         const Tensor& map) {
    check_rows("hidden_states", hidden, self->config.latent_size());
    check_floating("probs", probs, {hidden.dim(0), self->config.num_experts()});
    check_routing_map(self->config, map, hidden.dim(0));
    auto result = std::make_shared<DispatchObject>();
    result->object = self;
    result->num_tokens = hidden.dim(0);
    result->run([&](TokenDispatcher& dispatcher, const Placement& place) {
        result->dispatched = dispatcher.dispatch(transfer(hidden, place),
                                                 transfer(probs, probs_placement(place)),
                                                 transfer(map, place), RunContext{});
        result->rows = result->dispatched.rows.plain();
    });
    return result;
}

Tensor combine(DispatchObject& self, const Tensor& rows, const Tensor& shared_output) {
    check_floating("rows", rows, self.rows.shape());
    if (shared_output.defined())
        check_floating("shared_output", shared_output,
                       {self.num_tokens, self.rows.dim(1)});
    return self.run([&](TokenDispatcher& dispatcher, const Placement& place) {
        return dispatcher.combine(transfer(rows, place), transfer(shared_output, place),
                                  *self.dispatched.saved, RunContext{});
    });
}

Tensor combine_backward(DispatchObject& self, const Tensor& doutput) {
    check_floating("grad_output", doutput, {self.num_tokens, self.rows.dim(1)});
    return self.run([&](TokenDispatcher& dispatcher, const Placement& place) {
        return dispatcher
            .combine_backward(transfer(doutput, place), *self.dispatched.saved,
                              RunContext{})
            .plain();
    });
}

nb::tuple dispatch_backward(DispatchObject& self, const Tensor& drows,
                            const Tensor& drow_probs) {
    check_floating("grad_rows", drows, self.rows.shape());
    check_floating("grad_row_probs", drow_probs, {self.rows.dim(0)});
    const auto made = self.run([&](TokenDispatcher& dispatcher, const Placement& place) {
        return dispatcher.dispatch_backward(transfer(drows, place),
                                            transfer(drow_probs, probs_placement(place)),
                                            *self.dispatched.saved, RunContext{});
    });
    return nb::make_tuple(to_python(made.dhidden), to_python(made.dprobs));
}

void bind_dispatched(nb::module_& module) {
    nb::class_<DispatchObject>(module, "Dispatched",
                               "Rows at their experts, kept for the way back.")
        .def_prop_ro(
            "rows", [](const DispatchObject& d) { return to_python(d.rows); },
            nb::sig("def rows(self) -> Tensor"),
            "(N, H), by local expert, then source rank and token. Where N is a bound, "
            "rows behind the last expert's are nobody's.")
        .def_prop_ro(
            "tokens_per_expert",
            [](const DispatchObject& d) {
                return to_python(d.dispatched.tokens_per_expert);
            },
            nb::sig("def tokens_per_expert(self) -> Tensor"), "(L) int32.")
        .def_prop_ro(
            "row_probs",
            [](const DispatchObject& d) { return to_python(d.dispatched.row_probs); },
            nb::sig("def row_probs(self) -> Tensor"), "(N).")
        .def(
            "combine",
            [](DispatchObject& self, nb::handle rows, nb::handle shared_output) {
                return to_python(combine(self, tensor_from(rows, "rows"),
                                         tensor_or_none(shared_output, "shared_output")));
            },
            nb::arg("rows").none(), nb::arg("shared_output") = nb::none(),
            nb::sig("def combine(self, rows: ArrayLike, "
                    "shared_output: ArrayLike | None = None) -> Tensor"),
            "(T, H): the sum of each token's rows in ascending expert order, and "
            "shared_output.")
        .def(
            "combine_backward",
            [](DispatchObject& self, nb::handle doutput) {
                return to_python(
                    combine_backward(self, tensor_from(doutput, "grad_output")));
            },
            nb::arg("grad_output").none(),
            nb::sig("def combine_backward(self, grad_output: ArrayLike) -> Tensor"),
            "(N, H): each row has its token's gradient.")
        .def(
            "dispatch_backward",
            [](DispatchObject& self, nb::handle drows, nb::handle drow_probs) {
                return dispatch_backward(self, tensor_from(drows, "grad_rows"),
                                         tensor_from(drow_probs, "grad_row_probs"));
            },
            nb::arg("grad_rows").none(), nb::arg("grad_row_probs").none(),
            nb::sig("def dispatch_backward(self, grad_rows: ArrayLike, "
                    "grad_row_probs: ArrayLike) -> tuple[Tensor, Tensor]"),
            "Gradients by hidden_states (T, H) and by probs (T, E), 0 where not routed.");
}

}  // namespace

void bind_dispatcher(nb::module_& module) {
    bind_dispatched(module);
    nb::class_<DispatcherObject>(module, "TokenDispatcher",
                                 R"(Brings token rows to their experts and back.

Which one is the config's moe_token_dispatcher_type: allgather, alltoall or flex. With the
groups of a rank all its methods are collective.
Source: Megatron's token_dispatcher.py. Raises InputError as MoELayer does.)")
        .def(
            "__init__",
            [](DispatcherObject* self, const Config& config, nb::handle spec,
               const Groups* groups) {
                new (self) DispatcherObject(config, spec_from(spec), groups);
            },
            nb::arg("config"), nb::arg("spec") = "reference_cpu:fp32",
            nb::arg("groups") = nb::none(),
            nb::sig("def __init__(self, config: MoEConfig, "
                    "spec: str | ModuleSpec = 'reference_cpu:fp32', "
                    "groups: ProcessGroups | None = None) -> None"))
        .def(
            "dispatch",
            [](std::shared_ptr<DispatcherObject> self, nb::handle hidden,
               nb::handle probs, nb::handle map) {
                return dispatch(self, tensor_from(hidden, "hidden_states"),
                                tensor_from(probs, "probs"),
                                tensor_from(map, "routing_map"));
            },
            nb::arg("hidden_states").none(), nb::arg("probs").none(),
            nb::arg("routing_map").none(),
            nb::sig("def dispatch(self, hidden_states: ArrayLike, probs: ArrayLike, "
                    "routing_map: ArrayLike) -> Dispatched"),
            "hidden_states: (T, H).\n"
            "probs: (T, E), 0 where not routed.\n"
            "routing_map: (T, E) bool or uint8, at most moe_router_topk of each token.");
}

}  // namespace moe::python
