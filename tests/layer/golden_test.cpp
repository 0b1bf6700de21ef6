// Golden cases: numbers that Megatron-Core's and Hugging Face's own code computed.

#include "cli/golden/golden.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <set>

#include "cli/compare/comparison.h"
#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

std::string golden_file(const std::string& name) {
    return golden_folder() + "/" + name + ".safetensors";
}

/// Of the folder, or of one in it ("models/").
std::vector<std::string> golden_names(const std::string& within = "") {
    std::vector<std::string> names;
    for (const auto& entry :
         std::filesystem::directory_iterator(golden_folder() + "/" + within))
        if (entry.path().extension() == ".safetensors")
            names.push_back(within + entry.path().stem().string());
    std::sort(names.begin(), names.end());
    return names;
}

void expect_match(const GoldenCase& golden, const ModuleSpec& spec) {
    const CaseResult result = verify_golden(golden, spec);
    if (const auto step = result.first_deviation()) ADD_FAILURE() << begins_at(*step);
    bool all_ok = true;
    std::set<std::string> checked;
    for (const TensorCheck& check : result.checks) {
        EXPECT_TRUE(check.ok) << check.name << ": error " << check.error << ", bound "
                              << check.bound << "; " << check.detail;
        // A bound that somebody widens makes every case pass.
        if (golden.source_dtype == DType::bf16) {
            EXPECT_LE(check.bound, 1e-2) << check.name;
            // A router of bf16 makes the source's numbers, and not only near ones
            if (check.name == "expect.logits" || check.name == "expect.probs") {
                EXPECT_LE(check.error, 1e-6) << check.name;
            }
        } else if (spec.coarsest_dtype() != DType::bf16) {
            EXPECT_LE(check.bound, 2e-6) << check.name;
        }
        all_ok = all_ok && check.ok;
        checked.insert(check.name);
    }
    EXPECT_EQ(result.ok, all_ok);
    EXPECT_EQ(checked.size(), golden.ranks[0].expected.size())
        << "every expectation is checked";
    const auto count = std::int64_t(golden.ranks[0].micro_batches().size());
    EXPECT_TRUE(checked.contains(micro_batch_prefix(count - 1, count) + "expect.output"));
}

using NameAndSupplier = std::tuple<std::string, ComponentSpec>;
std::string name_and_supplier(const testing::TestParamInfo<NameAndSupplier>& info) {
    const auto& [name, supplier] = info.param;
    return name.substr(name.find('/') + 1) + "_" + supplier.tier + "_" +
           to_string(supplier.dtype);
}

class Golden : public testing::TestWithParam<NameAndSupplier> {};

TEST_P(Golden, Matches) {
    const auto& [name, supplier] = GetParam();
    const GoldenCase golden = load_golden(golden_file(name));
    EXPECT_TRUE(golden.unknown_tensors.empty());
    expect_match(golden, ModuleSpec::uniform(supplier));
}

INSTANTIATE_TEST_SUITE_P(Files, Golden,
                         testing::Combine(testing::ValuesIn(golden_names()),
                                          testing::ValuesIn(available_suppliers())),
                         name_and_supplier);

INSTANTIATE_TEST_SUITE_P(Models, Golden,
                         testing::Combine(testing::ValuesIn(golden_names("models/")),
                                          testing::ValuesIn(available_suppliers())),
                         name_and_supplier);

// A file says nothing of fused kernels, so that the above ran without them.
class GoldenFused : public testing::TestWithParam<NameAndSupplier> {};

TEST_P(GoldenFused, Matches) {
    const auto& [name, supplier] = GetParam();
    GoldenCase golden = load_golden(golden_file(name));
    golden.config.moe_permute_fusion = true;
    golden.config.moe_router_fusion = !golden.config.is_quantile_balancing();
    golden.config.moe_grouped_gemm = true;
    expect_match(golden, ModuleSpec::uniform(supplier));
}

