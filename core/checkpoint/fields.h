/// @file
/// Reads a config.json of Hugging Face: fields by any of the names that models give them.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace moe::checkpoint {

/// The fields of one model. Errors name the file and the field.
class Fields {
  public:
    using Names = std::initializer_list<const char*>;

    /// @param where  the file
    /// @param layer  whose entry is meant where a field is a list with one per layer
    Fields(nlohmann::json fields, std::string where, std::int64_t layer)
        : fields_(std::move(fields)), where_(std::move(where)), layer_(layer) {}

    /// Of the first name that is there and not null; nothing without any.
    std::optional<std::int64_t> integer(Names names) const;
    std::optional<double> number(Names names) const;
    std::optional<bool> boolean(Names names) const;
    std::optional<std::string> text(Names names) const;
    /// The same, which must be there.
    std::int64_t required_integer(Names names) const;

    /// The value as it is; null without any.
    const nlohmann::json& any(Names names) const;
    /// An object in the object; empty without it.
    Fields inside(const char* name) const;

    std::int64_t layer() const { return layer_; }
    const std::string& where() const { return where_; }
    /// InputError "<file>: <name> = <value>: <allowed>".
    [[noreturn]] void refuse(const std::string& name, const std::string& allowed) const;

  private:
    /// The first name that is there, or null.
    const char* find(Names names) const;
    /// The value, or this layer's entry of a list.
    nlohmann::json value(const char* name) const;

    nlohmann::json fields_;
    std::string where_;
    std::int64_t layer_;
};

/// Why a layer is no MoE layer, by the fields that say which are: "first_k_dense_replace
/// is 3"; "" for one that is.
std::string why_dense(const Fields& fields);

}  // namespace moe::checkpoint
