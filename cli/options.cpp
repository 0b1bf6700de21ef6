#include "cli/options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "cli/files.h"
#include "core/error.h"
#include "core/known_names.h"
#include "core/tier.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe {
namespace {

using nlohmann::json;

/// What `read` returns; its errors name the flag of the value that the core names.
template <typename Read>
auto naming_flags(Read read) {
    try {
        return read();
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

}  // namespace

std::string flag_name(const std::string& field) {
    if (field == "num_moe_experts") return "--num-experts";  // as Megatron has it
    std::string flag = "--" + field;
    std::replace(flag.begin(), flag.end(), '_', '-');
    return flag;
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
            const std::string opposite = field.name == "add_bias_linear"
                                             ? "--disable-bias-linear"
                                             : "--no-" + flag.substr(2);
            command
                .flag(
                    flag, opposite,
                    [this, name = field.name](bool on) { booleans_[name] = on; },
                    field.help)
                .group(group);
        } else if (field.kind == FieldKind::list) {
            command.option(flag, texts_[field.name], field.help)
                .list(8)
                .group(group)
                .values(allowed_values(field.name));
        } else {
            command
                .option(
                    flag,
                    [this, name = field.name](const std::string& text) {
                        texts_[name] = {text};
                    },
                    field.help)
                .group(group)
                .values(allowed_values(field.name));
        }
    }
    const auto add_shorthand = [&](const char* flag, bool& chosen, const char* help) {
        command.flag(flag, chosen, help).group(group);
    };
    add_shorthand("--swiglu", swiglu_, "activation_func silu, gated");
    add_shorthand("--squared-relu", squared_relu_, "activation_func squared_relu");
    add_shorthand("--quick-geglu", quick_geglu_, "activation_func quick_gelu, gated");
}

LayerOptions::Chosen LayerOptions::start() const {
    Chosen chosen;
    MoEConfig& config = chosen.config;
    if (config_path_) {
        if (preset_) reject("--preset", *preset_, "must be left out with --config");
        if (scale_) reject("--scale", *scale_, "must be left out with --config");
        const json fields =
            parse_json(*config_path_, read_file("--config", *config_path_));
        config = config_from_json(fields, *config_path_);
        for (const auto& field : fields.items()) chosen.given.insert(field.key());
    } else if (defaults_.config && !preset_) {
        if (scale_) reject("--scale", *scale_, "needs --preset");
        config = *defaults_.config;
    } else {
        config = naming_flags([this] {
            return preset(preset_.value_or(defaults_.preset),
                          scale_.value_or(defaults_.scale));
        });
    }
    return chosen;
}

LayerOptions::Chosen LayerOptions::choose() const {
    Chosen chosen = start();
    MoEConfig& config = chosen.config;
    if (swiglu_ + squared_relu_ + quick_geglu_ > 1)
        reject("--swiglu, --squared-relu, --quick-geglu", "several", "choose one");
    if (swiglu_ || squared_relu_ || quick_geglu_) {
        config.gated_linear_unit = !squared_relu_;
        config.activation_func = swiglu_         ? "silu"
                                 : squared_relu_ ? "squared_relu"
                                                 : "quick_gelu";
    }
    for (const FieldInfo& field : config_fields()) {
        if (const auto found = booleans_.find(field.name); found != booleans_.end()) {
            set_field(config, field.name, found->second, "");
            chosen.given.insert(field.name);
        }
        const auto found = texts_.find(field.name);
        if (found == texts_.end() || found->second.empty()) continue;
        const std::string flag = flag_name(field.name);
        json value = json::array();
        for (const std::string& text : found->second)
            value.push_back(parse_value(flag, text, field));
        set_field(config, field.name, field.kind == FieldKind::list ? value : value[0],
                  "");
        chosen.given.insert(field.name);
    }
    return chosen;
}

MoEConfig LayerOptions::config() const {
    MoEConfig config = choose().config;
    config.finalize();
    return config;
}

bool LayerOptions::any_field_flag() const {
    return swiglu_ || squared_relu_ || quick_geglu_ || !booleans_.empty() ||
           std::any_of(texts_.begin(), texts_.end(),
                       [](const auto& text) { return !text.second.empty(); });
}

std::string LayerOptions::changes() const {
    if (!any_field_flag()) return "";
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
        if (before[name] == after[name] || name.ends_with("_parallel_size") ||
            name == "sequence_parallel" || name == "moe_token_dispatcher_type" ||
            name == "moe_enable_deepep" || name.starts_with("moe_flex_"))
            continue;
        text += fmt::format("{} {} {} → {}", text.empty() ? ", changed:" : ",", name,
                            shown(before[name]), shown(after[name]));
    }
    return text;
}

