// moe.load_layer(): a layer of a real model, from its checkpoint or from memory.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/checkpoint/layer.h"
#include "core/error.h"
#include "python/bindings/arrays.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

using FoundLayer = checkpoint::Layer;

std::string path_from(nb::handle path) {
    std::string text;
    if (!nb::try_cast(nb::module_::import_("os").attr("fspath")(path), text))
        reject("dir", nb::cast<std::string>(path.type().attr("__name__")),
               "must be a path");
    return text;
}

/// What is mapped from a file is for reading.
nb::dict parameters_of(const FoundLayer& layer) {
    nb::dict result;
    for (const auto& [name, tensor] : layer.parameters)
        result[name.c_str()] = nb::cast(Array{tensor, true});
    return result;
}

checkpoint::Options options_from(const std::optional<std::string>& fc1_layout) {
    return {.fc1_layout = fc1_layout};
}

}  // namespace

void bind_checkpoint(nb::module_& module) {
    nb::class_<FoundLayer>(module, "CheckpointLayer",
                           "A model's MoE layer as it was found.")
        .def_prop_ro("config", [](const FoundLayer& l) { return Config(l.config); })
        .def_prop_ro("parameters", &parameters_of,
                     nb::sig("def parameters(self) -> dict[str, Tensor]"),
                     "By Megatron's names, in the dtypes of the source, read-only.")
        .def_ro("copied", &FoundLayer::copied, "True where some parameter is a copy.")
        .def_ro("layout", &FoundLayer::layout, "In words.")
        .def_ro("names", &FoundLayer::names, "The tensors read, in order.")
        .def_ro("notes", &FoundLayer::notes, "What a reader should know, a line each.")
        .def("__repr__", [](const FoundLayer& layer) {
            return fmt::format("moe.CheckpointLayer({}; {} tensors)", layer.layout,
                               layer.names.size());
        });

    module.def(
        "load_layer",
        [](nb::handle dir, std::int64_t layer,
           const std::optional<std::string>& fc1_layout) {
            const std::string path = path_from(dir);
            const checkpoint::Options options = options_from(fc1_layout);
            const Unlocked unlocked;
            return checkpoint::load_layer(path, layer, options);
        },
        nb::arg("dir"), nb::arg("layer"), nb::arg("fc1_layout") = nb::none(),
        nb::sig("def load_layer(dir: str | os.PathLike, layer: int, "
                "fc1_layout: str | None = None) -> CheckpointLayer"),
        R"(The MoE layer of that number, from a folder with config.json and safetensors.

Weights stay in the files until they are used. ``fc1_layout`` ("rows" or "columns") says
how a packed FC1 lies where its sizes do not (2F = H). Raises InputError, naming file and
tensor, for a model that is not known or needs what the layer lacks, a layer that is dense,
and a tensor that is missing, too much, of another shape or quantised. Models and layouts
are in docs/checkpoints.md.)");
    module.def(
        "layer_from_tensors",
        [](const std::string& config_json, nb::handle tensors, std::int64_t layer,
           const std::optional<std::string>& fc1_layout) {
            const TensorMap given = tensors_from(tensors, "tensors");
            const checkpoint::Options options = options_from(fc1_layout);
            const Unlocked unlocked;
            return checkpoint::layer_from_tensors(config_json, given, layer, options);
        },
        nb::arg("config_json"), nb::arg("tensors").none(), nb::arg("layer"),
        nb::arg("fc1_layout") = nb::none(),
        nb::sig("def layer_from_tensors(config_json: str, "
                "tensors: dict[str, ArrayLike], layer: int, "
                "fc1_layout: str | None = None) -> CheckpointLayer"),
        "The same of a block's state_dict in memory, which is shared where no element "
        "moves.\n\nconfig_json: the model's config.json, config.to_json_string().\n"
        "tensors: by names relative to the block, or with any prefix.");
}

}  // namespace moe::python
