// `moe compare`: what it prints and writes, what stops it, and what it finds.

#include "cli/compare/comparison.h"

#include <numeric>

#include "cli/compare/table.h"
#include "cli/report/steps.h"
#include "core/transfer.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

class CompareTest : public CliTest {};

TEST(Text, IsCutIntoSequences) {
    const std::string path = testing::TempDir() + "moe_text" + std::to_string(getpid());
    std::ofstream(path) << "abcdefghijk";
    // Sequence b is bytes b S to (b + 1) S; token t = s B + b.
    const TextTokens text = read_text(path, 3, 2, false);
    EXPECT_EQ(std::string(text.bytes.begin(), text.bytes.end()), "adbecf");
    EXPECT_EQ(text.seq_len, 3);
    EXPECT_EQ(text.micro_batch, 2);
    EXPECT_EQ(read_text(path, 100, 2, true).seq_len, 5);
    EXPECT_EQ(read_text(path, 3, 2, true).seq_len, 3);
    EXPECT_EQ(read_text(path, 11, 1, false).bytes.size(), 11u);
    // Two micro-batches share it: the second begins where the first ended
    const auto pieces = read_micro_batches(path, 2, 100, 2, true);
    ASSERT_EQ(pieces.size(), 2u);
    EXPECT_EQ(pieces[0].seq_len, 2);
    EXPECT_EQ(std::string(pieces[1].bytes.begin(), pieces[1].bytes.end()), "egfh");
    EXPECT_TRUE(Rejects([&] { read_text(path, 6, 2, false); }, {"11 bytes", "12"}));
    EXPECT_TRUE(Rejects([&] { read_text(path, 1, 12, true); }, {"11 bytes", "12"}));
    fs::remove(path);
}

TEST(Text, IsEmbeddedByItsLastThreeBytes) {
    // Two sequences, "abcab" and "xbcab": tokens alternate between them.
    const TextTokens text{"", 5, 2, {'a', 'x', 'b', 'b', 'c', 'c', 'a', 'a', 'b', 'b'}};
    constexpr std::int64_t H = 4000;
    const Tensor hidden = embed_text(text, H, 7);
    EXPECT_EQ(hidden.shape(), (Shape{5, 2, H}));
    const auto row = [&](std::int64_t t) {
        const float* values = hidden.data<float>() + t * H;
        return Tensor::from<float>({H}, {values, values + H});
    };
    // Different while the first byte is among the last three, the same after that.
    for (std::int64_t s = 0; s < 5; ++s)
        EXPECT_EQ(bool(BitwiseEqual(row(2 * s), row(2 * s + 1))), s >= 3) << s;
    // "b" after "a" again, but in another context: close, not equal.
    const auto correlation = [&](std::int64_t a, std::int64_t b) {
        const auto x = to_doubles(row(a)), y = to_doubles(row(b));
        return std::inner_product(x.begin(), x.end(), y.begin(), 0.0) / H;
    };
    // Weights 1, 1/2 and 1/4, the sum of squares made 1.
    EXPECT_NEAR(correlation(8, 8), 1.0, 0.12);
    EXPECT_NEAR(correlation(2, 8), (1.0 + 0.25) / 1.3125, 0.12);
    EXPECT_NEAR(correlation(4, 8), 0.0, 0.12);
    EXPECT_TRUE(BitwiseEqual(embed_text(text, H, 7), hidden));
    EXPECT_FALSE(BitwiseEqual(embed_text(text, H, 8), hidden));
    const Tensor bf16 = transfer(hidden, {MemorySpace::host, DType::bf16});
    EXPECT_TRUE(BitwiseEqual(transfer(bf16, {MemorySpace::host, DType::f32}), hidden));
}

