// golden_file.cpp: read a golden case and check everything that can be checked before it
// runs, so that a malformed file is told apart from a layer that computes something else.

#include <charconv>
#include <cmath>
#include <set>

#include "cli/files.h"
#include "cli/golden/golden.h"
#include "cli/places.h"
#include "core/given_experts.h"
#include "core/parameters.h"
#include "core/safetensors.h"
#include "core/transfer.h"
#include "distributed/rank_generator.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

using nlohmann::json;

std::string metadata_or(const SafetensorsFile& file, const std::string& key,
                        const std::string& otherwise) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? otherwise : found->second;
}

int read_world_size(const SafetensorsFile& file) {
    const std::string text = metadata_or(file, "world_size", "1");
    int world_size = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, world_size);
    if (error != std::errc() || stop != end || world_size < 1)
        reject(file.path() + ": __metadata__.world_size", text,
               "must be the number of ranks, a positive integer");
    return world_size;
}

/// What a file must be that reads as safetensors, and lacks what this is about.
std::string in_a_golden_case(const std::string& what) {
    return fmt::format(
        "{} in a golden case, a layer's config, inputs, weights and expected values; "
        "its format: {}/README.md",
        what, golden_folder());
}

MoEConfig read_config(const SafetensorsFile& file, int world_size) {
    const std::string format = metadata_or(file, "format", "absent");
    if (format != "moe-golden-1")
        reject(file.path() + ": __metadata__.format", format,
               in_a_golden_case("must be moe-golden-1"));
    const std::string field = file.path() + ": __metadata__.moe_config";
    const std::string text = metadata_or(file, "moe_config", "");
    if (text.empty()) reject(field, "absent", in_a_golden_case("required as JSON"));
    MoEConfig config = config_from_json(parse_json(field, text), field);
    try {
        config.finalize();
        distributed::parallel_sizes(config, world_size);
    } catch (const InputError& error) {
        throw InputError(field + ": " + error.what());
    }
    return config;
}

void require_finite(const std::string& where, const Tensor& tensor) {
    const std::vector<double> values = to_doubles(tensor);
    for (std::size_t i = 0; i < values.size(); ++i)
        if (!std::isfinite(values[i]))
            reject(fmt::format("{}[{}]", where, i), values[i], "must be finite");
}

/// The tensor, with the shape and kind of element it must have. `shape` may have -1 where
/// only the run can tell.
Tensor read_tensor(const SafetensorsFile& file, const std::string& name,
                   const Shape& shape, bool floating) {
    const std::string where = file.path() + ": " + name;
    if (!file.contains(name))
        reject(
            where, "absent",
            in_a_golden_case(fmt::format("required, with shape {},", to_string(shape))));
    Tensor tensor = file.tensor(name);
    bool fits = tensor.shape().size() == shape.size();
    for (std::size_t axis = 0; fits && axis < shape.size(); ++axis)
        fits = shape[axis] < 0 || tensor.dim(axis) == shape[axis];
    if (!fits)
        reject(where, "shape " + to_string(tensor.shape()),
               "must have shape " + to_string(shape));
    if (is_floating(tensor.dtype()) != floating)
        reject(where, to_string(tensor.dtype()),
               floating ? "must be F64, F32 or BF16" : "must be an integer type");
    if (floating) require_finite(where, tensor);
    return tensor;
}

/// What a file may expect of a rank: the shape, -1 where it depends on the routing, and
/// whether it is floating-point.
struct Expectation {
    Shape shape;
    bool floating;
};

std::map<std::string, Expectation> expectations(const MoEConfig& config, std::int64_t S,
                                                std::int64_t B) {
    const std::int64_t T = S * B, E = config.num_experts(), H = config.hidden_size;
    const std::int64_t L = config.num_local_experts(), latent = config.latent_size();
    const std::int64_t EP = config.expert_model_parallel_size;
    const std::int64_t ETP = *config.expert_tensor_parallel_size;
    std::map<std::string, Expectation> known = {
        {"expect.logits", {{T, E}, true}},
        {"expect.probs", {{T, E}, true}},
        {"expect.routing_map", {{T, E}, false}},
        {"expect.input_splits", {{EP}, false}},
        {"expect.output_splits", {{EP}, false}},
        {"expect.output_splits_tp", {{ETP}, false}},
        {"expect.sent_hidden_states", {{-1, latent}, true}},
        {"expect.received_hidden_states", {{-1, latent}, true}},
        {"expect.tokens_per_expert", {{L}, false}},
        {"expect.dispatched_hidden_states", {{-1, latent}, true}},
        {"expect.dispatched_probs", {{-1}, true}},
        {"expect.expert_output", {{-1, latent}, true}},
        {"expect.output", {{S, B, H}, true}},
        {"expect.expert_bias_updated", {{E}, true}},
        {"expect.qb_beta_updated", {{E}, true}},
        {"expect.grad.hidden_states", {{S, B, H}, true}},
    };
    for (const char* loss : {"load_balancing_loss", "seq_load_balancing_loss",
                             "global_load_balancing_loss", "z_loss"})
        known[std::string("expect.loss.") + loss] = {{}, true};
    for (const auto& [name, shape] : parameter_shapes(config))
        if (!is_buffer(name)) known["expect.grad." + name] = {shape, true};
    return known;
}

