// layer_options.cpp: a layer from a preset, a file, a launch script and flags.

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "cli/files.h"
#include "cli/options.h"
#include "core/error.h"
#include "core/known_names.h"

namespace moe {
namespace {

using nlohmann::json;

/// Calls `act`, whose errors name a value of the core: here they name its flag.
template <typename Act>
void naming_flags(Act act) {
    try {
        act();
    } catch (const InputError& error) {
        throw InputError(std::string("--") + error.what());
    }
}

/// A flag's text as the JSON value that a config file would hold.
json parse_value(const std::string& flag, const std::string& text,
                 const FieldInfo& field) {
    if (text == "none" && field.optional) return nullptr;
    const FieldKind kind = field.kind;
    if (kind == FieldKind::integer) return parse_integer(flag, text);
    const char* begin = text.data();
    const char* end = begin + text.size();
    if (kind == FieldKind::number || kind == FieldKind::list) {
        double value = 0.0;
        const auto [stop, error] = std::from_chars(begin, end, value);
        if (error == std::errc() && stop == end) return value;
        if (kind == FieldKind::number) reject(flag, text, "must be a number");
    }
    return text;
}

/// A seed of 64 bits; CLI11 would wrap -1 around.
std::uint64_t parse_seed(const std::string& text) {
    std::uint64_t seed = 0;
    const auto [stop, error] =
        std::from_chars(text.data(), text.data() + text.size(), seed);
    if (error != std::errc() || stop != text.data() + text.size())
        reject("--seed", text, "must be an integer from 0 to 2^64 - 1");
    return seed;
}

/// Its names are others, and what they mean depends on the model.
void require_no_hugging_face(const std::string& path, const json& fields) {
    if (!fields.is_object() || !fields.contains("model_type")) return;
    const json& type = fields["model_type"];
    reject(
        "--config", path,
        fmt::format("is a Hugging Face config.json ({}), must have Megatron's names of "
                    "fields: moe compare --checkpoint takes its folder",
                    type.is_string() ? one_line(type.get<std::string>()) : "?"));
}

}  // namespace

std::string flag_name(const std::string& field) {
    if (field == "num_moe_experts") return "--num-experts";  // as Megatron has it
    std::string flag = "--" + field;
    std::replace(flag.begin(), flag.end(), '_', '-');
    return flag;
}

std::string opposite_name(const std::string& field) {
    return field == "add_bias_linear" ? "--disable-bias-linear"
                                      : "--no-" + flag_name(field).substr(2);
}

bool is_of_ranks(const std::string& field, const std::vector<std::string>& values) {
    if (field == "moe_token_dispatcher_type" && !values.empty())
        return values[0] == "flex";
    return field.ends_with("_parallel_size") || field == "sequence_parallel" ||
           field == "moe_token_dispatcher_type" || field == "moe_enable_deepep" ||
           field.starts_with("moe_flex_");
}

LayerOptions::LayerOptions(Command& command, Defaults defaults) : defaults_(defaults) {
    command
        .option("--preset", preset_,
                fmt::format("Layer of a known model: {} (default {})",
                            fmt::join(preset_names(), ", "), defaults.preset))
        .values(preset_names());
    command.option(
        "--scale", scale_,
        fmt::format("Divide the preset's widths by this (default {})", defaults.scale));
    command.option("--config", config_path_,
                   "JSON file of config fields, instead of a preset");
    command.option("--megatron-args", megatron_args_,
                   "Arguments of a Megatron launch script, or a file that has them, "
                   "instead of a preset: what is the layer's is taken");
    command.option(
        "--seq-length", seq_length_,
        fmt::format("S, tokens per sequence (default {})", defaults.seq_length));
    command.option("--micro-batch-size", micro_batch_size_,
                   fmt::format("B, sequences (default {})", defaults.micro_batch_size));
    command.option(
        "--seed", [this](const std::string& text) { seed_ = parse_seed(text); },
        "Seed of weights and gradients (default 1234)");
    add_field_flags(command);
}

void LayerOptions::add_field_flags(Command& command) {
    const std::string group = "Config (Megatron's names)";
    for (const FieldInfo& field : config_fields()) {
        const std::string flag = flag_name(field.name);
        if (field.kind == FieldKind::boolean) {
            command
                .flag(
                    flag, opposite_name(field.name),
                    [this, name = field.name](bool on) { flags_.booleans[name] = on; },
                    field.help)
                .group(group);
        } else if (field.kind == FieldKind::list) {
            command.option(flag, flags_.texts[field.name], field.help)
                .list(8)
                .group(group)
                .values(allowed_values(field.name));
        } else {
            command
                .option(
                    flag,
                    [this, name = field.name](const std::string& text) {
                        flags_.texts[name] = {text};
                    },
                    field.help)
                .group(group)
                .values(allowed_values(field.name));
        }
    }
    const auto add_shorthand = [&](const char* flag, bool& chosen, const char* help) {
        command.flag(flag, chosen, help).group(group);
    };
    add_shorthand("--swiglu", flags_.swiglu, "activation_func silu, gated");
    add_shorthand("--squared-relu", flags_.squared_relu, "activation_func squared_relu");
    add_shorthand("--quick-geglu", flags_.quick_geglu,
                  "activation_func quick_gelu, gated");
    add_shorthand("--recompute-activations", flags_.recompute_activations,
                  "recompute_granularity selective");
    add_shorthand("--moe-layer-recompute", flags_.moe_layer_recompute,
                  "recompute_granularity selective, and recompute_modules moe beside "
                  "others; deprecated");
}

std::string LayerOptions::start_flag() const {
    return preset_          ? "--preset"
           : config_path_   ? "--config"
           : megatron_args_ ? "--megatron-args"
           : scale_         ? "--scale"
                            : "";
}

LayerOptions::Chosen LayerOptions::start() const {
    if (megatron_args_) {
        if (preset_)
            reject("--preset", *preset_, "must be left out with --megatron-args");
        if (config_path_)
            reject("--config", *config_path_, "must be left out with --megatron-args");
        Chosen chosen = start_from_script();
        naming_flags([&] { scale_widths(chosen.config, scale_.value_or(1)); });
        return chosen;
    }
    Chosen chosen;
    MoEConfig& config = chosen.config;
    if (config_path_) {
        if (preset_) reject("--preset", *preset_, "must be left out with --config");
        if (scale_) reject("--scale", *scale_, "must be left out with --config");
        const json fields =
            parse_json(*config_path_, read_file("--config", *config_path_));
        require_no_hugging_face(*config_path_, fields);
        config = config_from_json(fields, *config_path_);
        for (const auto& field : fields.items()) chosen.given.insert(field.key());
    } else if (defaults_.config && !preset_) {
        if (scale_) reject("--scale", *scale_, "needs --preset");
        config = *defaults_.config;
    } else {
        naming_flags([&] {
            config = preset(preset_.value_or(defaults_.preset),
                            scale_.value_or(defaults_.scale));
        });
    }
    return chosen;
}

bool LayerOptions::FieldFlags::any() const {
    return swiglu || squared_relu || quick_geglu || recompute_activations ||
           moe_layer_recompute || !booleans.empty() ||
           std::any_of(texts.begin(), texts.end(),
                       [](const auto& text) { return !text.second.empty(); });
}

void LayerOptions::FieldFlags::apply(Chosen& chosen) const {
    MoEConfig& config = chosen.config;
    if (swiglu + squared_relu + quick_geglu > 1)
        reject("--swiglu, --squared-relu, --quick-geglu", "several", "choose one");
    if (swiglu || squared_relu || quick_geglu) {
        config.gated_linear_unit = !squared_relu;
        config.activation_func = swiglu         ? "silu"
                                 : squared_relu ? "squared_relu"
                                                : "quick_gelu";
    }
    for (const FieldInfo& field : config_fields()) {
        if (const auto found = booleans.find(field.name); found != booleans.end()) {
            set_field(config, field.name, found->second, "");
            chosen.given.insert(field.name);
        }
        const auto found = texts.find(field.name);
        if (found == texts.end() || found->second.empty()) continue;
        const std::string flag = flag_name(field.name);
        json value = json::array();
        for (const std::string& text : found->second)
            value.push_back(parse_value(flag, text, field));
        if (field.kind != FieldKind::list || value == json::array({nullptr}))
            value = json(value[0]);
        set_field(config, field.name, value, "");
        chosen.given.insert(field.name);
    }
    // Source: arguments.py; transformer_config.py, moe_layer_recompute
    if (recompute_activations || moe_layer_recompute)
        config.recompute_granularity = config.recompute_granularity.value_or("selective");
    if (moe_layer_recompute) {
        auto& modules = config.recompute_modules;
        if (!modules) modules.emplace();
        if (std::count(modules->begin(), modules->end(), "moe") == 0)
            modules->push_back("moe");
    }
}

LayerOptions::Chosen LayerOptions::choose() const {
    Chosen chosen = start();
    flags_.apply(chosen);
    return chosen;
}

MoEConfig LayerOptions::config() const {
    MoEConfig config = choose().config;
    config.finalize();
    return config;
}

std::string LayerOptions::changes() const {
    if (!flags_.any()) return "";
    const auto before = config_to_json(start().config);
    const auto after = config_to_json(choose().config);
    const auto shown = [](const auto& value) {
        return value.is_null()     ? "none"
               : value.is_string() ? value.template get<std::string>()
                                   : value.dump();
    };
    std::string text;
    for (const FieldInfo& field : config_fields()) {
        const std::string& name = field.name;
        if (before[name] == after[name] || is_of_ranks(name)) continue;
        text += fmt::format("{} {} {} → {}", text.empty() ? ", changed:" : ",", name,
                            shown(before[name]), shown(after[name]));
    }
    return text;
}

std::string LayerOptions::model() const {
    const std::string name = megatron_args_ ? "pasted arguments"
                             : config_path_ ? *config_path_
                                            : preset_.value_or(defaults_.preset);
    const std::int64_t scale = megatron_args_ ? scale_.value_or(1)
                               : !config_path_ && (preset_ || !defaults_.config)
                                   ? scale_.value_or(defaults_.scale)
                                   : 1;
    return name + (scale != 1 ? fmt::format(", widths / {}", scale) : "") + changes();
}

std::int64_t LayerOptions::seq_length() const {
    const std::int64_t length = seq_length_.value_or(defaults_.seq_length);
    if (length < 0 || length > 1'000'000)
        reject("--seq-length", length, "must be from 0 to 1000000");
    return length;
}

std::int64_t LayerOptions::micro_batch_size() const {
    const std::int64_t size = micro_batch_size_.value_or(defaults_.micro_batch_size);
    if (size < 1 || size > 100'000)
        reject("--micro-batch-size", size, "must be from 1 to 100000");
    return size;
}

}  // namespace moe
