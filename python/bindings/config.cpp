// moe.MoEConfig, presets, and the parameters that a config asks for.

#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "core/checkpoint/model.h"
#include "core/error.h"
#include "core/parameters.h"
#include "python/bindings/arrays.h"
#include "python/bindings/json_values.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

void set_fields(MoEConfig& config, const nb::dict& fields) {
    for (auto [name, value] : fields) {
        const auto field = nb::cast<std::string>(name);
        set_field(config, field, json_from(value, field), "");
    }
}

Config make_config(const std::optional<std::string>& preset_name, std::int64_t scale,
                   const nb::kwargs& fields) {
    MoEConfig config = preset_name ? preset(*preset_name, 1) : MoEConfig{};
    set_fields(config, nb::borrow<nb::dict>(fields));
    if (scale != 1) scale_widths(config, scale);
    return Config(config);
}

nb::tuple as_tuple(const Shape& shape) {
    nb::list sizes;
    for (std::int64_t size : shape) sizes.append(size);
    return nb::tuple(sizes);
}

nb::dict named_shapes(const Config& config) {
    nb::dict result;
    for (const auto& [name, shape] : parameter_shapes(config.config))
        result[name.c_str()] = as_tuple(shape);
    return result;
}

const char* python_type(FieldKind kind) {
    switch (kind) {
        case FieldKind::boolean: return "bool";
        case FieldKind::integer: return "int";
        case FieldKind::number: return "float";
        case FieldKind::text: return "str";
        case FieldKind::list: break;
    }
    return "list";
}

}  // namespace

void bind_config(nb::module_& module) {
    nb::class_<Config> config(
        module, "MoEConfig",
        R"(What a layer is, by the field names of Megatron's TransformerConfig. Immutable.

``MoEConfig("mixtral_8x7b")`` is a preset, ``MoEConfig("mixtral_8x7b", scale=16)`` with
widths divided by 16, and keywords set fields: ``MoEConfig(hidden_size=64,
num_moe_experts=8, moe_router_topk=2, moe_ffn_hidden_size=96)``. InputError names the
field that is unknown, of a wrong type, or at odds with others. ``moe info --fields``
explains them all.)");
    config
        .def(
            "__init__",
            [](Config* self, const std::optional<std::string>& preset_name,
               std::int64_t scale, const nb::kwargs& fields) {
                new (self) Config(make_config(preset_name, scale, fields));
            },
            nb::arg("preset") = nb::none(), nb::arg("scale") = 1, nb::arg("fields"),
            nb::sig("def __init__(self, preset: str | None = None, scale: int = 1, "
                    "**fields: object) -> None"))
        .def(
            "replace",
            [](const Config& self, const nb::kwargs& fields) {
                MoEConfig changed = self.given;
                set_fields(changed, nb::borrow<nb::dict>(fields));
                return Config(changed);
            },
            nb::sig("def replace(self, **fields: object) -> MoEConfig"),
            "The same config with other values of some fields.")
        .def(
            "to_dict",
            [](const Config& self) { return to_python(config_to_json(self.config)); },
            nb::sig("def to_dict(self) -> dict[str, object]"),
            "Every field, as it was given or follows from others.")
        .def(
            "to_json",
            [](const Config& self) { return config_to_json(self.given).dump(1); },
            "The text that `moe compare --config` reads.")
        .def_static(
            "from_json",
            [](const std::string& text) {
                const auto json = nlohmann::json::parse(text, nullptr, false);
                if (json.is_discarded()) reject("config", "text", "must be JSON");
                return Config(config_from_json(json, ""));
            },
            nb::arg("text"), "A config from the text that to_json() makes.")
        .def_static(
            "from_huggingface",
            [](const std::string& text, std::int64_t layer) {
                return Config(checkpoint::read_model(text, "config.json", layer).config);
            },
            nb::arg("config_json"), nb::arg("layer"),
            "What a layer of a model is, from the text of its config.json "
            "(config.to_json_string()).\n\n"
            "InputError for a model that is not known or needs what the layer lacks, and "
            "for a layer that is not there or dense.")
        .def(
            "warnings", [](const Config& self) { return self.config.warnings(); },
            "What is allowed but hardly meant, one line each.")
        .def(
            "__eq__",
            [](const Config& self, nb::handle other) {
                Config* that = nullptr;
                return nb::try_cast(other, that, false) && that != nullptr &&
                       config_to_json(self.config) == config_to_json(that->config);
            },
            nb::arg("other").none(),
            nb::sig("def __eq__(self, other: object, /) -> bool"))
        .def("__hash__",
             [](const Config& self) {
                 return std::hash<std::string>()(config_to_json(self.config).dump());
             })
        .def(
            "__reduce__",
            [](nb::handle self) {
                return nb::make_tuple(
                    nb::module_::import_("moe._pickling").attr("config_from_json"),
                    nb::make_tuple(self.attr("to_json")()));
            },
            nb::sig("def __reduce__(self) -> tuple"))
        .def("__repr__", [](const Config& self) {
            const auto defaults = config_to_json(MoEConfig{});
            const auto given = config_to_json(self.given);
            std::string text;
            for (const auto& [name, value] : given.items())
                if (value != defaults[name])
                    text += (text.empty() ? "" : ", ") + name + "=" +
                            nb::cast<std::string>(nb::repr(to_python(value)));
            return "moe.MoEConfig(" + text + ")";
        });
    // A property for each field, so that editors and stubs know them.
    static std::vector<std::string> signatures;
    for (const FieldInfo& field : config_fields()) {
        const std::string name = field.name;
        const std::string signature =
            fmt::format("def {}(self) -> {}{}", name, python_type(field.kind),
                        field.optional ? " | None" : "");
        config.def_prop_ro(
            name.c_str(),
            [name](const Config& self) {
                return to_python(config_to_json(self.config)[name]);
            },
            nb::sig(signature.c_str()), field.help.c_str());
    }

    module.def("presets", &preset_names, "Names of models that MoEConfig() knows.");
    module.def("parameter_shapes", &named_shapes, nb::arg("config"),
               nb::sig("def parameter_shapes(config: MoEConfig) "
                       "-> dict[str, tuple[int, ...]]"),
               "Name and shape of every parameter of one rank's layer, by Megatron's "
               "names.");
    module.def(
        "random_parameters",
        [](const Config& config, std::uint64_t seed) {
            return to_python(random_parameters(config.config, seed));
        },
        nb::arg("config"), nb::arg("seed") = 1234,
        nb::sig("def random_parameters(config: MoEConfig, seed: int = 1234) "
                "-> dict[str, Tensor]"),
        "Seeded fp32 values that every dtype holds exactly: weights N(0, 1 / fan-in).");
}

}  // namespace moe::python
