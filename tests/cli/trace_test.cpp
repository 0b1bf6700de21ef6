// `moe trace`: every value of a tiny layer, in the order of the steps.

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>

#include "tests/cli/support.h"

namespace moe::test {
namespace {

class TraceTest : public CliTest {};

bool has(const Output& output, const std::string& words) {
    return output.out.find(words) != std::string::npos;
}

TEST_F(TraceTest, TracesTheSameLinesInEveryPrecision) {
    const Output fp64 = moe("trace"), fp32 = moe("trace --dtype fp32");
    EXPECT_EQ(fp64.code, kExitOk);
    EXPECT_EQ(fp32.code, kExitOk);
    EXPECT_EQ(count_lines(fp64.out), count_lines(fp32.out));
    // Their numbers agree in all the digits there are, so that `diff` shows little.
    std::istringstream left(fp64.out), right(fp32.out);
    std::int64_t differing = 0;
    for (std::string a, b; std::getline(left, a) && std::getline(right, b);)
        differing += a != b && a.find("fp64") == std::string::npos;
    EXPECT_LT(differing, 4);

    std::size_t at = 0;
    for (int n = 1; n <= kNumSteps; ++n) {
        const std::string heading = "\n" + circled(static_cast<Step>(n)) + " " +
                                    title(static_cast<Step>(n)) + "\n";
        const std::size_t found = fp64.out.find(heading, at);
        ASSERT_NE(found, std::string::npos) << heading << "is missing or out of order";
        EXPECT_EQ(fp64.out.find(heading, found + 1), std::string::npos);
        at = found;
    }
    for (const char* words :
         {"Input\n", "Losses", "z_loss", "grad.router.weight (4, 6) fp64",
          "grad.hidden_states (4, 2, 6) fp64"})
        EXPECT_TRUE(has(fp64, words)) << words;
    // Some choices are dropped, some stay, so that every step shows something.
    EXPECT_TRUE(has(fp64, "8 tokens (S=4 x B=2"));
    EXPECT_TRUE(has(fp64, "dispatched_probs (13) fp64"));
    EXPECT_FALSE(has(fp64, "-0.0000"));
    // The input is in quarters, to be followed by hand.
    const std::string shape = "hidden_states (4, 2, 6) fp32\n";
    const std::size_t input = fp64.out.find(shape) + shape.size();
    std::istringstream numbers(fp64.out.substr(input, fp64.out.find("①") - input));
    int count = 0;
    for (std::string word; numbers >> word;) {
        if (word.starts_with("t")) continue;  // whose row it is
        const double number = std::stod(word);
        EXPECT_EQ(4.0 * number, std::round(4.0 * number)) << number;
        ++count;
    }
    EXPECT_EQ(count, 48);
    EXPECT_FALSE(has(fp64, "nan"));
}

TEST_F(TraceTest, NamesRowsByTokenAndExpert) {
    // No choice is dropped: every token has both of its rows, expert by expert.
    const Output all = moe("trace --moe-expert-capacity-factor none");
    const std::size_t map_at = all.out.find("  routing_map (8, 4)");
    const std::size_t rows_at = all.out.find("  dispatched_hidden_states (16, 6)");
    ASSERT_NE(rows_at, std::string::npos) << all.out;
    std::istringstream map(all.out.substr(all.out.find('\n', map_at)));
    std::vector<std::string> by_expert[4], expected;
    for (int t = 0; t < 8; ++t) {
        std::string token;
        map >> token;
        EXPECT_EQ(token, "t" + std::to_string(t));
        for (int e = 0, routed; e < 4; ++e)
            if (map >> routed && routed)
                by_expert[e].push_back(token + "→e" + std::to_string(e));
    }
    for (const auto& names : by_expert)
        expected.insert(expected.end(), names.begin(), names.end());
    std::istringstream rows(all.out.substr(all.out.find('\n', rows_at) + 1));
    for (const std::string& name : expected) {
        std::string line;
        std::getline(rows, line);
        EXPECT_EQ(split(line).at(0), name);
    }
    EXPECT_TRUE(has(moe("trace --ranks 2"),
                    "\nUnlike moe trace without --ranks: no capacity, no shared "
                    "experts, no losses, F=8\n"));
}

TEST_F(TraceTest, TracesTheSameNumbersEveryTime) {
    const Output first = moe("trace");
    EXPECT_EQ(moe("trace").out, first.out);
    EXPECT_EQ(moe("trace --seed 1234").out, first.out);
    EXPECT_NE(moe("trace --seed 1235").out, first.out);
#ifdef _OPENMP
    const int threads = omp_get_max_threads();
    EXPECT_EQ(moe("trace --threads 3").out, first.out);
    EXPECT_EQ(omp_get_max_threads(), 3);
    omp_set_num_threads(threads);
#endif
}

TEST_F(TraceTest, TracesWhatItIsGiven) {
    const Output none = moe("trace --seq-length 0");
    EXPECT_EQ(none.code, kExitOk);
    EXPECT_TRUE(has(none, "0 tokens (S=0 x B=2"));
    const Output bias =
        moe("trace --moe-router-score-function sigmoid --moe-router-enable-expert-bias "
            "--swiglu");
    EXPECT_TRUE(has(bias, "expert_bias_updated (4) fp32"));
    EXPECT_FALSE(has(moe("trace"), "expert_bias_updated"));
    const Output mixed = moe("trace --spec router=reference_cpu:fp32");
    EXPECT_TRUE(has(mixed, "router=reference_cpu:fp32 dispatcher=reference_cpu:fp64"));
    EXPECT_TRUE(has(mixed, "logits (8, 4) fp32"));
    // Wide tensors are cut, and say so.
    const Output wide = moe("trace --hidden-size 20 --seq-length 20");
    EXPECT_TRUE(has(wide, " …\n"));
    EXPECT_TRUE(has(wide, "… and 24 more rows"));
    EXPECT_FALSE(has(moe("trace --seq-length 8"), " 0 more rows")) << "sixteen fit";
}

}  // namespace
}  // namespace moe::test
