// result.cpp: results to JSON and back. What could not be read is not written either.

#include "bench/result.h"

#include <algorithm>
#include <cmath>
#include <concepts>
#include <limits>
#include <nlohmann/json.hpp>

#include "bench/result_fields.h"
#include "core/error.h"

namespace moe::bench {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr const char* kFormat = "moe-results";

/// What writing and reading share: where in the file we are, and what is allowed there.
class Place {
  public:
    explicit Place(std::string prefix) : prefix_(std::move(prefix)) {}

    template <typename Value>
    void require(bool ok, const char* name, const Value& value, const char* allowed) {
        if (!ok) reject(prefix_ + name, value, allowed);
    }

  protected:
    static void require_number(const std::string& field, double value) {
        if (!std::isfinite(value) || value < 0.0)
            reject(field, value, "must be a finite number, at least 0");
    }

    std::string prefix_;  ///< "file runs[0].", before a field's name
};

class Writer : public Place {
  public:
    using Place::Place;

    template <typename T>
    void operator()(const char* name, T& value) {
        object[name] = written(prefix_ + name, value);
    }
    void derived(const char* name, std::optional<double> value) {
        if (value) object[name] = *value;
    }
    void or_infinite(const char* name, double& value) {
        if (std::isfinite(value))
            (*this)(name, value);
        else
            object[name] = nullptr;  // JSON knows no infinity
    }

    ordered_json object = ordered_json::object();

  private:
    template <typename T>
    static ordered_json written(const std::string& field, T& value) {
        if constexpr (std::is_arithmetic_v<T>) {
            require_number(field, double(value));
            return value;
        } else if constexpr (std::constructible_from<ordered_json, T&>) {
            return value;
        } else {
            Writer inner(field + ".");
            each_field(inner, value);
            return inner.object;
        }
    }
    template <typename T>
    static ordered_json written(const std::string& field, std::optional<T>& value) {
        return value ? written(field, *value) : ordered_json();
    }
    template <typename T>
    static ordered_json written(const std::string& field, std::vector<T>& values) {
        ordered_json list = ordered_json::array();
        for (T& value : values)
            list.push_back(written(fmt::format("{}[{}]", field, list.size()), value));
        return list;
    }
};

class Reader : public Place {
  public:
    Reader(const json& object, const std::string& field, std::string prefix)
        : Place(std::move(prefix)), object_(object) {
        if (!object.is_object()) reject(field, shown(object), "must be an object");
    }

    template <typename T>
    void operator()(const char* name, T& value) {
        known_.push_back(name);
        if (!object_.contains(name)) reject(prefix_ + name, "nothing", "must be there");
        read(object_[name], prefix_ + name, value);
    }
    void or_infinite(const char* name, double& value) {
        std::optional<double> finite;
        (*this)(name, finite);
        value = finite.value_or(std::numeric_limits<double>::infinity());
    }
    /// For other readers only: it follows from the rest.
    void derived(const char* name, std::optional<double>) { known_.push_back(name); }

    void reject_unknown() const {
        for (const auto& [name, value] : object_.items())
            if (std::find(known_.begin(), known_.end(), name) == known_.end())
                reject(prefix_ + name, shown(value), "no such field");
    }

    static std::string shown(const json& value) {
        const std::string text =
            value.dump(-1, ' ', false, json::error_handler_t::replace);
        if (text.size() <= 60) return text;
        return value.is_array() ? "[…]" : value.is_object() ? "{…}" : "…";
    }

  private:
    static void read(const json& value, const std::string& field, std::string& text) {
        if (!value.is_string()) reject(field, shown(value), "must be text");
        text = value.get<std::string>();
    }
    static void read(const json& value, const std::string& field, bool& flag) {
        if (!value.is_boolean()) reject(field, shown(value), "must be true or false");
        flag = value.get<bool>();
    }
    static void read(const json& value, const std::string& field, double& number) {
        if (!value.is_number()) reject(field, shown(value), "must be a number");
        number = value.get<double>();
        require_number(field, number);
    }
    template <std::signed_integral T>
    static void read(const json& value, const std::string& field, T& number) {
        const auto least = std::int64_t{0},
                   most = std::int64_t{std::numeric_limits<T>::max()};
        if (!value.is_number_integer() || value < least || value > most)
            reject(field, shown(value), "must be a whole number, at least 0");
        number = value.get<T>();
    }
    static void read(const json& value, const std::string& field,
                     std::map<std::string, std::string>& entries) {
        if (!value.is_object()) reject(field, shown(value), "must be an object");
        for (const auto& [name, entry] : value.items())
            read(entry, field + "." + name, entries[name]);
    }
    template <typename T>
    static void read(const json& value, const std::string& field,
                     std::optional<T>& optional) {
        if (!value.is_null()) read(value, field, optional.emplace());
    }
    template <typename T>
    static void read(const json& value, const std::string& field, std::vector<T>& list) {
        if (!value.is_array()) reject(field, shown(value), "must be a list");
        for (const json& element : value) {
            const std::string name = fmt::format("{}[{}]", field, list.size());
            read(element, name, list.emplace_back());
        }
    }
    template <typename T>
    static void read(const json& value, const std::string& field, T& fields) {
        Reader inner(value, field, field + ".");
        each_field(inner, fields);
        inner.reject_unknown();
    }

    const json& object_;
    std::vector<std::string> known_;
};

}  // namespace

ordered_json to_json(const Result& result) {
    ordered_json json = {{"format", kFormat}, {"version", kResultVersion}};
    Writer writer("result ");
    Result copy = result;  // the fields are named for reading, which changes them
    each_field(writer, copy);
    json.update(writer.object);
    return json;
}

int version_of_result(const json& json, const std::string& where) {
    if (!json.is_object()) reject(where, Reader::shown(json), "must be an object");
    const auto entry = [&](const char* name) {
        return json.contains(name) ? json[name] : nlohmann::json();
    };
    if (entry("format") != kFormat)
        reject(where + " format", Reader::shown(entry("format")),
               fmt::format("must be \"{}\"", kFormat));
    if (!entry("version").is_number_integer())
        reject(where + " version", Reader::shown(entry("version")),
               "must be a whole number");
    return entry("version").get<int>();
}

Result result_from_json(const json& json, const std::string& where) {
    const int version = version_of_result(json, where);
    if (version != kResultVersion)
        reject(where + " version", version,
               fmt::format("this build reads version {}", kResultVersion));
    nlohmann::json body = json;
    body.erase("format");
    body.erase("version");
    Reader reader(body, where, where + " ");
    Result result;
    each_field(reader, result);
    reader.reject_unknown();
    return result;
}

double tflops(const Measurement& measurement) {
    return measurement.flops / (1e-3 * measurement.ms.value().median) / 1e12;
}

double gb_per_s(const Measurement& measurement) {
    return measurement.bytes / (1e-3 * measurement.ms.value().median) / 1e9;
}

}  // namespace moe::bench
