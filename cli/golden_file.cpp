// golden_file.cpp: read a golden case and check everything that can be checked before it
// runs, so that a malformed file is told apart from a layer that computes something else.

#include <cmath>
#include <set>

#include "cli/files.h"
#include "cli/golden.h"
#include "core/parameters.h"
#include "core/safetensors.h"
#include "core/transfer.h"

namespace moe {
namespace {

using nlohmann::json;

std::string metadata_or(const SafetensorsFile& file, const std::string& key,
                        const std::string& otherwise) {
    const auto found = file.metadata().find(key);
    return found == file.metadata().end() ? otherwise : found->second;
}

MoEConfig read_config(const SafetensorsFile& file) {
    const std::string format = metadata_or(file, "format", "absent");
    if (format != "moe-golden-1")
        reject(file.path() + ": __metadata__.format", format, "must be moe-golden-1");
    if (const std::string ranks = metadata_or(file, "world_size", "1"); ranks != "1")
        reject(file.path() + ": __metadata__.world_size", ranks,
               "only 1 is built so far (a single rank)");
    const std::string field = file.path() + ": __metadata__.moe_config";
    const std::string text = metadata_or(file, "moe_config", "");
    if (text.empty()) reject(field, "absent", "required: the layer's config as JSON");
    MoEConfig config = config_from_json(parse_json(field, text), field);
    try {
        config.finalize();
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

/// What a file may expect: the shape, -1 where it depends on the routing, and whether it
/// is floating-point.
struct Expectation {
    Shape shape;
    bool floating;
};

std::map<std::string, Expectation> expectations(const MoEConfig& config, std::int64_t S,
                                                std::int64_t B) {
    const std::int64_t T = S * B, E = config.num_experts(), H = config.hidden_size;
    std::map<std::string, Expectation> known = {
        {"expect.logits", {{T, E}, true}},
        {"expect.probs", {{T, E}, true}},
        {"expect.routing_map", {{T, E}, false}},
        {"expect.tokens_per_expert", {{E}, false}},
        {"expect.dispatched_hidden_states", {{-1, H}, true}},
        {"expect.dispatched_probs", {{-1}, true}},
        {"expect.expert_output", {{-1, H}, true}},
        {"expect.output", {{S, B, H}, true}},
        {"expect.expert_bias_updated", {{E}, true}},
        {"expect.grad.hidden_states", {{S, B, H}, true}},
    };
    for (const char* loss : {"load_balancing_loss", "seq_load_balancing_loss",
                             "global_load_balancing_loss", "z_loss"})
        known[std::string("expect.loss.") + loss] = {{}, true};
    for (const auto& [name, shape] : parameter_shapes(config))
        if (name != "router.expert_bias") known["expect.grad." + name] = {shape, true};
    return known;
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

}  // namespace

GoldenCase load_golden(const std::string& path) {
    const SafetensorsFile file = SafetensorsFile::open(path);
    GoldenCase golden;
    golden.path = path;
    golden.config = read_config(file);
    golden.name = metadata_or(file, "case", path.substr(path.find_last_of('/') + 1));
    golden.source = metadata_or(file, "source", "unknown");
    golden.source_errors = read_source_errors(file);

    // Inputs
    const std::int64_t H = golden.config.hidden_size;
    golden.hidden_states = read_tensor(file, "input.hidden_states", {-1, -1, H}, true);
    const std::int64_t S = golden.hidden_states.dim(0), B = golden.hidden_states.dim(1);
    if (file.contains("input.padding_mask")) {
        golden.padding_mask = read_tensor(file, "input.padding_mask", {B, S}, false);
        if (golden.padding_mask.dtype() != DType::u8)
            reject(path + ": input.padding_mask", to_string(golden.padding_mask.dtype()),
                   "must be U8 or BOOL");
    }
    if (file.contains("input.grad_output"))
        golden.grad_output = read_tensor(file, "input.grad_output", {S, B, H}, true);

    // Parameters
    const auto shapes = parameter_shapes(golden.config);
    for (const auto& [name, shape] : shapes)
        if (file.contains(name))
            golden.parameters[name] = read_tensor(file, name, shape, true);
    check_parameters(golden.config, golden.parameters, path);

    // Expectations, and what is left over
    const auto known = expectations(golden.config, S, B);
    const std::set<std::string> inputs = {"input.hidden_states", "input.padding_mask",
                                          "input.grad_output"};
    for (const std::string& name : file.names()) {
        const auto expectation = known.find(name);
        if (expectation != known.end())
            golden.expected[name] = read_tensor(file, name, expectation->second.shape,
                                                expectation->second.floating);
        else if (!inputs.contains(name) && !shapes.contains(name))
            golden.unknown_tensors.push_back(name);
    }
    for (const auto& [name, tensor] : golden.expected)
        if (name.starts_with("expect.grad.") && !golden.grad_output.defined())
            reject(path + ": input.grad_output", "absent", "required by " + name);
    return golden;
}

}  // namespace moe
