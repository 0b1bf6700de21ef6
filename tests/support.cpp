#include "tests/support.h"

#include <cstring>

#include "cli/commands.h"
#include "cli/compare/closeness.h"
#include "cli/places.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "gpu/tensor.h"

namespace moe::test {

std::string golden_folder() {
    return moe::golden_folder();
}

std::string missing_device() {
    return gpu::missing_device();
}

std::vector<const Tier*> available_tiers() {
    if (tiers().empty()) register_all_tiers();
    std::vector<const Tier*> available = tiers();
    std::erase_if(available, [](const Tier* tier) { return !tier->missing().empty(); });
    return available;
}

std::vector<ComponentSpec> available_suppliers() {
    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : available_tiers())
        for (DType dtype : tier->dtypes()) suppliers.push_back({tier->name(), dtype});
    return suppliers;
}

std::vector<ComponentSpec> suppliers_of(ComponentKind kind) {
    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : available_tiers())
        for (DType dtype : tier->dtypes(kind)) suppliers.push_back({tier->name(), dtype});
    return suppliers;
}

std::vector<ComponentSpec> precise_suppliers() {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.dtype == DType::bf16; });
    return suppliers;
}

std::vector<ComponentSpec> router_suppliers() {
    std::vector<ComponentSpec> suppliers;
    for (const Tier* tier : available_tiers())
        for (DType dtype : {DType::f64, DType::f32})
            suppliers.push_back({tier->name(), dtype});
    return suppliers;
}

std::vector<ComponentSpec> fp32_suppliers() {
    std::vector<ComponentSpec> suppliers = router_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.dtype != DType::f32; });
    return suppliers;
}

std::vector<ComponentSpec> on_ranks(std::vector<ComponentSpec> suppliers) {
    std::erase_if(suppliers, [](const ComponentSpec& s) {
        return !find_tier("tier", s.tier).works_on_ranks();
    });
    return suppliers;
}

std::vector<ComponentSpec> with_operations(std::vector<ComponentSpec> suppliers) {
    std::erase_if(suppliers,
                  [](const ComponentSpec& s) { return s.tier == "optimized_gpu"; });
    return suppliers;
}

Router::Output dense_forward(Router& router, const Tensor& hidden, const Tensor& mask,
                             const RunContext& context) {
    Router::Output output = router.forward(hidden, mask, context);
    output.losses.read();  // where some refuse logits that are not finite
    if (!output.probs.defined()) router.make_dense(output);
    return output;
}

void dense_backward(Router& router, Tensor& dhidden, TensorMap& gradients,
                    const Tensor& dprobs, const Saved& saved, const RunContext& context) {
    router.backward(dhidden, gradients, router.make_dense_backward(dprobs, saved), saved,
                    context);
}

Placement placement_of(const ComponentSpec& supplier) {
    MoEConfig config = small_config();
    config.finalize();
    return find_tier("tier", supplier.tier)
        .make_dispatcher(config, supplier.dtype)
        ->placement();
}

std::string instance_name(const testing::TestParamInfo<ComponentSpec>& info) {
    return info.param.tier + "_" + to_string(info.param.dtype);
}

MoEConfig small_config(std::int64_t hidden, std::int64_t experts, std::int64_t topk,
                       std::int64_t ffn) {
    MoEConfig config;
    config.hidden_size = hidden;
    config.num_moe_experts = experts;
    config.moe_router_topk = topk;
    config.moe_ffn_hidden_size = ffn;
    config.gated_linear_unit = true;
    config.activation_func = "silu";
    config.add_bias_linear = false;
    config.moe_token_dispatcher_type = "alltoall";
    config.moe_router_load_balancing_type = {"none"};
    return config;
}

std::unique_ptr<Router> make_router(const ComponentSpec& supplier, MoEConfig config,
                                    const TensorMap& parameters) {
    config.finalize();
    return find_tier("tier", supplier.tier)
        .make_router(config, supplier.dtype, parameters);
}

Tensor identity_matrix(std::int64_t size) {
    Tensor matrix = Tensor::zeros({size, size}, DType::f32);
    for (std::int64_t i = 0; i < size; ++i) matrix.data<float>()[i * size + i] = 1.0f;
    return matrix;
}

Tensor random_tensor(const Shape& shape, std::uint64_t seed, double deviation) {
    Tensor tensor = Tensor::empty(shape, DType::f32);
    const Rng rng(seed);
    for (std::int64_t i = 0; i < tensor.numel(); ++i)
        tensor.data<float>()[i] =
            static_cast<float>(BFloat16(static_cast<float>(deviation * rng.normal(i))));
    return tensor;
}

double bound_of(const ComponentSpec& supplier) {
    return tier_bound(supplier.dtype, false);
}

double score_bound_of(const ComponentSpec& supplier) {
    if (supplier.dtype == DType::f64) return 1e-6;
    return supplier.dtype == DType::f32 ? 5e-6 : bound_of(supplier);
}

testing::AssertionResult Close(const TensorView& got, const TensorView& expected,
                               double bound) {
    const Closeness closeness = measure_closeness(got, expected);
    if (closeness.within(bound)) return testing::AssertionSuccess();
    return testing::AssertionFailure()
           << "relative error " << closeness.error << " over the bound " << bound << "; "
           << describe_worst(closeness, got, expected);
}

testing::AssertionResult BitwiseEqual(const TensorView& got_anywhere,
                                      const TensorView& expected_anywhere) {
    const auto on_host = [](const TensorView& view) {
        return transfer(view, {MemorySpace::host, view.dtype});
    };
    const Tensor got_copy = on_host(got_anywhere);
    const Tensor expected_copy = on_host(expected_anywhere);
    const TensorView &got = got_copy.view(), &expected = expected_copy.view();
    if (got.shape == expected.shape && got.dtype == expected.dtype &&
        std::memcmp(got.bytes, expected.bytes, got.size_bytes()) == 0)
        return testing::AssertionSuccess();
    const Closeness closeness = measure_closeness(got, expected);
    return testing::AssertionFailure()
           << "not bitwise equal; " << describe_worst(closeness, got, expected);
}

testing::AssertionResult Rejects(const std::function<void()>& action,
                                 const std::vector<std::string>& fragments) {
    try {
        action();
    } catch (const InputError& error) {
        const std::string text = error.what();
        if (text.find('\n') != std::string::npos)
            return testing::AssertionFailure() << "more than one line: " << text;
        for (const std::string& fragment : fragments)
            if (text.find(fragment) == std::string::npos)
                return testing::AssertionFailure()
                       << "\"" << text << "\" lacks \"" << fragment << "\"";
        return testing::AssertionSuccess();
    }
    return testing::AssertionFailure() << "nothing was rejected";
}

void ValueRecorder::on_value(Step, const std::string& name, const TensorView& view) {
    values[name] = transfer(view, {MemorySpace::host, view.dtype});
}

}  // namespace moe::test
