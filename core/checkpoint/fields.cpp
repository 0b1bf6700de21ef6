#include "core/checkpoint/fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <sstream>

#include "core/error.h"

namespace moe::checkpoint {

using nlohmann::json;

const char* Fields::find(Names names) const {
    for (const char* name : names)
        if (fields_.contains(name) && !fields_[name].is_null()) return name;
    return nullptr;
}

json Fields::value(const char* name) const {
    const json& whole = fields_[name];
    if (!whole.is_array()) return whole;
    if (layer_ >= std::int64_t(whole.size()))
        refuse(name, fmt::format("must have an entry for layer {}", layer_));
    return whole[layer_];
}

void Fields::refuse(const std::string& name, const std::string& allowed) const {
    std::string shown = fields_.contains(name) ? fields_[name].dump() : "absent";
    if (shown.size() > 60) shown = shown.substr(0, 60) + "...";
    reject(where_ + ": " + name, shown, allowed);
}

std::optional<std::int64_t> Fields::integer(Names names) const {
    const char* name = find(names);
    if (name == nullptr) return std::nullopt;
    const json found = value(name);
    if (!found.is_number_integer()) refuse(name, "must be an integer");
    return found.get<std::int64_t>();
}

std::optional<double> Fields::number(Names names) const {
    const char* name = find(names);
    if (name == nullptr) return std::nullopt;
    const json found = value(name);
    if (!found.is_number()) refuse(name, "must be a number");
    return found.get<double>();
}

std::optional<bool> Fields::boolean(Names names) const {
    const char* name = find(names);
    if (name == nullptr) return std::nullopt;
    const json found = value(name);
    if (!found.is_boolean()) refuse(name, "must be true or false");
    return found.get<bool>();
}

std::optional<std::string> Fields::text(Names names) const {
    const char* name = find(names);
    if (name == nullptr) return std::nullopt;
    const json found = value(name);
    if (!found.is_string()) refuse(name, "must be a string");
    return found.get<std::string>();
}

std::int64_t Fields::required_integer(Names names) const {
    const auto found = integer(names);
    if (!found) refuse(*names.begin(), "required: an integer");
    return *found;
}

const json& Fields::any(Names names) const {
    static const json none;
    const char* name = find(names);
    return name == nullptr ? none : fields_[name];
}

Fields Fields::inside(const char* name) const {
    const json& object = any({name});
    return {object.is_object() ? object : json::object(), where_ + ": " + name, layer_};
}

namespace {

/// "3,4,5" or [3, 4, 5].
bool names_layer(const json& list, std::int64_t layer) {
    if (list.is_array()) return std::count(list.begin(), list.end(), json(layer)) > 0;
    std::stringstream text(list.is_string() ? list.get<std::string>() : "");
    for (std::string item; std::getline(text, item, ',');)
        if (item == std::to_string(layer)) return true;
    return false;
}

/// A pattern of one letter for each layer, E for MoE (Nemotron-H).
std::string why_not_in_pattern(const Fields& fields) {
    const auto pattern = fields.text({"hybrid_override_pattern"});
    if (!pattern) return "";
    if (fields.layer() < std::int64_t(pattern->size()) &&
        (*pattern)[fields.layer()] == 'E')
        return "";
    return "hybrid_override_pattern has no E there";
}

}  // namespace

std::string why_dense(const Fields& fields) {
    const std::int64_t layer = fields.layer();
    // Models that have it derive it from the others where it is left out
    if (fields.any({"mlp_layer_types"}).is_array()) {
        const std::string type = *fields.text({"mlp_layer_types"});
        const bool sparse = type == "sparse" || type == "moe" || type == "hash_moe";
        return sparse ? "" : fmt::format("mlp_layer_types[{}] is {}", layer, type);
    }
    if (fields.any({"layers_block_type"}).is_array()) {
        const std::string type = *fields.text({"layers_block_type"});
        if (type == "moe") return "";
        if (fields.any({"expert_layer_period"}).is_null())  // Jamba's says attention
            return fmt::format("layers_block_type[{}] is {}", layer, type);
    }
    if (const std::string why = why_not_in_pattern(fields); !why.empty()) return why;
    for (const char* name : {"first_k_dense_replace", "num_dense_layers"})
        if (const auto count = fields.integer({name}); count && layer < *count)
            return fmt::format("{} is {}", name, *count);
    for (const char* name : {"moe_layers", "moe_layers_enum"})
        if (const json& list = fields.any({name});
            !list.is_null() && !names_layer(list, layer))
            return std::string(name) + " does not name it";
    if (const json& list = fields.any({"mlp_only_layers"}); names_layer(list, layer))
        return "mlp_only_layers names it";
    if (const auto step = fields.integer({"decoder_sparse_step"});
        step && *step > 0 && (layer + 1) % *step != 0)
        return fmt::format("decoder_sparse_step is {}", *step);
    if (const auto step = fields.integer({"interleave_moe_layer_step"});
        step && *step > 0 && fields.any({"moe_layers"}).is_null() &&
        (layer + 1) % *step != 0)
        return fmt::format("interleave_moe_layer_step is {}", *step);
    if (const json& freq = fields.any({"moe_layer_freq"}); freq.is_array()) {
        if (*fields.integer({"moe_layer_freq"}) == 0)
            return fmt::format("moe_layer_freq[{}] is 0", layer);
    } else if (const auto step = fields.integer({"moe_layer_freq"});
               step && *step > 0 && layer % *step != 0) {
        return fmt::format("moe_layer_freq is {}", *step);
    }
    if (const auto period = fields.integer({"expert_layer_period"});
        period && *period > 0 &&
        layer % *period != fields.integer({"expert_layer_offset"}).value_or(1))
        return fmt::format("expert_layer_period is {}", *period);
    if (const auto first = fields.integer({"moe_layer_start_index"})) {
        const auto last = fields.integer({"moe_layer_end_index"}).value_or(-1);
        const auto step = fields.integer({"moe_layer_interval"}).value_or(1);
        if (layer < *first || (last >= 0 && layer > last) || (layer + 1) % step != 0)
            return fmt::format("moe_layer_start_index is {}", *first);
    }
    return "";
}

}  // namespace moe::checkpoint