std::vector<ComponentSpec> suppliers_with_fusions() {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.tier != "optimized_gpu"; });
    return suppliers;
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenFused,
                         testing::Combine(testing::ValuesIn(golden_names()),
                                          testing::ValuesIn(suppliers_with_fusions())),
                         name_and_supplier);

INSTANTIATE_TEST_SUITE_P(Models, GoldenFused,
                         testing::Combine(testing::ValuesIn(golden_names("models/")),
                                          testing::ValuesIn(suppliers_with_fusions())),
                         name_and_supplier);

// Router and dispatcher of optimized_gpu in a layer of fp32, which its experts are not.
class GoldenFp32 : public testing::TestWithParam<std::string> {};

TEST_P(GoldenFp32, MatchesWithNaiveExperts) {
    NEEDS_DEVICE();
    GoldenCase golden = load_golden(golden_file(GetParam()));
    golden.config.moe_router_dtype.reset();
    const ModuleSpec spec = ModuleSpec::parse(
        "router=optimized_gpu,dispatcher=optimized_gpu", {"naive_gpu", DType::f32});
    EXPECT_EQ(spec.dispatcher.dtype, DType::f32);
    for (const bool fused : {false, true}) {
        golden.config.moe_permute_fusion = fused;
        golden.config.moe_router_fusion = fused && !golden.config.is_quantile_balancing();
        expect_match(golden, spec);
    }
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenFp32, testing::ValuesIn(golden_names()),
                         [](const auto& info) { return info.param; });

// The files ask for an fp64 router nearly everywhere. Here the router has only fp32, and
// must still choose the same experts.
class GoldenRouter : public testing::TestWithParam<NameAndSupplier> {};

TEST_P(GoldenRouter, MatchesInFp32) {
    const auto& [name, supplier] = GetParam();
    GoldenCase golden = load_golden(golden_file(name));
    golden.config.moe_router_dtype.reset();
    expect_match(golden, ModuleSpec::uniform(supplier));
}

std::vector<ComponentSpec> fp32_suppliers() {
    std::vector<ComponentSpec> suppliers = available_suppliers();
    std::erase_if(suppliers, [](const auto& s) { return s.dtype != DType::f32; });
    return suppliers;
}

INSTANTIATE_TEST_SUITE_P(Files, GoldenRouter,
                         testing::Combine(testing::ValuesIn(golden_names()),
                                          testing::ValuesIn(fp32_suppliers())),
                         name_and_supplier);

TEST(GoldenCases, AreAllHere) {
    EXPECT_EQ(golden_names().size(), 53u);
    EXPECT_EQ(golden_names("models/").size(), 33u);
}

// ------------------------------------------------------- what a check must not let
// through

class GoldenCheck : public testing::TestWithParam<ComponentSpec> {
  protected:
    /// Names of the checks that fail.
    static std::set<std::string> failures(const GoldenCase& golden) {
        const CaseResult result = verify_golden(golden, ModuleSpec::uniform(GetParam()));
        std::set<std::string> names;
        for (const TensorCheck& check : result.checks)
            if (!check.ok) names.insert(check.name);
        EXPECT_EQ(result.ok, names.empty());
        return names;
    }

    /// Zero gradient of the output: only the losses have one.
    GoldenCase golden_ = load_golden(golden_file("losses_only"));
};

TEST_P(GoldenCheck, NoticesOneChangedElementInEveryExpectation) {
    for (const auto& [name, tensor] : TensorMap(golden_.ranks[0].expected)) {
        const Tensor original = tensor.clone();
        // Far below the tensor's norm, far above its bound; a zero must stay a zero.
        const std::int64_t last = tensor.numel() - 1;
        Tensor& changed = golden_.ranks[0].expected.at(name);
        if (changed.dtype() == DType::f64) changed.data<double>()[last] += 1e-3;
        if (changed.dtype() == DType::u8) changed.data<std::uint8_t>()[last] ^= 1;
        if (changed.dtype() == DType::i64) changed.data<std::int64_t>()[last] += 1;
        EXPECT_EQ(failures(golden_), std::set<std::string>{name});
        changed = original;
    }
    EXPECT_EQ(failures(golden_), std::set<std::string>{});
}

