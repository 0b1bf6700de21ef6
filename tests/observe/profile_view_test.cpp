// profile_view_test.cpp: what `moe profile` prints and writes.

#include <gtest/gtest.h>

#include "cli/profile/occupancy.h"
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
    profile::StepProfile fc1{
        Step::fc1, {{"product_kernel", 2, counters, 0, 0}}, {"NH", 16000}};
    profile::StepProfile gating{
        Step::gating, {{"gate_kernel", 1, {}, 0, 0}}, {"TH", 100}};
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

TEST(ProfileView, TiersStandBesideEachOther) {
    const LayerProfile one = made_up();
    LayerProfile other = made_up();
    other.spec = ModuleSpec::uniform({"optimized_gpu", DType::bf16});
    other.steps.erase(other.steps.begin());  // no launches in gating
    other.steps[0].kernels[0].counters.sectors_read = 500;
    const std::string text = printed([&] {
        profile::print_beside({one, other}, "layer");
    });
    EXPECT_HAS(text, "naive_gpu:bf16");
    EXPECT_HAS(text, "optimized_gpu:bf16");
    EXPECT_HAS(text,
               "16.0 kB         2     51.2 kB     32.0 kB         2     51.2 kB"
               "     16.0 kB\n");
    EXPECT_HAS(text,
               "         1         0 B         0 B         -           -           -");
    EXPECT_LACKS(printed([&] {
                     profile::print_beside({one, other}, "experts");
                 }),
                 "gating");
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

TEST(ProfileView, OccupancyIsTheScarcestResource) {
    const auto table = profile::read_kernel_table(
        "kernel            arch   registers  spill  barriers   smem\n"
        "product_kernel<a, b>  sm_80       200      0         0      0\n"
        "product_kernel<a, b>  sm_90a       40      0         0     16\n"
        "product_kernel<c>     sm_90a       64      0         0      0\n");
    EXPECT_EQ(table.size(), 1);
    EXPECT_EQ(table.at("product_kernel").registers, 64);
    EXPECT_EQ(table.at("product_kernel").smem, 16);
    const auto is = [](int registers, unsigned threads, std::size_t smem) {
        const profile::Occupancy o = profile::occupancy_of({registers, 0}, threads, smem);
        return fmt::format("{} {} {:.2f}", o.blocks, o.limit, o.share);
    };
    EXPECT_EQ(is(32, 256, 0), "8 threads 1.00");
    EXPECT_EQ(is(32, 32, 0), "32 blocks 0.50");
    EXPECT_EQ(is(64, 256, 0), "4 registers 0.50");
    EXPECT_EQ(is(65, 256, 0), "3 registers 0.38");
    EXPECT_EQ(is(33, 256, 0), "6 registers 0.75");  // 40 for each thread: 7 would fit 33
    EXPECT_EQ(is(32, 128, 100 * 1024), "2 shared memory 0.12");
    LayerProfile made = made_up();
    made.steps[1].kernels[0].threads = 256;
    const std::string text =
        printed([&] { profile::print_occupancy(made, "experts", table); });
    EXPECT_HAS(text, "product ");
    EXPECT_HAS(text, "50 %  registers");
    EXPECT_EQ(printed([&] { profile::print_occupancy(made, "experts", {}); }), "");
}

TEST(ProfileView, ASourceIsAnnotatedLineByLine) {
    const std::string text = profile::annotated({made_up()}, "naive_gpu/linear.cu",
                                                "first line\nsecond line\n");
    EXPECT_HAS(text, "     1  first line\n");
    EXPECT_HAS(text, "       100     16.0  25 %         40     2  second line\n");
    EXPECT_THROW(profile::annotated({made_up()}, "naive_gpu/experts.cu", ""), InputError);
    EXPECT_THROW(profile::annotated({made_up()}, "ear.cu", ""), InputError);
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

/// The made-up layer with an activation, and one that fuses it and has no gating.
std::vector<LayerProfile> two_tiers() {
    LayerProfile apart = made_up(), fused = made_up();
    apart.steps.push_back(
        {Step::activation, {{"activation_kernel", 1, {}, 0, 0}}, {"NF", 4000}});
    fused.spec = ModuleSpec::uniform({"optimized_gpu", DType::bf16});
    fused.steps.erase(fused.steps.begin());
    fused.steps[0].steps = Steps(Step::fc1, Step::activation);
    fused.report.findings = {{Finding::Kind::race, "a.cu", 3, "a.cu", 5, "race", 1}};
    return {apart, fused};
}

TEST(ProfileView, APageOfSeveralTiersHasThemRowByRow) {
    Regions regions = beside_regions(two_tiers(), "a model", MoEConfig{});
    EXPECT_EQ(regions.size(), 2);
    EXPECT_HAS(regions["run"], "a model: ");
    EXPECT_HAS(regions["run"], "8 tokens, 16 expert rows, forward and backward.");
    EXPECT_HAS(regions["run"], "| naive_gpu:bf16 | 0 | 0 | 0 | 0 B | 0 |\n");
    EXPECT_HAS(regions["run"], "| optimized_gpu:bf16 | 0 | 0 | 0 | 0 B | 1 |\n");
    const std::string beside = regions["beside"];
    EXPECT_HAS(beside,
               "| **② gating** | | | | | | | | |\n"
               "| naive_gpu | 1 | 0 B | 0 B | 100 B | 0.0x | - | - | - |\n"
               "| optimized_gpu | 0 | 0 B | 0 B |  |  | - | - | - |\n");
    // What one tier does apart stands in the row of the one that fuses it
    EXPECT_HAS(
        beside,
        "| **⑦–⑧ FC1 to activation x prob** | | | | | | | | |\n"
        "| naive_gpu | 3 | 51.2 kB | 32.0 kB | 20.0 kB | 1.6x | 16.0 | 25 % | 30 |\n"
        "| optimized_gpu | 2 | 51.2 kB | 32.0 kB | 16.0 kB | 2.0x | 16.0 | 25 % | 30 "
        "|\n");
    EXPECT_LACKS(beside, "**⑧");
}

TEST(ProfileView, APageHasRegionsOfSeveralModels) {
    const auto region = [](const std::string& model, const std::string& name,
                           const std::string& text) {
        return fmt::format(
            "<!-- moe profile {}: {} -->\n\n{}\n\n<!-- /moe profile {} -->", model, name,
            text, model);
    };
    const std::string page = "# One\n" + region("one", "run", "old") + "\n" +
                             region("one", "beside", "old") + "\n# Two\n" +
                             region("two", "run", "other") + "\n";
    const auto filled = [&](const std::string& model) {
        return with_regions("page.md", page,
                            beside_regions(two_tiers(), model, MoEConfig{}),
                            "profile " + model);
    };
    const std::string text = filled("one");
    EXPECT_LACKS(text, "old");
    EXPECT_HAS(text, "<!-- moe profile one: run -->\n\none: ");
    EXPECT_HAS(text, "\n# Two\n" + region("two", "run", "other") + "\n");
    EXPECT_THROW(filled("two"), InputError) << "it has no place for the table";
    EXPECT_THROW(filled("on"), InputError) << "it has no regions at all";
}

}  // namespace
}  // namespace moe::test