std::optional<DType> read_source_dtype(const SafetensorsFile& file) {
    const std::string name = metadata_or(file, "source_dtype", "");
    if (name.empty()) return std::nullopt;
    return parse_dtype(file.path() + ": __metadata__.source_dtype", name);
}

std::map<std::string, std::map<std::string, double>> read_source_errors(
    const SafetensorsFile& file) {
    const std::string text = metadata_or(file, "source_errors", "{}");
    const std::string field = file.path() + ": __metadata__.source_errors";
    try {
        return parse_json(field, text)
            .get<std::map<std::string, std::map<std::string, double>>>();
    } catch (const json::exception&) {
        reject(field, text.substr(0, 60), "must map dtypes to errors by tensor name");
    }
}

/// One rank's inputs and expectations.
/// @param prefix  of their names: "rank.<r>.", or "" in a file of one rank
/// @param read    collects the names of what is read
GoldenRank read_rank(const SafetensorsFile& file, const MoEConfig& config,
                     const std::string& prefix, std::set<std::string>& read) {
    GoldenRank rank;
    const auto take = [&](const std::string& name, const Shape& shape, bool floating) {
        read.insert(prefix + name);
        return read_tensor(file, prefix + name, shape, floating);
    };
    rank.hidden_states = take("input.hidden_states", {-1, -1, config.hidden_size}, true);
    const std::int64_t S = rank.hidden_states.dim(0), B = rank.hidden_states.dim(1);
    if (file.contains(prefix + "input.padding_mask")) {
        rank.padding_mask = take("input.padding_mask", {B, S}, false);
        if (rank.padding_mask.dtype() != DType::u8)
            reject(file.path() + ": " + prefix + "input.padding_mask",
                   to_string(rank.padding_mask.dtype()), "must be U8 or BOOL");
    }
    if (config.moe_router_hash_vocab_size)
        rank.token_ids = take("input.token_ids", {B, S}, false);
    if (config.moe_enable_routing_replay &&
        file.contains(prefix + "input.target_topk_idx"))
        rank.target_topk_idx =
            take("input.target_topk_idx", {S * B, config.moe_router_topk}, false);
    if (file.contains(prefix + "input.grad_output"))
        rank.grad_output = take("input.grad_output", rank.hidden_states.shape(), true);
    for (const auto& [name, expectation] : expectations(config, S, B)) {
        if (!file.contains(prefix + name)) continue;
        rank.expected[name] = take(name, expectation.shape, expectation.floating);
        if (name.starts_with("expect.grad.") && !rank.grad_output.defined())
            reject(file.path() + ": " + prefix + "input.grad_output", "absent",
                   "required by " + prefix + name);
    }
    if (rank.expected.empty())
        reject(file.path(), "no " + prefix + "expect.* tensor",
               in_a_golden_case("required, that there is something to check,"));
    return rank;
}

/// Ranks work together: what one of them is given, all must be given.
void check_alike(const std::string& path, const std::vector<GoldenRank>& ranks) {
    const auto check = [&](const char* name, Tensor GoldenRank::*input) {
        for (std::size_t r = 1; r < ranks.size(); ++r)
            if ((ranks[r].*input).defined() != (ranks[0].*input).defined())
                reject(fmt::format("{}: rank.{}.{}", path, r, name),
                       (ranks[0].*input).defined() ? "absent" : "present",
                       "all ranks must have it, or none");
    };
    check("input.padding_mask", &GoldenRank::padding_mask);
    check("input.target_topk_idx", &GoldenRank::target_topk_idx);
    check("input.grad_output", &GoldenRank::grad_output);
}

}  // namespace

GoldenCase load_golden(const std::string& path) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    const int world_size = read_world_size(file);
    GoldenCase golden;
    golden.path = path;
    golden.config = read_config(file, world_size);
    golden.name = metadata_or(file, "case", path.substr(path.find_last_of('/') + 1));
    golden.source = metadata_or(file, "source", "unknown");
    golden.source_dtype = read_source_dtype(file);
    golden.source_errors = read_source_errors(file);

    std::set<std::string> read;
    for (int r = 0; r < world_size; ++r)
        golden.ranks.push_back(
            read_rank(file, golden.config,
                      world_size == 1 ? "" : fmt::format("rank.{}.", r), read));
    check_alike(path, golden.ranks);

    const MoEConfig whole = distributed::single_rank_config(golden.config);
    for (const auto& [name, shape] : parameter_shapes(whole)) {
        const bool is_table = name == kTid2Eid;
        if (is_buffer(name) && !is_table && !file.contains(name)) continue;  // zero
        golden.parameters[name] = read_tensor(file, name, shape, !is_table);
        read.insert(name);
    }

    for (const std::string& name : file.names())
        if (!read.contains(name)) golden.unknown_tensors.push_back(name);
    return golden;
}

}  // namespace moe
