// What is printed on a narrow terminal: nothing wider than it, and a line for what is
// left out. COLUMNS says how wide it is.

#include "cli/terminal.h"

#include "cli/compare/comparison.h"
#include "cli/measure/bench_view.h"
#include "cli/progress.h"
#include "cli/ranks/comparison.h"

#include "tests/cli/support.h"

namespace moe::test {
namespace {

class TerminalTest : public CliTest {
  protected:
    /// The program on a terminal of so many columns.
    Output on_columns(const char* columns, const std::string& arguments) const {
        setenv("COLUMNS", columns, 1);
        return moe(arguments);
    }
    ~TerminalTest() override { unsetenv("COLUMNS"); }

    const std::string text_ = write("text.txt", std::string(300, 'e'));
    const std::string small_ =
        "--scale 256 --seq-length 32 --micro-batch-size 4 --report none "
        "--dtype fp32,bf16 --text " +
        text_;
    const std::string compare_ = "compare --repeats 1 --golden none " + small_;
};

std::size_t widest(const Output& output) {
    std::size_t most = 0;
    std::istringstream lines(output.out);
    for (std::string line; std::getline(lines, line);)
        most = std::max(most, columns_of(line));
    return most;
}

TEST_F(TerminalTest, IsAsWideAsColumnsSays) {
    EXPECT_EQ(terminal_width(), kAnyWidth) << "stdout is no terminal here";
    for (const auto& [columns, width] :
         std::map<const char*, std::size_t>{{"80", 80},
                                            {"1", 1},
                                            {"0", kAnyWidth},
                                            {"-3", kAnyWidth},
                                            {"x", kAnyWidth}}) {
        setenv("COLUMNS", columns, 1);
        EXPECT_EQ(terminal_width(), width) << columns;
    }
}

TEST(Wrapped, CutsAtBlanksAndIndents) {
    EXPECT_EQ(columns_of("① a→b"), 5u);
    EXPECT_EQ(wrapped("one two", 2, 7), "one two");
    EXPECT_EQ(wrapped("one two", 2, 6), "one\n  two");
    EXPECT_EQ(wrapped("one  two   three", 1, 7), "one\n two\n three");
    EXPECT_EQ(wrapped("①② ③", 0, 4), "①② ③");
    EXPECT_EQ(wrapped("unbreakable", 2, 4), "unbreakable");
    EXPECT_EQ(wrapped("a unbreakable b", 2, 4), "a\n  unbreakable\n  b");
    EXPECT_EQ(wrapped("  a b", 6, 4), "  a\n      b");
    EXPECT_EQ(wrapped("", 2, 4), "");
}

TEST_F(TerminalTest, LeavesOutTheFirstPartsOfATable) {
    setenv("COLUMNS", "40", 1);
    const auto widths = [](std::size_t gone) { return 50 - 10 * gone; };
    const TableParts parts({"shapes", "bytes", "times"}, widths);
    EXPECT_EQ(parts.left_out(), 1u);
    EXPECT_FALSE(parts.has(0));
    EXPECT_TRUE(parts.has(1));
    EXPECT_EQ(parts.note("the report"),
              "Left out at 40 columns: shapes (a wider\n  terminal, or the report)\n");
    setenv("COLUMNS", "9", 1);
    EXPECT_EQ(TableParts({"shapes", "bytes"}, widths).left_out(), 2u);
    setenv("COLUMNS", "50", 1);
    EXPECT_EQ(TableParts({"shapes", "bytes"}, widths).note(), "");
}

TEST_F(TerminalTest, ComparesOnEightyColumns) {
    const std::string note = "Left out at 80 columns: elements and bytes, errors as";
    const Output narrow = on_columns("80", compare_);
    EXPECT_EQ(narrow.code, kExitOk) << narrow.err;
    EXPECT_LE(widest(narrow), 80u) << narrow.out;
    EXPECT_TRUE(has(narrow, "⑳ shared experts backward        off\n")) << narrow.out;
    EXPECT_TRUE(has(narrow, note)) << narrow.out;
    EXPECT_FALSE(has(narrow, "NH + 2EFH"));
    EXPECT_FALSE(has(narrow, " ms ")) << "times go where they must";
    EXPECT_TRUE(has(on_columns("100", compare_), " ms ")) << "and stay where they can";

    // On a wide one, or none, everything is there.
    unsetenv("COLUMNS");
    const Output wide = moe(compare_);
    EXPECT_GT(widest(wide), 100u);
    EXPECT_FALSE(has(wide, "Left out"));
    EXPECT_TRUE(has(wide, "NH + 2EFH + 2NF"));
}

TEST_F(TerminalTest, ShowsRanksOnEightyColumns) {
    const std::string ranks = "compare --ranks 4 " + small_;
    const Output narrow = on_columns("80", ranks), wide = on_columns("200", ranks);
    EXPECT_LE(widest(narrow), 80u) << narrow.out;
    EXPECT_TRUE(has(narrow, "bytes on every link (a wider terminal)")) << narrow.out;
    EXPECT_FALSE(has(narrow, "bytes, ⑥"));
    EXPECT_TRUE(has(wide, "bytes, ⑥"));
    EXPECT_FALSE(has(wide, "Left out"));
}

TEST_F(TerminalTest, VerifiesOnEightyColumns) {
    const std::string verify = "verify --dtype fp32 " + golden("hf_deepseek_v3");
    const Output narrow = on_columns("80", verify), wide = on_columns("120", verify);
    EXPECT_LE(widest(narrow), 80u) << narrow.out;
    EXPECT_TRUE(has(narrow, " % of bound\n")) << narrow.out;
    EXPECT_TRUE(has(wide, " bound 2.00e-06 ")) << wide.out;
}

// Where stderr is no terminal, long work says what it does, and short work nothing.
TEST(Progress, IsLinesInAPipe) {
    const auto said = [](bool is_long) {
        testing::internal::CaptureStderr();
        Progress progress(is_long);
        for (const char* what : {"drawing weights", "every value", "times"})
            progress(what);
        return testing::internal::GetCapturedStderr();
    };
    EXPECT_EQ(said(true), "… drawing weights\n") << "at once, then once a second";
    EXPECT_EQ(said(false), "");
}

TEST(Progress, SaysWhichStepHasCome) {
    ComparisonRequest request;
    request.config = small_config();
    request.config.finalize();
    request.text = {"", 2, 1, {'a', 'b'}};
    std::vector<std::string> said;
    request.progress = [&](const std::string& what) { said.push_back(what); };
    request.repeats = 1;
    available_suppliers();
    run_comparison(request);
    EXPECT_EQ(said.front(), "drawing weights");
    for (const char* step : {"② gating", "⑨ FC2", "⑭ FC1 backward"})
        EXPECT_EQ(std::count(said.begin(), said.end(),
                             std::string("reference_cpu:fp64: every value, ") + step),
                  1)
            << step;
}

TEST(Progress, SaysWhichStepOfTheRanksHasCome) {
    RankComparisonRequest request;
    request.sizes.world = 2;
    request.sizes.expert = 2;
    MoEConfig config = small_config();
    config.expert_model_parallel_size = 2;
    config.moe_token_dispatcher_type = "alltoall";
    config.finalize();
    request.configs = {config};
    request.text = {"", 2, 2, {'a', 'b', 'c', 'd'}};
    available_suppliers();
    request.columns = {ModuleSpec::uniform({"reference_cpu", DType::f32})};
    std::vector<std::string> said;
    request.progress = [&](const std::string& what) { said.push_back(what); };
    EXPECT_TRUE(run_rank_comparison(request).ok);
    EXPECT_EQ(said.front(), "drawing weights");
    for (const char* words : {"one rank with everything, ② gating",
                              "one rank with everything, ⑭ FC1 backward",
                              "alltoall over 2 ranks: reference_cpu:fp32, ⑥ dispatch "
                              "(permute)",
                              "alltoall over 2 ranks: reference_cpu:fp32, ⑨ FC2",
                              "alltoall over 2 ranks: reference_cpu:fp32, ⑲ gating "
                              "backward"})
        EXPECT_EQ(std::count(said.begin(), said.end(), std::string(words)), 1) << words;
}

TEST_F(TerminalTest, BenchesOnEightyColumns) {
    bench::Run run;
    run.before = run.after = bench::Calibration{20.0, 0.1};
    bench::Measurement timed;
    timed.subject = "router";
    timed.pass = "forward";
    timed.spec = "reference_cpu:fp32";
    timed.ms = bench::Timing{1.5, 1.25, 2.5, 9};
    timed.flops = timed.bytes = 1e6;
    timed.floor_ms = 0.5;
    timed.error = 1e-7;
    timed.bound = 1e-5;
    bench::Measurement counted = timed;
    counted.spec = "naive_gpu:fp32";
    counted.emulated = true;
    counted.ms.reset();
    counted.launches = 8;
    run.measurements = {timed, counted};
    const auto print = [&](const char* columns) {
        setenv("COLUMNS", columns, 1);
        testing::internal::CaptureStdout();
        print_bench_table({}, run);
        std::fflush(stdout);
        return Output{0, testing::internal::GetCapturedStdout(), ""};
    };
    const Output narrow = print("80"), wide = print("200");
    EXPECT_LE(widest(narrow), 80u) << narrow.out;
    EXPECT_TRUE(has(narrow, "reached  error, of bound\n")) << narrow.out;
    EXPECT_TRUE(has(narrow, "Left out at 80 columns: GB/s, of copy,")) << narrow.out;
    EXPECT_TRUE(has(narrow, "emulated ")) << narrow.out;
    EXPECT_FALSE(has(narrow, "1.25 - 2.50"));
    EXPECT_TRUE(has(wide, "1.25 - 2.50")) << wide.out;
    EXPECT_FALSE(has(wide, "Left out"));
}

}  // namespace
}  // namespace moe::test
