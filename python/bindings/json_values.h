/// @file
/// Values of Python and of JSON, as which configs are read and written.
#pragma once

#include <nanobind/nanobind.h>

#include <nlohmann/json.hpp>
#include <string>

namespace moe::python {

namespace nb = nanobind;

/// InputError, naming `field`, for what JSON has no word for.
nlohmann::json json_from(nb::handle value, const std::string& field);

nb::object to_python(const nlohmann::ordered_json& value);

}  // namespace moe::python
