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

/// @param what  in words, for errors
int read_count(const SafetensorsFile& file, const char* key, const char* what) {
    const std::string text = metadata_or(file, key, "1");
    int count = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, count);
    if (error != std::errc() || stop != end || count < 1)
        reject(fmt::format("{}: __metadata__.{}", file.path(), key), text,
               fmt::format("must be the number of {}, a positive integer", what));
    return count;
}

bool read_training(const SafetensorsFile& file) {
    const std::string text = metadata_or(file, "training", "true");
    if (text != "true" && text != "false")
        reject(file.path() + ": __metadata__.training", text, "must be true or false");
    return text == "true";
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

/// What a whole optimizer step makes: updated buffers, losses and sums of gradients, …
bool is_of_step(const std::string& name) {
    return name.ends_with("_updated") || name.starts_with("expect.loss.") ||
           (name.starts_with("expect.grad.") && name != "expect.grad.hidden_states");
}
/// … and what one of several micro-batches does.
bool is_of_micro_batch(const std::string& name) {
    return !is_of_step(name) || name.starts_with("expect.loss.");
}

/// What there is in training alone.
bool needs_training(const std::string& name) {
    return name.ends_with("_updated") || name.starts_with("expect.loss.");
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

/// Reads what belongs to ranks and micro-batches, by its whole name.
class RankReader {
  public:
    /// @param read  collects the names of what is read
    RankReader(const SafetensorsFile& file, const GoldenCase& golden, int micro_batches,
               std::set<std::string>& read)
        : file_(file), golden_(golden), micro_batches_(micro_batches), read_(read) {}

    /// @param prefix  "rank.<r>.", or "" in a file of one rank
    GoldenRank read(const std::string& prefix) {
        GoldenRank rank;
        for (int i = 0; i < micro_batches_; ++i) {
            const std::string within = micro_batch_prefix(i, micro_batches_);
            GoldenInput input = read_input(prefix + within);
            if (i > 0 && input.grad_output.defined() != rank.grad_output.defined())
                reject(file_.path() + ": " + prefix + within + "input.grad_output",
                       rank.grad_output.defined() ? "absent" : "present",
                       "all micro-batches must have it, or none");
            expect(rank, prefix, within, input, [&](const std::string& name) {
                return micro_batches_ == 1 || is_of_micro_batch(name);
            });
            if (i == 0)
                static_cast<GoldenInput&>(rank) = input;
            else
                rank.more_micro_batches.push_back(input);
        }
        if (micro_batches_ > 1) expect(rank, prefix, "", rank, is_of_step);
        if (rank.expected.empty())
            reject(file_.path(), "no " + prefix + "expect.* tensor",
                   in_a_golden_case("required, that there is something to check,"));
        return rank;
    }

  private:
    Tensor take(const std::string& name, const Shape& shape, bool floating) {
        read_.insert(name);
        return read_tensor(file_, name, shape, floating);
    }

    GoldenInput read_input(const std::string& prefix) {
        GoldenInput input;
        const Shape any = {-1, -1, golden_.config.hidden_size};
        input.hidden_states = take(prefix + "input.hidden_states", any, true);
        const std::int64_t S = input.hidden_states.dim(0), B = input.hidden_states.dim(1);
        if (file_.contains(prefix + "input.padding_mask")) {
            input.padding_mask = take(prefix + "input.padding_mask", {B, S}, false);
            if (input.padding_mask.dtype() != DType::u8)
                reject(file_.path() + ": " + prefix + "input.padding_mask",
                       to_string(input.padding_mask.dtype()), "must be U8 or BOOL");
        }
        const MoEConfig& config = golden_.config;
        if (config.moe_router_hash_vocab_size)
            input.token_ids = take(prefix + "input.token_ids", {B, S}, false);
        if (config.moe_enable_routing_replay &&
            file_.contains(prefix + "input.target_topk_idx"))
            input.target_topk_idx = take(prefix + "input.target_topk_idx",
                                         {S * B, config.moe_router_topk}, false);
        if (file_.contains(prefix + "input.grad_output"))
            input.grad_output =
                take(prefix + "input.grad_output", input.hidden_states.shape(), true);
        return input;
    }

    /// The expectations of this kind under rank and micro-batch.
    template <typename IsOfThis>
    void expect(GoldenRank& rank, const std::string& prefix, const std::string& within,
                const GoldenInput& input, const IsOfThis& is_of_this) {
        const Tensor& hidden = input.hidden_states;
        for (const auto& [name, expectation] :
             expectations(golden_.config, hidden.dim(0), hidden.dim(1))) {
            const std::string whole = prefix + within + name;
            if (!file_.contains(whole) || !is_of_this(name) ||
                (needs_training(name) && !golden_.training))
                continue;
            rank.expected[within + name] =
                take(whole, expectation.shape, expectation.floating);
            if (name.starts_with("expect.grad.") && !input.grad_output.defined())
                reject(file_.path() + ": " + prefix +
                           (within.empty() ? micro_batch_prefix(0, micro_batches_)
                                           : within) +
                           "input.grad_output",
                       "absent", "required by " + whole);
        }
    }

    const SafetensorsFile& file_;
    const GoldenCase& golden_;
    int micro_batches_;
    std::set<std::string>& read_;
};

/// Ranks work together: what one of them is given, all must be given.
void check_alike(const std::string& path, const std::vector<GoldenRank>& ranks) {
    const std::vector<GoldenInput> first = ranks[0].micro_batches();
    const auto check = [&](const char* name, Tensor GoldenInput::*input) {
        for (std::size_t r = 1; r < ranks.size(); ++r)
            for (std::size_t i = 0; i < first.size(); ++i) {
                const bool in_first = (first[i].*input).defined();
                if ((ranks[r].micro_batches()[i].*input).defined() == in_first) continue;
                reject(fmt::format("{}: rank.{}.{}{}", path, r,
                                   micro_batch_prefix(i, first.size()), name),
                       in_first ? "absent" : "present",
                       "all ranks must have it, or none");
            }
    };
    check("input.padding_mask", &GoldenInput::padding_mask);
    check("input.target_topk_idx", &GoldenInput::target_topk_idx);
    check("input.grad_output", &GoldenInput::grad_output);
}

}  // namespace

GoldenCase load_golden(const std::string& path) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    const int world_size = read_count(file, "world_size", "ranks");
    const int micro_batches = read_count(file, "micro_batches", "micro-batches");
    GoldenCase golden;
    golden.path = path;
    golden.config = read_config(file, world_size);
    golden.name = metadata_or(file, "case", path.substr(path.find_last_of('/') + 1));
    golden.source = metadata_or(file, "source", "unknown");
    golden.source_dtype = read_source_dtype(file);
    golden.source_errors = read_source_errors(file);
    golden.training = read_training(file);

    std::set<std::string> read;
    RankReader reader(file, golden, micro_batches, read);
    for (int r = 0; r < world_size; ++r)
        golden.ranks.push_back(
            reader.read(world_size == 1 ? "" : fmt::format("rank.{}.", r)));
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
