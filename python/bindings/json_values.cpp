#include "python/bindings/json_values.h"

#include <nanobind/stl/string.h>

#include "core/error.h"

namespace moe::python {

nlohmann::json json_from(nb::handle value, const std::string& field) {
    if (value.is_none()) return nullptr;
    if (nb::isinstance<nb::bool_>(value)) return nb::cast<bool>(value);
    if (nb::isinstance<nb::int_>(value)) {
        std::int64_t number = 0;
        if (!nb::try_cast(value, number))
            reject(field, nb::cast<std::string>(value.attr("__str__")()),
                   "must fit into 64 bits");
        return number;
    }
    if (nb::isinstance<nb::float_>(value)) return nb::cast<double>(value);
    if (nb::isinstance<nb::str>(value)) return nb::cast<std::string>(value);
    if (nb::isinstance<nb::list>(value) || nb::isinstance<nb::tuple>(value)) {
        nlohmann::json list = nlohmann::json::array();
        for (nb::handle element : value) list.push_back(json_from(element, field));
        return list;
    }
    // numpy's numbers, which are no numbers of Python's
    if (nb::hasattr(value, "item") && nb::hasattr(value, "ndim") &&
        nb::cast<int>(value.attr("ndim")) == 0)
        return json_from(value.attr("item")(), field);
    reject(field, nb::cast<std::string>(value.type().attr("__name__")),
           "must be a number, a text, a list, a bool or None");
}

nb::object to_python(const nlohmann::ordered_json& value) {
    if (value.is_null()) return nb::none();
    if (value.is_boolean()) return nb::bool_(value.get<bool>());
    if (value.is_number_integer()) return nb::int_(value.get<std::int64_t>());
    if (value.is_number()) return nb::float_(value.get<double>());
    if (value.is_string()) return nb::str(value.get<std::string>().c_str());
    if (value.is_array()) {
        nb::list list;
        for (const auto& element : value) list.append(to_python(element));
        return list;
    }
    nb::dict dict;
    for (const auto& [name, element] : value.items())
        dict[name.c_str()] = to_python(element);
    return dict;
}

}  // namespace moe::python