TEST_F(CompareTest, ComparesAndWritesAReport) {
    const std::string text = write("text.txt", "<i>a & b</i> " + std::string(300, 'e'));
    const Output output = moe("compare --text " + text +
                              " --scale 256 --seq-length 33 --micro-batch-size 3 "
                              "--repeats 1 --spec experts=reference_cpu:fp64 --report " +
                              path("a/report"));
    EXPECT_EQ(output.code, kExitOk) << output.err;
    for (int n = 1; n <= kNumSteps; ++n)
        EXPECT_TRUE(has(output, "\n" + circled(static_cast<Step>(n)) + " ")) << n;
    for (const char* words :
         {"S=33 x B=3 = 99 tokens", "198 expert rows", "all tiers agree", "53 of 53",
          "expert 7", "reference_cpu:fp32", "experts=reference_cpu:fp64",
          "load_balancing_loss"})
        EXPECT_TRUE(has(output, words)) << words;
    const std::string html = read(path("a/report/index.html"));
    EXPECT_NE(html.find("</html>"), std::string::npos);
    EXPECT_EQ(html.find("<i>a"), std::string::npos) << "the text must be escaped";
    EXPECT_NE(html.find("&lt;i&gt;a &amp; b"), std::string::npos);
    EXPECT_EQ(html.find("nan"), std::string::npos);
    EXPECT_EQ(std::distance(fs::directory_iterator(path("a/report")), {}), 1);
}

// What the CPU executor ran has no time and no speed-up, neither printed nor drawn.
TEST_F(CompareTest, ShowsNoTimesOfWhatIsEmulated) {
    NEEDS_DEVICE();
    if (!find_tier("tier", "naive_gpu").is_emulated())
        GTEST_SKIP() << "this build runs kernels on a GPU";
    const std::string text = write("text.txt", std::string(300, 'e'));
    const Output output =
        moe("compare --text " + text +
            " --scale 256 --seq-length 33 --micro-batch-size 3 --tier naive_gpu "
            "--golden none --spec experts=naive_gpu --report " +
            path("report"));
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_TRUE(has(output, "naive_gpu:bf16  (emulated"));
    const std::string html = read(path("report/index.html"));
    // fp64 has the only times: one a step that is on, one for all, and none elsewhere.
    std::istringstream lines(output.out);
    for (std::string line; std::getline(lines, line);) {
        const std::size_t first = line.find(" ms ");
        if (first == std::string::npos) continue;
        EXPECT_EQ(line.find(" ms", first + 1), std::string::npos) << line;
    }
    EXPECT_FALSE(has(output, "speed-up"));
    EXPECT_NE(html.find("emulated on this CPU"), std::string::npos);
    EXPECT_NE(html.find("<p class='soft'>reference_cpu:fp64: "), std::string::npos);
    EXPECT_EQ(html.find("<p class='soft'>naive_gpu"), std::string::npos);
}

TEST_F(CompareTest, ComparesWithoutAReport) {
    const std::string text = write("text.txt", std::string(300, 'e'));
    const Output output = moe(kSmall + text + " --dtype fp32 --num-experts 32");
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_FALSE(has(output, "\nReport "));
    EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
    // A warning is a note, not an error.
    EXPECT_TRUE(output.err.starts_with("moe: note: moe_router_dtype is not set"));
    EXPECT_EQ(count_lines(output.err), 1);
}

TEST_F(CompareTest, LeavesOutATierThatCannotDoTheLayer) {
    NEEDS_DEVICE();
    const std::string line = kSmall + write("text.txt", std::string(300, 'e')) +
                             " --dtype bf16 --num-experts 35 --moe-router-topk 33";
    const Output output = moe(line);
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_TRUE(output.err.starts_with(
        "moe: note: left out: tier = optimized_gpu: moe_router_topk = 33: at most 32"))
        << output.err;
    EXPECT_TRUE(has(output, "naive_gpu:bf16"));
    EXPECT_FALSE(has(output, "optimized_gpu"));
    EXPECT_TRUE(IsBadInput(split(line + " --tier optimized_gpu"),
                           {"moe_router_topk = 33: at most 32 in optimized_gpu"}));
}

TEST_F(CompareTest, ShowsWhatIsKeptForTheBackward) {
    const std::string text = write("text.txt", std::string(300, 'e'));
    const Output output =
        moe(kSmall + text +
            " --tier reference_cpu --dtype fp32 --hidden-size 24 "
            "--moe-ffn-hidden-size 16 --spec experts=reference_cpu:fp64");
    EXPECT_EQ(output.code, kExitOk) << output.err;
    // (24 + 2 24 + 2 3 16) numbers of a token, in 8 bytes and in 4; of a mix no formula
    EXPECT_TRUE(has(output, "TH + NH + 3NF + m = 1,344 + ")) << output.out;
    EXPECT_TRUE(has(output, "TH + NH + 3NF + m = 672 + ")) << output.out;
    EXPECT_FALSE(has(output, " + -")) << "more is counted than activations";
}

