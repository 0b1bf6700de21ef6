// moe.floors(), moe.kept_tensors() and moe.kept_bytes(): what each step must move, and
// what a forward leaves for its backward.

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "core/error.h"
#include "core/floors.h"
#include "core/kept_bytes.h"
#include "python/bindings/arrays.h"
#include "python/bindings/layer.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

StepSizes sizes_of(const MoEConfig& config, std::int64_t tokens,
                   const std::optional<std::int64_t>& rows) {
    constexpr std::int64_t kMost = std::int64_t{1} << 32;  // bytes still fit 64 bits
    if (tokens < 0 || tokens > kMost)
        reject("num_tokens", tokens, fmt::format("must be 0 to {}", kMost));
    if (rows && (*rows < 0 || *rows > kMost))
        reject("num_rows", *rows, fmt::format("must be 0 to {}", kMost));
    return {tokens, rows.value_or(tokens * config.moe_router_topk)};
}

nb::dict floors(const Config& config, std::int64_t tokens,
                const std::optional<std::int64_t>& rows, const std::string& dtype) {
    const Floors all(config.config, sizes_of(config.config, tokens, rows),
                     formats_of(config.config, parse_dtype("dtype", dtype)));
    nb::dict result;
    for (int number = 1; number <= 20; ++number) {
        const Step step = Step(number);
        const Floor floor = all.step(step);
        if (!floor.is_off()) result[nb::cast(step)] = floor;
    }
    return result;
}

/// moe.KeptTensor: of one size with others of its kind.
struct Kept {
    std::string name, formula, dtype;
    std::int64_t bytes;
};

std::vector<Kept> kept_tensors(const Config& config, nb::handle spec_or_text,
                               std::int64_t tokens,
                               const std::optional<std::int64_t>& rows) {
    ModuleSpec spec = spec_from(spec_or_text);
    if (spec != ModuleSpec::uniform(spec.experts))
        reject("spec", to_string(spec), "must name one supplier of all components");
    spec.raise_router_dtype(config.config);
    const DType dtype = spec.experts.dtype;
    const Floors size(config.config, sizes_of(config.config, tokens, rows),
                      formats_of(config.config, dtype));
    std::vector<Kept> result;
    for (const KeptTensor& tensor : find_tier("spec", spec.experts.tier)
                                        .kept(config.config, spec.router.dtype, dtype)) {
        const Floor kept = size.kept({tensor});
        result.push_back(
            {tensor.name, kept.formula, to_string(tensor.dtype), kept.bytes});
    }
    return result;
}

std::int64_t kept_bytes(std::shared_ptr<Layer> layer, const Tensor& hidden) {
    const Tensor input = in_three_axes("hidden_states", hidden);
    return layer->run([&] { return count_kept_bytes(*layer->layer, input); });
}

void bind_floor(nb::module_& module) {
    nb::class_<Floor>(module, "Floor", "The least that a step must do.")
        .def_ro("formula", &Floor::formula,
                "Numbers moved, with the letters T H K E F Fs N; m where maps, ids and "
                "counts come on top.")
        .def_ro("bytes", &Floor::bytes, "Of these numbers.")
        .def_ro("metadata", &Floor::metadata,
                "Bytes of maps, ids, counts and row numbers.")
        .def_ro("flops", &Floor::flops, "Of matrix products.")
        .def("__repr__", [](const Floor& f) {
            return fmt::format("moe.Floor({}: {} bytes, {:.0f} FLOP)", f.formula,
                               f.total_bytes(), f.flops);
        });
    module.def("floors", &floors, nb::arg("config"), nb::arg("num_tokens"),
               nb::arg("num_rows") = nb::none(), nb::arg("dtype") = "bf16",
               nb::sig("def floors(config: MoEConfig, num_tokens: int, "
                       "num_rows: int | None = None, dtype: str = 'bf16') "
                       "-> dict[Step, Floor]"),
               R"(What each step must read and write at least once, and its arithmetic.

A step alone, that reads what the one before it wrote; steps that are off are left out.
num_rows: rows after dispatch (num_tokens times moe_router_topk).
dtype: of activations and weights.)");
}

}  // namespace

void bind_sizes(nb::module_& module) {
    bind_floor(module);
    nb::class_<Kept>(module, "KeptTensor", "What a forward leaves for its backward.")
        .def_ro("name", &Kept::name)
        .def_ro("formula", &Kept::formula, "Its size in numbers.")
        .def_ro("dtype", &Kept::dtype)
        .def_ro("bytes", &Kept::bytes)
        .def("__repr__", [](const Kept& k) {
            return fmt::format("moe.KeptTensor({}: {} {}, {} bytes)", k.name, k.formula,
                               k.dtype, k.bytes);
        });
    module.def("kept_tensors", &kept_tensors, nb::arg("config"), nb::arg("spec"),
               nb::arg("num_tokens"), nb::arg("num_rows") = nb::none(),
               nb::sig("def kept_tensors(config: MoEConfig, spec: str | ModuleSpec, "
                       "num_tokens: int, num_rows: int | None = None) "
                       "-> list[KeptTensor]"),
               R"(The tensors that a tier keeps from its forward for its backward.

Logits, maps, ids and counts are not told of: they are small beside these.
spec: one supplier of all components.
num_rows: rows after dispatch (num_tokens times moe_router_topk).)");
    module.def(
        "kept_bytes",
        [](std::shared_ptr<Layer> layer, nb::handle hidden) {
            return kept_bytes(layer, tensor_from(hidden, "hidden_states"));
        },
        nb::arg("layer"), nb::arg("hidden_states").none(),
        nb::sig("def kept_bytes(layer: MoELayer, hidden_states: ArrayLike) -> int"),
        R"(Bytes that a forward leaves for its backward, counted: it runs one.

The hidden states are among them. A layer that has not run before is run once first by
whoever wants to leave out what it makes for good. Tensors that other threads make
meanwhile are counted as well.)");
}

}  // namespace moe::python
