#include "python/bindings/checks.h"

#include "core/error.h"
#include "core/glu_interleaving.h"
#include "core/parameters.h"
#include "core/transfer.h"

namespace moe::python {
namespace {

std::string in_words(const Tensor& tensor) {
    return to_string(tensor.dtype()) + " " + to_string(tensor.shape());
}

}  // namespace

void check_floating(const std::string& field, const Tensor& tensor, const Shape& shape) {
    if (!is_floating(tensor.dtype()) || tensor.shape() != shape)
        reject(field, in_words(tensor), "must be floating-point " + to_string(shape));
}

void check_rows(const std::string& field, const Tensor& tensor, std::int64_t width) {
    const Shape& shape = tensor.shape();
    if (!is_floating(tensor.dtype()) || shape.size() != 2 || shape[1] != width)
        reject(field, in_words(tensor),
               fmt::format("must be floating-point (rows, {})", width));
}

void check_routing_map(const MoEConfig& config, const Tensor& map,
                       std::int64_t num_tokens) {
    const Shape shape = {num_tokens, config.num_experts()};
    if (map.dtype() != DType::u8 || map.shape() != shape)
        reject("routing_map", in_words(map), "must be bool or uint8 " + to_string(shape));
    const Tensor host = transfer(map, {MemorySpace::host, DType::f32});
    const std::uint8_t* routed = host.data<std::uint8_t>();
    for (std::int64_t token = 0; token < num_tokens; ++token) {
        std::int64_t experts = 0;
        for (std::int64_t expert = 0; expert < config.num_experts(); ++expert)
            experts += *routed++ != 0;
        if (experts > config.moe_router_topk)
            reject("routing_map", fmt::format("{} experts of token {}", experts, token),
                   fmt::format("must be at most moe_router_topk = {}",
                               config.moe_router_topk));
    }
}

Tensor read_counts(const MoEConfig& config, const Tensor& counts, std::int64_t num_rows) {
    const Shape shape = {config.num_local_experts()};
    if ((counts.dtype() != DType::i32 && counts.dtype() != DType::i64) ||
        counts.shape() != shape)
        reject("tokens_per_expert", in_words(counts),
               "must be int32 or int64 " + to_string(shape));
    std::vector<std::int64_t> numbers;
    std::int64_t sum = 0;
    for (double count :
         to_doubles(transfer(counts, {MemorySpace::host, DType::f32}).view())) {
        numbers.push_back(std::int64_t(count));
        sum += numbers.back();
        if (count < 0)
            reject("tokens_per_expert", numbers.back(), "must not be negative");
    }
    if (sum != num_rows)
        reject("tokens_per_expert", fmt::format("{} in all", sum),
               fmt::format("must sum to the number of rows, {}", num_rows));
    return counts_tensor(numbers);
}

TensorMap component_parameters(const MoEConfig& config, const TensorMap& given,
                               const std::string& prefix) {
    TensorMap parameters;
    for (const auto& [name, shape] : parameter_shapes(config)) {
        if (!name.starts_with(prefix)) continue;
        const auto found = given.find(name);
        if (found == given.end()) {
            if (is_buffer(name) && name != "router.tid2eid") continue;
            reject(name, "absent", "required, with shape " + to_string(shape));
        }
        if (found->second.shape() != shape)
            reject(name, to_string(found->second.shape()), "must be " + to_string(shape));
        parameters.insert(*found);
    }
    return remove_glu_interleaving(config, parameters);
}

}  // namespace moe::python