std::string LayerOptions::model() const {
    const std::string name =
        config_path_ ? *config_path_ : preset_.value_or(defaults_.preset);
    const bool scaled = !config_path_ && (preset_ || !defaults_.config) &&
                        scale_.value_or(defaults_.scale) != 1;
    return name +
           (scaled ? fmt::format(", widths / {}", scale_.value_or(defaults_.scale))
                   : "") +
           changes();
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

ModuleSpec parse_spec(const std::string& spec, const ComponentSpec& otherwise) {
    return naming_flags([&] { return ModuleSpec::parse(spec, otherwise); });
}

std::vector<std::string> tier_names() {
    std::vector<std::string> names;
    for (const Tier* tier : tiers()) names.push_back(tier->name());
    return names;
}

std::vector<std::string> dtype_names() {
    return {to_string(DType::f64), to_string(DType::f32), to_string(DType::bf16)};
}

void add_threads_flag(Command& command) {
    command.option(
        "--threads",
        [](const std::string& text) {
            const std::int64_t threads = parse_integer("--threads", text);
            if (threads < 1 || threads > 1024)
                reject("--threads", threads, "must be from 1 to 1024");
#ifdef _OPENMP
            omp_set_num_threads(static_cast<int>(threads));
#else
            if (threads > 1) reject("--threads", threads, "this build has no OpenMP: 1");
#endif
        },
        "CPU threads (default: all)");
}

void add_rung_flag(Command& command) {
    command.option(
        "--grouped-gemm-rung",
        [](const std::string& text) {
            const std::int64_t rung = parse_integer("--grouped-gemm-rung", text);
            if (rung < 1 || rung > int(optimized::kHighestRung))
                reject("--grouped-gemm-rung", rung,
                       "must be 1 (1_mma_sync), 2 (2_tma_wgmma), 3 "
                       "(3_warp_specialized) or 4 (4_scheduler_and_epilogue)");
            optimized::set_rung(static_cast<optimized::Rung>(rung));
        },
        "Products of optimized_gpu: 1 (mma.sync), 2 (TMA, wgmma), 3 (and warps that "
        "load) or 4 (and pairs of blocks, TMA stores); default: the highest that device "
        "and widths allow");
}

std::string refusal(const Tier& tier, const MoEConfig& config) {
    try {
        tier.check(config);
        return "";
    } catch (const InputError& error) {
        return error.what();
    }
}

namespace {

/// "; reference_cpu, naive_gpu have": tiers whose layers can be in that dtype.
std::string who_has(DType dtype) {
    std::vector<std::string> names;
    for (const Tier* tier : tiers()) {
        const std::vector<DType> dtypes = tier->dtypes();
        if (tier->missing().empty() && std::count(dtypes.begin(), dtypes.end(), dtype))
            names.push_back(tier->name());
    }
    if (names.empty()) return "";
    return fmt::format("; {} {}", fmt::join(names, ", "),
                       names.size() == 1 ? "has" : "have");
}

}  // namespace

std::vector<ComponentSpec> choose_suppliers(const std::vector<std::string>& tier_names,
                                            const std::vector<std::string>& dtype_names,
                                            const MoEConfig* config) {
    std::vector<const Tier*> chosen;
    std::string left_out;
    for (const std::string& name : tier_names) {
        chosen.push_back(&find_tier("--tier", name));
        if (config != nullptr) chosen.back()->check(*config);
    }
    for (const Tier* tier : tier_names.empty() ? tiers() : std::vector<const Tier*>()) {
        std::string why = tier->missing();
        if (why.empty() && config != nullptr) why = refusal(*tier, *config);
        if (why.empty())
            chosen.push_back(tier);
        else
            left_out += "; left out: tier = " + tier->name() + ": " + why;
    }
    std::vector<DType> wanted;
    for (const std::string& name : dtype_names)
        wanted.push_back(parse_dtype("--dtype", name));

    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : chosen)
        for (DType dtype : tier->dtypes())
            if (wanted.empty() || std::count(wanted.begin(), wanted.end(), dtype))
                suppliers.push_back({tier->name(), dtype});
    for (DType dtype : wanted)
        if (std::none_of(suppliers.begin(), suppliers.end(),
                         [&](const ComponentSpec& s) { return s.dtype == dtype; }))
            reject(
                "--dtype", to_string(dtype),
                "no chosen tier has it for every component" + who_has(dtype) + left_out);
    if (!left_out.empty()) fmt::print(stderr, "moe: note: {}\n", left_out.substr(2));
    return suppliers;
}

}  // namespace moe
