// profile_view_test.cpp: what `moe profile` prints and writes.

#include <gtest/gtest.h>

#include "cli/profile/page.h"
#include "cli/profile/view.h"
#include "core/error.h"
#include "core/module_spec.h"

namespace moe::test {
namespace {

using cuda_on_cpu::observe::Finding;
using profile::LayerProfile;

/// A product of 100 requests with 1600 sectors, at linear.cu:2.
LayerProfile made_up() {
    LayerProfile made;
    made.spec = ModuleSpec::uniform({"naive_gpu", DType::bf16});
    made.sizes = {8, 16};
    profile::Counters counters;
    counters.loads = {100, 1600, 400};
    counters.shared = {10, 40, 10, 4};
    counters.sectors_read = 1000;
    profile::StepProfile fc1{Step::fc1, {{"product_kernel", 2, counters}}, {"NH", 16000}};
    profile::StepProfile gating{Step::gating, {{"gate_kernel", 1, {}}}, {"TH", 100}};
    made.steps = {gating, fc1};
    made.report.kernels = {
        {"product_kernel", 2, counters, {{"naive_gpu/linear.cu", 2, counters, {}}}}};
    return made;
}

template <typename Print>
std::string printed(Print print) {
    testing::internal::CaptureStdout();
    print();
    return testing::internal::GetCapturedStdout();
}

bool has(const std::string& text, const std::string& part) {
    return text.find(part) != std::string::npos;
}
#define EXPECT_HAS(text, part) EXPECT_PRED2(has, text, part)
#define EXPECT_LACKS(text, part) EXPECT_FALSE(has(text, part))

TEST(ProfileView, KernelsStandUnderTheirStepWithTheFloor) {
    const LayerProfile made = made_up();
    const std::string all = printed([&] { print_kernels(made, "layer"); });
    EXPECT_HAS(all, "② gating");
    EXPECT_HAS(all, "⑦ FC1");
    EXPECT_HAS(all, "  product  ");
    EXPECT_HAS(all, "16.0  25 %");
    EXPECT_HAS(all, "32.0 kB   16.0 kB   2.0x");
    EXPECT_LACKS(printed([&] { print_kernels(made, "experts"); }), "gating");
}

TEST(ProfileView, BoundsAreCalledAModel) {
    const std::string text = printed([&] { print_bounds(made_up(), "experts"); });
    EXPECT_HAS(text, "bound on H100 (model)");
    EXPECT_HAS(text, "launch, then HBM");
    EXPECT_HAS(text, "never a time");
    EXPECT_LACKS(text, "gating");
}

TEST(ProfileView, TheWorstLinesAreNamed) {
    const std::string text = printed([&] { print_worst_lines(made_up(), "experts"); });
    EXPECT_HAS(text, "1,230  naive_gpu/linear.cu:2");
    EXPECT_HAS(text, "16.0 sectors/request, 25 %, 4 ways");
    EXPECT_EQ(printed([&] { print_worst_lines(made_up(), "router"); }), "");
}

TEST(ProfileView, ASourceIsAnnotatedLineByLine) {
    const std::string text =
        annotated(made_up(), "naive_gpu/linear.cu", "first line\nsecond line\n");
    EXPECT_HAS(text, "     1  first line\n");
    EXPECT_HAS(text, "       100     16.0  25 %         40     2  second line\n");
    EXPECT_THROW(annotated(made_up(), "naive_gpu/experts.cu", ""), InputError);
    EXPECT_THROW(annotated(made_up(), "ear.cu", ""), InputError);
}

TEST(ProfileView, FindingsAreTold) {
    LayerProfile made = made_up();
    EXPECT_HAS(printed([&] { print_findings(made); }), "no races");
    made.report.findings = {{Finding::Kind::race, "a.cu", 3, "a.cu", 5, "race on 4", 7}};
    EXPECT_EQ(printed([&] { print_findings(made); }), "✗ race on 4 (7 times)\n");
    const nlohmann::json json = to_json(made);
    EXPECT_EQ(json["findings"][0]["kind"], "race");
    EXPECT_EQ(json["findings"][0]["other_line"], 5);
    EXPECT_EQ(json["emulated"], true);
    EXPECT_EQ(json["steps"][1]["bound"]["is"], "model");
    EXPECT_EQ(json["steps"][1]["floor_bytes"], 16000);
    EXPECT_EQ(json["kernels"][0]["lines"][0]["counters"]["loads"]["sectors"], 1600);
}

TEST(ProfileView, APageHasCountsAndFindings) {
    LayerProfile made = made_up();
    Regions regions = page_regions(made, "a model", MoEConfig{});
    EXPECT_HAS(regions["run"], "a model: ");
    EXPECT_HAS(regions["run"], "Compiled by g++ ");
    EXPECT_HAS(
        regions["kernels"],
        "| **⑦ FC1** | 2 | 100 | 16.0 | 25 % | 51.2 kB | 32.0 kB | 16.0 kB | 2.0x |");
    EXPECT_HAS(regions["kernels"], "| `product` | 2 | 100 |");
    EXPECT_HAS(regions["lines"], "| `naive_gpu/linear.cu:2` | 1,230 | 16.0 | 25 % |");
    EXPECT_EQ(regions["races"], "No races and no reads of unwritten memory.\n");
    made.report.findings = {{Finding::Kind::race, "a.cu", 3, "a.cu", 5, "race on 4", 7}};
    EXPECT_EQ(page_regions(made, "", MoEConfig{})["races"], "* race on 4\n");
}

}  // namespace
}  // namespace moe::test
