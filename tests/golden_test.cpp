// Golden cases: numbers that Megatron-Core's and Hugging Face's own code computed.

#include "cli/golden.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "core/transfer.h"
#include "tests/support.h"

namespace moe::test {
namespace {

std::vector<std::string> golden_files() {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(MOE_GOLDEN_DIR))
        if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    std::sort(files.begin(), files.end());
    return files;
}

std::string stem(const std::string& path) {
    return std::filesystem::path(path).stem();
}

void expect_match(const GoldenCase& golden, const ComponentSpec& supplier) {
    const CaseResult result = verify_golden(golden, supplier);
    EXPECT_FALSE(result.checks.empty());
    for (const TensorCheck& check : result.checks)
        EXPECT_TRUE(check.ok) << check.name << ": error " << check.error << ", bound "
                              << check.bound << "; " << check.detail;
}

using FileAndSupplier = std::tuple<std::string, ComponentSpec>;
std::string file_and_supplier(const testing::TestParamInfo<FileAndSupplier>& info) {
    const auto& [file, supplier] = info.param;
    return stem(file) + "_" + supplier.tier + "_" + to_string(supplier.dtype);
}

class Golden : public testing::TestWithParam<FileAndSupplier> {};

TEST_P(Golden, Matches) {
    const auto& [file, supplier] = GetParam();
    const GoldenCase golden = load_golden(file);
    EXPECT_TRUE(golden.unknown_tensors.empty());
    expect_match(golden, supplier);
}

// The files ask for an fp64 router nearly everywhere; here it runs in the tier's
// precision.
TEST_P(Golden, MatchesWithTheRouterInTheTiersPrecision) {
    const auto& [file, supplier] = GetParam();
    GoldenCase golden = load_golden(file);
    golden.config.moe_router_dtype.reset();
    expect_match(golden, supplier);
}

INSTANTIATE_TEST_SUITE_P(Files, Golden,
                         testing::Combine(testing::ValuesIn(golden_files()),
                                          testing::ValuesIn(available_suppliers())),
                         file_and_supplier);

TEST(GoldenCases, AreAllHere) {
    EXPECT_EQ(golden_files().size(), 39u);
}

class GoldenCheck : public testing::TestWithParam<ComponentSpec> {
  protected:
    GoldenCase golden_ =
        load_golden(std::string(MOE_GOLDEN_DIR) + "/losses_only.safetensors");
};

TEST_P(GoldenCheck, NoticesOneChangedElementInEveryExpectation) {
    const TensorMap expected = golden_.expected;
    for (const auto& [name, tensor] : expected) {
        golden_.expected = {{name, tensor.clone()}};
        Tensor& changed = golden_.expected.at(name);
        const std::int64_t last = changed.numel() - 1;
        // Far below the tensor's norm, far above its bound; a zero must stay a zero.
        if (changed.dtype() == DType::f64) changed.data<double>()[last] += 1e-3;
        if (changed.dtype() == DType::u8) changed.data<std::uint8_t>()[last] ^= 1;
        if (changed.dtype() == DType::i64) changed.data<std::int64_t>()[last] += 1;
        EXPECT_FALSE(verify_golden(golden_, GetParam()).ok) << name;
    }
}

TEST_P(GoldenCheck, NoticesANaN) {
    golden_.parameters["experts.linear_fc2.weight"] =
        golden_.parameters.at("experts.linear_fc2.weight").clone();
    golden_.parameters["experts.linear_fc2.weight"].data<float>()[0] = NAN;
    EXPECT_FALSE(verify_golden(golden_, GetParam()).ok);
}

TEST_P(GoldenCheck, NoticesAValueThatTheLayerDoesNotHave) {
    golden_.config.moe_z_loss_coeff.reset();
    const CaseResult result = verify_golden(golden_, GetParam());
    EXPECT_FALSE(result.ok);
    for (const TensorCheck& check : result.checks) {
        if (check.name != "expect.loss.z_loss") continue;
        EXPECT_EQ(check.detail, "the layer has no such value");
    }
}

TEST_P(GoldenCheck, WantsZerosToBeExactlyZero) {
    // With a zero gradient of the output, the experts' gradients are exactly zero.
    const Tensor& gradient = golden_.expected.at("expect.grad.experts.linear_fc1.weight");
    for (double value : to_doubles(gradient)) ASSERT_EQ(value, 0.0);
    golden_.grad_output = golden_.grad_output.clone();
    golden_.grad_output.data<float>()[0] = 1e-20f;
    EXPECT_FALSE(verify_golden(golden_, GetParam()).ok);
}

INSTANTIATE_TEST_SUITE_P(Tiers, GoldenCheck, testing::ValuesIn(available_suppliers()),
                         instance_name);

}  // namespace
}  // namespace moe::test