TEST_F(CompareTest, CountsTheRowsThatCapacityDrops) {
    // Two choices of 99 tokens, nearly all alike; 25 = ceil(99 * 2 / 8) fit an expert.
    const std::string text = write("text.txt", std::string(300, 'e'));
    const Output output =
        moe(kSmall + text + " --dtype fp32 --moe-expert-capacity-factor 1");
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_TRUE(has(output, "tokens (bytes), 50 expert rows\n")) << output.out;
    EXPECT_TRUE(has(
        output, "\nRows    50 of 198 kept, 148 dropped: an expert takes at most 25\n"))
        << output.out;
    EXPECT_TRUE(has(moe(kSmall + text +
                        " --dtype fp32 --moe-expert-capacity-factor 1 "
                        "--moe-pad-expert-input-to-capacity"),
                    "\nRows    50 of 198 kept, 148 dropped: "));
    EXPECT_FALSE(has(moe(kSmall + text + " --dtype fp32"), " dropped"));
}

// Tiers pad with other rows, in other places; what all have is compared.
TEST_F(CompareTest, LeavesOutTheRowsThatPad) {
    NEEDS_DEVICE();
    available_tiers();
    ComparisonRequest request;
    request.config = small_config(16, 5, 2, 8);
    request.config.moe_router_padding_for_quantization = true;
    // So many tokens are the same one that rounding their gradients does not average out
    request.config.moe_router_dtype = "fp32";
    request.config.finalize();
    request.text = read_text(write("text.txt", std::string(50, 'e') + "abcdefghijklmno"),
                             31, 2, false);
    for (const char* tier : {"naive_gpu", "optimized_gpu"})
        request.columns.push_back(ModuleSpec::uniform({tier, DType::bf16}));
    const Comparison comparison = run_comparison(request);
    for (const ColumnOutcome& column : comparison.columns)
        for (const StepOutcome& step : column.steps)
            EXPECT_EQ(step.detail, "") << column.label;
    EXPECT_TRUE(comparison.ok);
    // The text's letters want one expert more than there are tokens for
    for (const double count : to_doubles(comparison.tokens_per_expert))
        EXPECT_TRUE(int(count) % 16 == 0 || count == 62.0) << count;
}

// What no kernel of the result wrote, in the table and in the report.
TEST_F(CompareTest, MarksStepsWithValuesComputedBeside) {
    NEEDS_DEVICE();
    available_tiers();
    ComparisonRequest request;
    request.config = small_config(16, 5, 2, 8);
    request.config.moe_router_load_balancing_type = {"aux_loss"};
    request.config.moe_aux_loss_coeff = {0.1};
    request.config.moe_permute_fusion = request.config.moe_router_fusion = true;
    request.config.moe_grouped_gemm = true;
    request.config.finalize();
    request.text = read_text(write("text.txt", std::string(62, 'e')), 31, 2, false);
    request.repeats = 1;
    const auto show = [&](const char* tier) {
        request.columns = {ModuleSpec::uniform({tier, DType::bf16})};
        const Comparison comparison = run_comparison(request);
        testing::internal::CaptureStdout();
        print_steps(comparison, "none");
        return std::pair{testing::internal::GetCapturedStdout(),
                         steps_section(comparison)};
    };
    const auto count_marks = [](const std::string& text) {
        std::int64_t count = 0;
        for (std::size_t at = 0; (at = text.find("°", at)) != std::string::npos; ++at)
            ++count;
        return count;
    };
    const auto [table, html] = show("optimized_gpu");
    std::string marked;
    std::istringstream lines(table);
    for (std::string line; std::getline(lines, line);)
        if (line.ends_with("°")) marked += line.substr(0, line.find(' '));
    EXPECT_EQ(marked, "③⑤⑥⑪⑫⑮⑯") << table;
    EXPECT_NE(table.find("\n° holds a value that no fused kernel"), std::string::npos);
    EXPECT_EQ(count_marks(table), 7 + 1);
    EXPECT_EQ(count_marks(html), 7 + 1) << "and the explanation";
    const auto [plain_table, plain_html] = show("naive_gpu");
    EXPECT_EQ(count_marks(plain_table), 0);
    EXPECT_EQ(count_marks(plain_html), 1);
}

