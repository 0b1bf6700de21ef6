#include "core/checkpoint/block.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>

#include "core/error.h"

namespace moe::checkpoint {
namespace {

// ------------------------------------------------------------------ 1. names in a block

/// What models call their block. Mistral Large 4 does not call it anything.
const std::vector<std::string> kBlocks = {
    "mlp.", "block_sparse_moe.", "feed_forward.", "ffn.", "mixer.", "moe."};
/// What only an MoE block has, where no name of a block stands in front.
const std::vector<std::string> kBeginnings = {
    "experts.",       "router.",     "gate.",         "shared_experts.",
    "shared_expert.", "shared_mlp.", "share_expert.", "shared_expert_gate."};

const std::map<std::string, Role>& whole_names() {
    static const std::map<std::string, Role> names = [] {
        std::map<std::string, Role> all;
        const auto add = [&](Role role, std::initializer_list<const char*> list) {
            for (const char* name : list) all[name] = role;
        };
        add(Role::router_weight,
            {"gate.weight", "router.weight", "router.gate.weight", "gate.wg.weight",
             "router.layer.weight", "router.classifier.weight"});
        add(Role::router_bias, {"router.bias"});
        add(Role::expert_bias,
            {"gate.e_score_correction_bias", "gate.expert_bias", "gate.bias",
             "gate.moe_statics.e_score_correction_bias", "e_score_correction_bias",
             "expert_bias", "router.expert_bias", "router.e_score_correction_bias",
             "experts.e_score_correction_bias", "moe_statics.e_score_correction_bias",
             "router_bias"});
        add(Role::qb_beta, {"router.qb_beta"});
        add(Role::tid2eid, {"gate.tid2eid", "router.tid2eid"});
        add(Role::shared_gate_weight,
            {"shared_expert_gate.weight", "shared_experts.gate_weight"});
        add(Role::fc1,
            {"experts.gate_up_proj", "experts.gate_up_proj.weight", "experts.fc1.weight",
             "experts.linear_fc1.weight", "input_linear.weight"});
        add(Role::fc2,
            {"experts.down_proj", "experts.down_proj.weight", "experts.fc2.weight",
             "experts.linear_fc2.weight", "output_linear.weight"});
        add(Role::fc1_gate, {"experts.gate_proj", "experts.mlp.w1"});
        add(Role::fc1_up, {"experts.up_proj", "experts.mlp.v1"});
        add(Role::fc2, {"experts.mlp.w2"});
        add(Role::fc1_bias, {"experts.gate_up_proj_bias", "experts.linear_fc1.bias"});
        add(Role::fc2_bias, {"experts.down_proj_bias", "experts.linear_fc2.bias"});
        add(Role::fc1_latent, {"fc1_latent_proj.weight"});
        add(Role::fc2_latent, {"fc2_latent_proj.weight"});
        add(Role::fc1_latent_bias, {"fc1_latent_proj.bias"});
        add(Role::fc2_latent_bias, {"fc2_latent_proj.bias"});
        return all;
    }();
    return names;
}

/// The projections of one MLP: an expert, or the shared one.
bool read_projection(const std::string& name, bool shared, Role& role) {
    static const std::map<std::string, std::pair<Role, Role>> names = {
        {"gate_proj.weight", {Role::fc1_gate, Role::shared_gate}},
        {"w1.weight", {Role::fc1_gate, Role::shared_gate}},
        {"up_proj.weight", {Role::fc1_up, Role::shared_up}},
        {"w3.weight", {Role::fc1_up, Role::shared_up}},
        {"down_proj.weight", {Role::fc2, Role::shared_fc2}},
        {"w2.weight", {Role::fc2, Role::shared_fc2}},
        {"gate_up_proj.weight", {Role::fc1, Role::shared_fc1}},
        {"linear_fc1.weight", {Role::fc1, Role::shared_fc1}},
        {"linear_fc2.weight", {Role::fc2, Role::shared_fc2}},
        {"input_linear.weight", {Role::fc1, Role::shared_fc1}},
        {"output_linear.weight", {Role::fc2, Role::shared_fc2}},
    };
    const auto found = names.find(name);
    if (found != names.end())
        role = shared ? found->second.second : found->second.first;
    else if (!shared && (name == "linear_fc1.bias" || name == "linear_fc2.bias"))
        role = name == "linear_fc1.bias" ? Role::fc1_bias : Role::fc2_bias;
    else
        return false;
    return true;
}

/// Takes `beginning` off; false where it is not there.
bool take(std::string& text, const std::string& beginning) {
    if (!text.starts_with(beginning)) return false;
    text.erase(0, beginning.size());
    return true;
}

/// Takes a number off.
bool take_number(std::string& text, std::int64_t& number) {
    const char* begin = text.data();
    const auto [stop, error] = std::from_chars(begin, begin + text.size(), number);
    if (error != std::errc() || number < 0) return false;
    text.erase(0, stop - begin);
    return true;
}

/// "gate_proj" of "gate_proj.weight".
std::string last_word(std::string name) {
    for (const char* ending : {".weight", ".bias"})
        if (name.ends_with(ending)) name.resize(name.size() - std::string(ending).size());
    return name.substr(name.find_last_of('.') + 1);
}

/// "experts.3.w1.weight", "experts.local_experts.3.linear_fc1.weight", and
/// "experts.linear_fc1.weight3".
bool read_expert(std::string name, Part& part) {
    if (!take(name, "experts.")) return false;
    take(name, "local_experts.");
    if (take_number(name, part.expert)) {
        part.last = last_word(name);
        return take(name, ".") && read_projection(name, false, part.role);
    }
    for (const char* begin : {"linear_fc1.weight", "linear_fc2.weight", "linear_fc1.bias",
                              "linear_fc2.bias"}) {
        std::string rest = name;
        if (!take(rest, begin) || !take_number(rest, part.expert) || !rest.empty())
            continue;
        part.last = last_word(begin);
        return read_projection(begin, false, part.role);
    }
    return false;
}

bool read_within(const std::string& name, Part& part) {
    part = {};
    part.last = last_word(name);
    if (const auto found = whole_names().find(name); found != whole_names().end()) {
        part.role = found->second;
        part.stacked = name.starts_with("experts.mlp.");
        return true;
    }
    for (const char* shared :
         {"shared_experts.", "shared_expert.", "shared_mlp.", "share_expert."})
        if (std::string rest = name; take(rest, shared))
            return read_projection(rest, true, part.role);
    return read_expert(name, part);
}

/// The name without the block's own; "" where it is of no block.
std::string within_block(const std::string& name) {
    for (const std::string& block : kBlocks)
        if (std::string rest = name; take(rest, block)) return rest;
    const bool known = std::any_of(
        kBeginnings.begin(), kBeginnings.end(),
        [&](const std::string& beginning) { return name.starts_with(beginning); });
    Part part;
    return known || read_within(name, part) ? name : "";
}

// ------------------------------------------------------------------ 2. names of a layer

/// Where "layers.<n>." ends in a name, and n; npos where there is none.
std::size_t end_of_layer(const std::string& name, std::int64_t& layer) {
    for (const char* list : {"layers.", "blocks.", "h.", "layer."})
        for (std::size_t at = name.find(list); at != name.npos;
             at = name.find(list, at + 1)) {
            if (at > 0 && name[at - 1] != '.') continue;
            std::string rest = name.substr(at + std::string(list).size());
            const std::size_t before = rest.size();
            if (take_number(rest, layer) && rest.starts_with("."))
                return at + std::string(list).size() + (before - rest.size()) + 1;
        }
    return name.npos;
}

/// Parts of a model beside its decoder, and layers that only training has.
bool is_elsewhere(const std::string& name) {
    for (const char* word : {"vision", "visual", "audio", "vit.", "talker.", "mtp."})
        if (name.find(word) != name.npos) return true;
    return false;
}

/// Bytes that Transformer Engine writes beside tensors.
bool is_ignored(const std::string& name) {
    return name.ends_with("_extra_state") || name.ends_with("tokens_per_expert");
}

void require_plain(const Source& source, const std::string& name) {
    static const std::vector<std::pair<std::string, std::string>> endings = {
        {"_blocks", "MXFP4"},        {"_scales", "MXFP4"},
        {"_scale_inv", "fp8"},       {"_scale", "fp8"},
        {".scale", "fp8 or fp4"},    {".qweight", "GPTQ or AWQ"},
        {".qzeros", "GPTQ or AWQ"},  {".scales", "GPTQ or AWQ"},
        {".g_idx", "GPTQ"},          {"_packed", "compressed"},
        {".absmax", "bitsandbytes"}, {".quant_map", "bitsandbytes"},
        {".SCB", "bitsandbytes"}};
    for (const auto& [ending, kind] : endings)
        if (name.ends_with(ending))
            reject(source.where(name), "quantised (" + kind + ")",
                   "the block must be F64, F32 or BF16: dequantise it first");
}

/// Prefixes up to and with the layer's number under which a router is.
std::set<std::string> find_prefixes(const Source& source, std::int64_t layer,
                                    bool& layer_exists, std::string& a_name) {
    std::set<std::string> prefixes;
    for (const std::string& name : source.names()) {
        std::int64_t of = -1;
        const std::size_t end = end_of_layer(name, of);
        if (end == name.npos || of != layer || is_elsewhere(name)) continue;
        layer_exists = true;
        Part any;
        if (a_name.empty() || read_name(name.substr(end), any)) a_name = name;
        Part part;
        if (read_name(name.substr(end), part) && part.role == Role::router_weight)
            prefixes.insert(name.substr(0, end));
    }
    return prefixes;
}

/// Tensors of a block alone: the shortest text before the name of a router.
std::set<std::string> find_bare_prefix(const Source& source) {
    std::int64_t layer = -1;
    for (const std::string& name : source.names())
        if (end_of_layer(name, layer) != name.npos) return {};
    for (const std::string& name : source.names())
        for (std::size_t at = 0;; at = name.find('.', at) + 1) {
            Part part;
            if (read_name(name.substr(at), part) && part.role == Role::router_weight)
                return {name.substr(0, at)};
            if (name.find('.', at) == name.npos) break;
        }
    return {};
}

std::string find_prefix(const Source& source, const std::string& place,
                        std::int64_t layer) {
    bool layer_exists = false;
    std::string a_name;
    std::set<std::string> found = find_prefixes(source, layer, layer_exists, a_name);
    if (found.empty() && !layer_exists && place.empty()) found = find_bare_prefix(source);
    const std::string within = place.empty() ? "" : " in " + place;
    if (found.empty())
        reject("layer", layer,
               layer_exists ? fmt::format("must be a layer of experts: it has {}, and no "
                                          "router{}",
                                          a_name, within)
                            : "must be a layer of which there are tensors" + within);
    if (found.size() > 1)
        reject("layer", layer,
               fmt::format("must be one, is {} and {}{}", *found.begin(),
                           *std::next(found.begin()), within));
    return *found.begin();
}

void require_all_experts(const Source& source, const Tensors& tensors) {
    const auto& names = tensors.names;
    const auto hole = std::find(names.begin(), names.end(), "");
    if (hole == names.end()) return;
    const std::string& other =
        *std::find_if(names.begin(), names.end(), [](const auto& n) { return n != ""; });
    reject(source.where(other), fmt::format("expert {} is absent", hole - names.begin()),
           fmt::format("must be there for experts 0 to {}", names.size() - 1));
}

}  // namespace

bool read_name(const std::string& name, Part& part) {
    const std::string within = within_block(name);
    if (within.empty() || !read_within(within, part)) {
        // Step 3.7 keeps its experts' tensors beside the gate
        std::string rest = name;
        if (!take(rest, "moe.") || !read_projection(rest, false, part.role)) return false;
        part.expert = -1;
        part.stacked = false;
        part.last = last_word(rest);
    }
    return true;
}

Block find_block(const Source& source, const std::string& place, std::int64_t layer,
                 std::int64_t experts) {
    Block block;
    block.prefix = find_prefix(source, place, layer);
    for (const std::string& name : source.names()) {
        if (!name.starts_with(block.prefix) || is_ignored(name)) continue;
        const std::string rest = name.substr(block.prefix.size());
        Part part;
        if (!read_name(rest, part)) {
            if (within_block(rest).empty()) continue;  // of the layer, not of its block
            require_plain(source, name);
            reject(source.where(name), "unexpected",
                   "no tensor of that name is known in an MoE block");
        }
        Tensors& tensors = block.parts[part.role];
        const bool per_expert = part.expert >= 0;
        if (!tensors.names.empty() && (!per_expert || !tensors.per_expert))
            reject(source.where(name), "unexpected",
                   "must not be there beside " + source.where(tensors.names.back()));
        if (per_expert && part.expert >= experts)
            reject(source.where(name), "unexpected",
                   fmt::format("experts must be 0 to {}, by the config", experts - 1));
        tensors.per_expert = per_expert;
        tensors.stacked = part.stacked;
        tensors.last = part.last;
        if (!per_expert) {
            tensors.names = {name};
            continue;
        }
        tensors.names.resize(experts);
        std::string& place_of = tensors.names[part.expert];
        if (!place_of.empty())
            reject(source.where(name), "unexpected",
                   "must not be there beside " + source.where(place_of));
        place_of = name;
    }
    for (const auto& [role, tensors] : block.parts) require_all_experts(source, tensors);
    return block;
}

std::optional<std::int64_t> layer_of_router(const std::string& name) {
    std::int64_t layer = -1;
    const std::size_t end = end_of_layer(name, layer);
    Part part;
    if (end == name.npos || is_elsewhere(name) || !read_name(name.substr(end), part) ||
        part.role != Role::router_weight)
        return std::nullopt;
    return layer;
}

}  // namespace moe::checkpoint
