/// @file
/// What the test suites share: the suppliers to run over, random tensors, small configs,
/// and comparisons that say where two tensors differ most.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/module_spec.h"
#include "core/tensor.h"
#include "core/tier.h"

namespace moe {

/// How GoogleTest writes a parameter.
inline void PrintTo(const ComponentSpec& supplier, std::ostream* out) {
    *out << to_string(supplier);
}

}  // namespace moe

namespace moe::test {

/// Where the golden cases lie.
std::string golden_folder();

/// Why kernels cannot run on this machine, or nothing: gpu::missing_device().
std::string missing_device();

/// In a test that runs kernels: skips it where they cannot run.
#define NEEDS_DEVICE() \
    if (!missing_device().empty()) GTEST_SKIP() << missing_device()

/// The tiers that can run on this machine. The first call registers all.
std::vector<const Tier*> available_tiers();

/// Every dtype of every available tier: what TEST_P suites run over. The first call
/// registers the tiers, so it may be used in INSTANTIATE_TEST_SUITE_P.
std::vector<ComponentSpec> available_suppliers();

/// Every dtype of every available tier's `kind`: some have more than their layers.
std::vector<ComponentSpec> suppliers_of(ComponentKind kind);

/// available_suppliers() without bf16, for tests that must tell numbers apart that bf16
/// cannot.
std::vector<ComponentSpec> precise_suppliers();

/// fp64 and fp32 of every available tier: a router exists in both, and never in bf16.
std::vector<ComponentSpec> router_suppliers();

/// fp32 of every available tier, for what is fp32 whatever the supplier's dtype.
std::vector<ComponentSpec> fp32_suppliers();

/// Those whose components can be one rank's of several.
std::vector<ComponentSpec> on_ranks(std::vector<ComponentSpec> suppliers);

/// Those whose single operations the suites reach (tests/layer/ops.h). Those of
/// optimized_gpu have suites of their own: what they take and give is fused.
std::vector<ComponentSpec> with_operations(std::vector<ComponentSpec> suppliers);

/// Forward with dense maps, whatever the router hands on, …
Router::Output dense_forward(Router& router, const Tensor& hidden, const Tensor& mask,
                             const RunContext& context);
/// … and backward from their gradient. @param dprobs (T, E)
void dense_backward(Router& router, Tensor& dhidden, TensorMap& gradients,
                    const Tensor& dprobs, const Saved& saved, const RunContext& context);

/// Where a supplier's components want their tensors.
Placement placement_of(const ComponentSpec& supplier);

/// "reference_cpu_fp64", for the names of test instances.
std::string instance_name(const testing::TestParamInfo<ComponentSpec>& info);

/// Gated SiLU experts without bias or losses behind the all-to-all dispatcher. Change
/// what the test is about, then call finalize().
MoEConfig small_config(std::int64_t hidden = 12, std::int64_t experts = 6,
                       std::int64_t topk = 2, std::int64_t ffn = 10);

/// The router of `supplier`; finalizes the config.
std::unique_ptr<Router> make_router(const ComponentSpec& supplier, MoEConfig config,
                                    const TensorMap& parameters);

/// (size, size) fp32. As a router's weight it makes the hidden states the logits: H = E.
Tensor identity_matrix(std::int64_t size);

/// Standard normal values times `deviation`, fp32, exactly representable in bf16.
Tensor random_tensor(const Shape& shape, std::uint64_t seed, double deviation = 1.0);

/// Relative bound for `supplier` against fp64 (cli/compare/closeness.h, tier_bound).
double bound_of(const ComponentSpec& supplier);

/// Relative bound against fp64 formulas for what has passed through the router's scores,
/// which are fp32 in every tier.
double score_bound_of(const ComponentSpec& supplier);

/// Succeeds when `got` is within the relative Frobenius bound of `expected`; otherwise
/// says where they differ most. Bound 0 means exactly equal.
testing::AssertionResult Close(const TensorView& got, const TensorView& expected,
                               double bound);

/// Succeeds when all bytes agree.
testing::AssertionResult BitwiseEqual(const TensorView& got, const TensorView& expected);

/// Succeeds when `action` throws an InputError whose text is one line and contains all
/// the fragments.
testing::AssertionResult Rejects(const std::function<void()>& action,
                                 const std::vector<std::string>& fragments);

/// Remembers every value that a layer shows, by name.
class ValueRecorder : public Observer {
  public:
    void on_value(Step step, const std::string& name, const TensorView& view) override;
    const Tensor& at(const std::string& name) const { return values.at(name); }
    TensorMap values;
};

}  // namespace moe::test