TEST_F(CompareTest, ComparesAsMuchAsTheTextHolds) {
    // Without --seq-length a short text is enough; with it, it must be long enough.
    const std::string text = write("text.txt", std::string(30, 'e'));
    const std::string flags =
        "compare --scale 256 --repeats 1 --golden none --report none "
        "--micro-batch-size 4 --text " +
        text;
    const Output shrunk = moe(flags);
    EXPECT_EQ(shrunk.code, kExitOk) << shrunk.err;
    EXPECT_TRUE(has(shrunk, "S=7 x B=4 = 28 tokens"));
    EXPECT_TRUE(has(shrunk, "\n- golden cases: not run\n"));
    EXPECT_TRUE(IsBadInput(flags + " --seq-length 8", {"30 bytes", "32"}));
    const Output none = moe(flags + " --seq-length 0");
    EXPECT_EQ(none.code, kExitOk) << none.err;
    EXPECT_TRUE(has(none, "0 tokens"));
    EXPECT_FALSE(has(none, "nan"));
}

TEST_F(CompareTest, NamesWhatCompareCannotUse) {
    const auto rejects = [](const std::string& flags, const Words& words) {
        return IsBadInput("compare --scale 256 --repeats 1 " + flags, words);
    };
    const std::string text = write("text.txt", "short"), none = " --report none";
    EXPECT_TRUE(rejects("--text " + path("absent") + none, {"--text = ", "absent"}));
    EXPECT_TRUE(rejects("--text " + path("") + none, {"--text = ", "readable file"}));
    EXPECT_TRUE(
        rejects("--text " + write("empty.txt", "") + none, {"--text", "0 bytes"}));
    EXPECT_TRUE(rejects("--text " + write("three.txt", "abc") + none, {"3 bytes", "4"}));
    EXPECT_TRUE(rejects("--text " + text + none + " --seq-length 9", {"5 bytes", "36"}));
    EXPECT_TRUE(rejects("--text " + text + " --report " + text, {"--report = " + text}));
    EXPECT_TRUE(
        rejects("--text " + text + " --report " + text + "/below", {"--report = "}));
    EXPECT_TRUE(
        rejects("--text " + text + " --report /proc/moe", {"--report = /proc/moe"}));
    EXPECT_TRUE(
        IsBadInput(Words{"compare", "--text", text, "--report", ""}, {"--report = :"}));
    EXPECT_TRUE(rejects("--repeats 0", {"--repeats"}));
    EXPECT_TRUE(rejects("--golden some" + none, {"--golden", "some", "none"}));
    EXPECT_TRUE(
        IsBadInput("compare --golden tests --ranks 2" + none, {"--golden = tests"}));
    for (const char* value : {"0", "-1", "1001", "x"})
        EXPECT_TRUE(IsBadInput(std::string("compare --report none --repeats ") + value,
                               {std::string("--repeats = ") + value}));
    EXPECT_TRUE(rejects("--tier warp_gpu" + none, {"--tier = warp_gpu: "}));
    EXPECT_TRUE(
        rejects("--tier reference_cpu --dtype bf16" + none, {"--dtype = bf16: "}));
    if (missing_device().empty()) {
        EXPECT_TRUE(rejects("--tier optimized_gpu --dtype fp32" + none,
                            {"--dtype = fp32: no chosen tier has it for every component; "
                             "reference_cpu, naive_gpu have"}));
        EXPECT_TRUE(rejects("--spec experts=optimized_gpu:fp32" + none,
                            {"--spec experts = optimized_gpu:fp32: this tier has bf16; "
                             "fp32 is in reference_cpu, naive_gpu"}));
    }
    EXPECT_TRUE(rejects("--spec gate=x" + none, {"spec = gate=x: "}));
    // Nothing is left behind, not even the folder for the report.
    EXPECT_TRUE(rejects("--text " + path("absent") + " --report " + path("report"), {}));
    EXPECT_FALSE(fs::exists(path("report")));
}

}  // namespace
}  // namespace moe::test