TEST_P(GoldenCheck, NamesTheStepAtWhichItBegins) {
    const auto first = [&] {
        return verify_golden(golden_, ModuleSpec::uniform(GetParam())).first_deviation();
    };
    EXPECT_EQ(first(), std::nullopt);
    const auto spoil = [&](const char* name) {
        Tensor& expected = golden_.ranks[0].expected.at(name);
        expected = expected.clone();
        expected.data<double>()[0] += 1.0;
    };
    spoil("expect.grad.hidden_states");
    EXPECT_EQ(first(), Step::shared_experts_backward);
    spoil("expect.grad.experts.linear_fc1.weight");
    EXPECT_EQ(first(), Step::fc1_backward);
    spoil("expect.output");
    EXPECT_EQ(first(), Step::combine);
    spoil("expect.loss.z_loss");
    EXPECT_EQ(first(), Step::auxiliary_losses);
    spoil("expect.logits");
    EXPECT_EQ(first(), Step::gating);
}

TEST_P(GoldenCheck, NoticesOneChangedElementInEveryParameter) {
    std::set<std::string> changed;
    for (const char* file : {"geglu_bias", "shared_gate", "sigmoid_groups_bias_seq"}) {
        const GoldenCase golden = load_golden(golden_file(file));
        for (const auto& [name, parameter] : golden.parameters) {
            const auto gradient = golden.ranks[0].expected.find("expect.grad." + name);
            if (gradient == golden.ranks[0].expected.end()) continue;
            // Where the gradient is largest the output depends on it for certain.
            const std::vector<double> slopes = to_doubles(gradient->second);
            const auto steepest = std::max_element(
                slopes.begin(), slopes.end(),
                [](double a, double b) { return std::abs(a) < std::abs(b); });
            GoldenCase broken = golden;
            broken.parameters[name] = parameter.clone();
            broken.parameters[name].data<float>()[steepest - slopes.begin()] += 1e-3f;
            EXPECT_TRUE(failures(broken).contains("expect.output"))
                << file << " " << name;
            changed.insert(name);
        }
    }
    EXPECT_EQ(changed.size(), 9u) << "all that is trained, in one of the files";
}

TEST_P(GoldenCheck, NoticesANaN) {
    golden_.parameters["experts.linear_fc2.weight"] =
        golden_.parameters.at("experts.linear_fc2.weight").clone();
    golden_.parameters["experts.linear_fc2.weight"].data<float>()[0] = NAN;
    EXPECT_TRUE(failures(golden_).contains("expect.output"));
}

TEST_P(GoldenCheck, NoticesAValueThatTheLayerDoesNotHave) {
    golden_.config.moe_z_loss_coeff.reset();
    EXPECT_TRUE(failures(golden_).contains("expect.loss.z_loss"));
    for (const TensorCheck& check :
         verify_golden(golden_, ModuleSpec::uniform(GetParam())).checks) {
        if (check.name != "expect.loss.z_loss") continue;
        EXPECT_EQ(check.detail, "the layer has no such value");
    }
}

TEST_P(GoldenCheck, WantsZerosToBeExactlyZero) {
    std::set<std::string> all_zero;
    for (const auto& [name, tensor] : golden_.ranks[0].expected) {
        const std::vector<double> values = to_doubles(tensor);
        if (std::all_of(values.begin(), values.end(), [](double v) { return v == 0.0; }))
            all_zero.insert(name);
    }
    ASSERT_EQ(all_zero, (std::set<std::string>{"expect.grad.experts.linear_fc1.weight",
                                               "expect.grad.experts.linear_fc2.weight"}));
    // So little that no other gradient can tell.
    golden_.ranks[0].grad_output = golden_.ranks[0].grad_output.clone();
    golden_.ranks[0].grad_output.data<float>()[0] = 1e-20f;
    EXPECT_EQ(failures(golden_), all_zero);
}

INSTANTIATE_TEST_SUITE_P(Tiers, GoldenCheck, testing::ValuesIn(precise_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
