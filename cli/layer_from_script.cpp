// layer_from_script.cpp: what a Megatron launch script says of its MoE layer.

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "cli/files.h"
#include "cli/megatron_args.h"
#include "cli/notes.h"
#include "cli/options.h"
#include "core/error.h"
#include "core/known_names.h"
#include "core/lacking_fields.h"

namespace moe {
namespace {

/// The field that a flag gives, or null.
const FieldInfo* field_of(const std::string& flag) {
    for (const FieldInfo& field : config_fields())
        if (flag == flag_name(field.name) ||
            (field.kind == FieldKind::boolean && flag == opposite_name(field.name)))
            return &field;
    return nullptr;
}

/// What a script gives a field; nothing for a switch.
std::vector<std::string> script_values(const std::string& name, const ScriptFlag& flag,
                                       const FieldInfo& field) {
    const std::string where = name + ": " + flag.name;
    const std::string given = fmt::format("{}", fmt::join(flag.values, " "));
    if (field.kind == FieldKind::boolean) {
        if (!flag.values.empty()) reject(where, given, "takes no value");
        return {};
    }
    if (flag.values.empty()) reject(where, "missing", "needs a value");
    if (field.kind != FieldKind::list && flag.values.size() > 1)
        reject(where, given, "takes one value");
    for (const std::string& value : flag.values)
        if (value.find('$') != std::string::npos)
            reject(where, value, "cannot be known from the text alone");
    return flag.values;
}

/// A flag that is passed over must not be one that the layer's values depend on, nor one
/// of the layer's that is misspelt.
void require_no_change(const std::string& name, const ScriptFlag& flag) {
    std::string field = flag.name.substr(2);
    std::replace(field.begin(), field.end(), '-', '_');
    if (changes_values(field)) reject(name, flag.name, why_not_here(field));
    if (!flag.name.starts_with("--moe") || !why_not_here(field).empty()) return;
    std::vector<std::string> known;
    for (const FieldInfo& info : config_fields()) known.push_back(flag_name(info.name));
    std::string dashed = flag.name;
    std::replace(dashed.begin(), dashed.end(), '_', '-');
    if (const std::string meant = nearest(dashed, known); !meant.empty())
        reject(name, flag.name, "not known; did you mean " + meant + "?");
}

void tell(const std::string& why, const std::vector<std::string>& flags) {
    if (flags.empty()) return;
    constexpr std::size_t kMost = 12;
    const std::size_t shown = std::min(flags.size(), kMost);
    note(fmt::format(
        "--megatron-args: {}: {}{}", why,
        fmt::join(flags.begin(), flags.begin() + std::ptrdiff_t(shown), ", "),
        flags.size() > kMost ? fmt::format(" and {} more", flags.size() - kMost) : ""));
}

}  // namespace

LayerOptions::Chosen LayerOptions::start_from_script() const {
    const std::string name = "--megatron-args";
    // Arguments, or the file that has them
    const std::string& given = *megatron_args_;
    const bool is_text = given.find("--") != std::string::npos &&
                         (given.size() > 4000 || !std::filesystem::exists(given));
    const std::string text = is_text ? given : read_file(name, given);
    FieldFlags flags;
    std::vector<std::string> elsewhere, of_ranks, of_models, again;
    std::set<std::string> seen;
    for (const ScriptFlag& flag : read_script_flags(name, text)) {
        if (!seen.insert(flag.name).second) again.push_back(flag.name);
        const FieldInfo* field = field_of(flag.name);
        if (flag.name == "--swiglu") {
            flags.swiglu = true;
        } else if (flag.name == "--squared-relu") {
            flags.squared_relu = true;
        } else if (flag.name == "--quick-geglu") {
            flags.quick_geglu = true;
        } else if (flag.name == "--recompute-activations") {
            flags.recompute_activations = true;
        } else if (flag.name == "--moe-layer-recompute") {
            flags.moe_layer_recompute = true;
        } else if (flag == ScriptFlag{"--recompute-granularity", {"full"}}) {
            of_models.push_back("--recompute-granularity full");
        } else if (field == nullptr) {
            require_no_change(name, flag);
            elsewhere.push_back(flag.name);
        } else if (const auto values = script_values(name, flag, *field);
                   !ranks_ && is_of_ranks(field->name, values)) {
            of_ranks.push_back(flag.name);
        } else if (field->kind == FieldKind::boolean) {
            flags.booleans[field->name] = flag.name == flag_name(field->name);
        } else {
            flags.texts[field->name] = values;
        }
    }
    if (!flags.any()) reject(name, given, "has no flag of the MoE layer");
    if (!std::exchange(told_, true)) {
        tell("not the layer's", elsewhere);
        tell("runs whole transformer layers again, and not this one alone", of_models);
        tell("how ranks share a layer, which none do here", of_ranks);
        tell("given more than once, the last counts", again);
    }
    Chosen chosen;
    flags.apply(chosen);
    MoEConfig& config = chosen.config;
    // Megatron's own width where the script has none. Source: arguments.py
    if (!config.ffn_hidden_size)
        config.ffn_hidden_size =
            flags.swiglu ? config.hidden_size * 8 / 3 / 64 * 64 : config.hidden_size * 4;
    if (!config.moe_ffn_hidden_size) config.moe_ffn_hidden_size = config.ffn_hidden_size;
    return chosen;
}

}  // namespace moe
