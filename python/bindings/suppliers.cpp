// moe.ModuleSpec and moe.tiers(): who supplies which component.

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bench/moe_c_setup.h"
#include "core/error.h"
#include "core/tier.h"
#include "python/bindings/objects.h"

namespace moe::python {
namespace {

using Supplier = std::optional<std::string>;

ModuleSpec make_spec(const Supplier& all, const Supplier& router,
                     const Supplier& dispatcher, const Supplier& experts,
                     const Supplier& shared_experts) {
    std::string text = all && all->find('=') != std::string::npos ? *all : "";
    const auto add = [&text](const std::string& component, const Supplier& supplier) {
        if (supplier) text += (text.empty() ? "" : ",") + component + "=" + *supplier;
    };
    add("router", router);
    add("dispatcher", dispatcher);
    add("experts", experts);
    add("shared_experts", shared_experts);
    const ComponentSpec otherwise = all && all->find('=') == std::string::npos
                                        ? bench::parse_spec(*all).experts
                                        : ComponentSpec{};
    ModuleSpec spec = text.empty() ? ModuleSpec::uniform(otherwise)
                                   : ModuleSpec::parse(text, otherwise);
    spec.check_dtypes();
    return spec;
}

/// What ModuleSpec() reads.
std::string as_text(const ModuleSpec& spec) {
    return fmt::format("router={},dispatcher={},experts={},shared_experts={}",
                       to_string(spec.router), to_string(spec.dispatcher),
                       to_string(spec.experts), to_string(spec.shared_experts));
}

/// moe.Tier
struct TierInfo {
    std::string name, missing, device;
    bool emulated;
    std::vector<std::string> dtypes;
    std::string space;
};

std::vector<TierInfo> tier_infos() {
    std::vector<TierInfo> list;
    for (const Tier* tier : tiers()) {
        TierInfo info{tier->name(), tier->missing(), "", tier->is_emulated(), {}, ""};
        if (info.missing.empty()) info.device = tier->device();
        for (DType dtype : tier->dtypes()) info.dtypes.push_back(to_string(dtype));
        info.space = tier->memory_space() == MemorySpace::host ? "host" : "device";
        list.push_back(info);
    }
    return list;
}

}  // namespace

ModuleSpec spec_from(nb::handle spec) {
    ModuleSpec* given = nullptr;
    if (nb::try_cast(spec, given, false) && given != nullptr) return *given;
    std::string text;
    if (!nb::try_cast(spec, text, false))
        reject("spec", nb::cast<std::string>(spec.type().attr("__name__")),
               "must be a ModuleSpec, or a text such as \"naive_gpu:bf16\"");
    return bench::parse_spec(text);
}

void bind_suppliers(nb::module_& module) {
    nb::class_<ModuleSpec>(module, "ModuleSpec",
                           R"(Who supplies each component of a layer, tier:dtype.

``ModuleSpec("naive_gpu:bf16")`` for all of them, ``ModuleSpec("reference_cpu:fp32",
router="reference_cpu:fp64")`` for all but one. Where a spec is asked for, its text will
do. Source of the idea: Megatron's ModuleSpec (spec_utils.py).)")
        .def(
            "__init__",
            [](ModuleSpec* self, const Supplier& all, const Supplier& router,
               const Supplier& dispatcher, const Supplier& experts,
               const Supplier& shared_experts) {
                new (self) ModuleSpec(
                    make_spec(all, router, dispatcher, experts, shared_experts));
            },
            nb::arg("all") = nb::none(), nb::kw_only(), nb::arg("router") = nb::none(),
            nb::arg("dispatcher") = nb::none(), nb::arg("experts") = nb::none(),
            nb::arg("shared_experts") = nb::none())
        .def_prop_ro("router", [](const ModuleSpec& s) { return to_string(s.router); })
        .def_prop_ro("dispatcher",
                     [](const ModuleSpec& s) { return to_string(s.dispatcher); })
        .def_prop_ro("experts", [](const ModuleSpec& s) { return to_string(s.experts); })
        .def_prop_ro("shared_experts",
                     [](const ModuleSpec& s) { return to_string(s.shared_experts); })
        .def_prop_ro("is_emulated", &ModuleSpec::is_emulated,
                     "True when kernels of any component run on the CPU executor.")
        .def(
            "__eq__",
            [](const ModuleSpec& self, nb::handle other) {
                ModuleSpec* that = nullptr;
                return nb::try_cast(other, that, false) && that != nullptr &&
                       self == *that;
            },
            nb::arg("other").none(),
            nb::sig("def __eq__(self, other: object, /) -> bool"))
        .def("__hash__",
             [](const ModuleSpec& self) {
                 return std::hash<std::string>()(as_text(self));
             })
        .def(
            "__reduce__",
            [](nb::handle self) {
                return nb::make_tuple(
                    nb::borrow(self.type()),
                    nb::make_tuple(as_text(*nb::inst_ptr<ModuleSpec>(self))));
            },
            nb::sig("def __reduce__(self) -> tuple"))
        .def("__repr__", [](const ModuleSpec& self) {
            return "moe.ModuleSpec(" + to_string(self) + ")";
        });

    nb::class_<TierInfo>(module, "Tier", "One complete implementation of the layer.")
        .def_ro("name", &TierInfo::name)
        .def_ro("missing", &TierInfo::missing,
                "What this machine lacks to run it; empty where it can.")
        .def_ro("device", &TierInfo::device, "What it runs on, for people.")
        .def_ro("emulated", &TierInfo::emulated,
                "Its kernels run on the CPU executor: times say nothing about a GPU.")
        .def_ro("dtypes", &TierInfo::dtypes, "Most precise first.")
        .def_ro("space", &TierInfo::space, "\"host\" or \"device\".")
        .def("__repr__", [](const TierInfo& self) {
            return "moe.Tier(" + self.name + ": " +
                   (self.missing.empty() ? self.device : self.missing) + ")";
        });
    module.def("tiers", &tier_infos, "Every tier, also those that cannot run here.");
}

}  // namespace moe::python
