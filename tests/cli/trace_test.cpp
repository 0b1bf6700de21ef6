// `moe trace`: every value of a tiny layer, in the order of the steps.

#ifdef _OPENMP
#include <omp.h>
#endif

#include <cmath>

#include "cli/terminal.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

class TraceTest : public CliTest {};

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
    const Output balanced =
        moe("trace --moe-router-load-balancing-type quantile_balancing "
            "--moe-router-quantile-balancing-ema 0.5 --swiglu --token 3");
    EXPECT_TRUE(has(balanced, "qb_beta_local (4)"));
    EXPECT_TRUE(has(balanced, "qb_beta_updated (4) fp32"));
    EXPECT_TRUE(has(balanced, ", by logit less beta"));
    EXPECT_FALSE(has(bias, "qb_beta"));
    const Output uneven =
        moe("trace --moe-router-load-balancing-type quantile_balancing --seq-length 3 "
            "--micro-batch-size 1 --moe-aux-loss-coeff 0 "
            "--moe-expert-capacity-factor -1");
    EXPECT_EQ(uneven.code, kExitBadInput);
    EXPECT_EQ(uneven.out, "");
    EXPECT_TRUE(uneven.err.starts_with("moe: tokens * moe_router_topk = 6: "));
    const Output mixed = moe("trace --spec router=reference_cpu:fp32");
    EXPECT_TRUE(has(mixed, "router=reference_cpu:fp32 dispatcher=reference_cpu:fp64"));
    EXPECT_TRUE(has(mixed, "logits (8, 4) fp32"));
    // Wide tensors are cut, and say so.
    const Output wide = moe("trace --hidden-size 20 --seq-length 20");
    EXPECT_TRUE(has(wide, " …\n"));
    EXPECT_TRUE(has(wide, "… and 24 more rows"));
    EXPECT_FALSE(has(moe("trace --seq-length 8"), " 0 more rows")) << "sixteen fit";
}

/// The lines of `text` whose first word is the token, or one of its rows.
std::vector<std::string> lines_of(const std::string& text, const std::string& token) {
    std::vector<std::string> found;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const std::vector<std::string> words = split(line);
        // Over a probability's column stand names only; under it, in the token's view,
        // it has a line of its own
        const bool is_value = words.size() > 1 && words[1].find('t') != 0;
        if (is_value && words[1].find_first_not_of("-.0123456789") == std::string::npos &&
            (words[0] == token || words[0].starts_with(token + "→")))
            found.push_back(line);
    }
    return found;
}

TEST_F(TraceTest, FollowsOneToken) {
    for (const char* flags : {"", " --moe-token-dispatcher-type allgather",
                              " --tier naive_gpu --moe-expert-capacity-factor none"}) {
        const Output all = moe(std::string("trace") + flags);
        for (int t = 0; t < 8; ++t) {
            const std::string token = "t" + std::to_string(t);
            const Output one = moe("trace --token " + std::to_string(t) + flags);
            ASSERT_EQ(one.code, kExitOk) << one.err;
            // Its rows are those of the whole view, in the same order; beside them only
            // probabilities, which stand in one line there.
            std::vector<std::string> expected = lines_of(all.out, token), rows;
            for (const std::string& line : lines_of(one.out, token))
                if (line.find("→") == std::string::npos || split(line).size() > 2)
                    rows.push_back(line);
            EXPECT_EQ(rows, expected) << token << flags;
            EXPECT_GT(rows.size(), 15u);
            EXPECT_EQ(one.out.find("\n    t" + std::to_string((t + 1) % 8)),
                      std::string::npos)
                << "another token's row";
        }
    }
}

TEST_F(TraceTest, FollowsOneTokenThroughTheLatentSize) {
    const Output output = moe("trace --moe-latent-size 3 --token 2");
    for (const char* words :
         {"latent_hidden_states (8, 3) fp64\n    t2 ",
          "dispatched_hidden_states (15, 3) fp64\n    t2→e0 ",
          "latent_output (8, 3) fp64\n    t2 ", "the sum of its rows in ⑨\n",
          "fc2_latent_proj of latent_output, and shared_output in ①\n",
          "d_latent_output (8, 3) fp64\n    t2 ",
          "d_latent_hidden_states (8, 3) fp64\n    t2 ",
          "d_hidden_states_routed (8, 6) fp64\n    t2 ",
          "grad.fc1_latent_proj.weight (3, 6) fp64, of all tokens\n"})
        EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
}

TEST_F(TraceTest, SaysWhereATokenGoes) {
    const Output dropped = moe("trace --token 4");
    for (const char* words :
         {"t4 chooses e3 (0.6883) and e0 (0.3117)\n",
          "t4→e0 is dropped: e0 has as many as it takes, with higher probabilities\n",
          "t4 is in row 10 (e3); there are 13 rows, counted from 0\n",
          "the sum of its rows in ⑨, and of shared_output in ①\n",
          "grad.router.weight (4, 6) fp64, of all tokens\n"})
        EXPECT_TRUE(has(dropped, words)) << words << dropped.out;
    EXPECT_TRUE(
        has(moe("trace --token 3"), "t3 is in row 3 (e0) and row 9 (e3); there are 13"));
    EXPECT_FALSE(has(moe("trace --token 3"), "dropped:"));
    // One row per expert is kept: for eight tokens with two choices each that is too few.
    int without = 0, filled = 0;
    for (const char* token : {"0", "1", "2", "3", "4", "5", "6", "7"}) {
        const Output one =
            moe({"trace", "--token", token, "--moe-expert-capacity-factor", "0.25"});
        const bool gone = has(one, "has no row: all of its choices are dropped");
        without += gone;
        EXPECT_EQ(gone, has(one, "shared_output of ① alone")) << token;
        EXPECT_EQ(gone, !has(one, "the sum of its rows")) << token;
        filled +=
            has(moe({"trace", "--token", token, "--moe-pad-expert-input-to-capacity"}),
                "fills up the share of e1, with weight 0");
    }
    EXPECT_GE(without, 4);
    EXPECT_EQ(filled, 3) << "e1 has one row, and takes four";
    EXPECT_TRUE(IsBadInput("trace --token 8", {"--token = 8", "from 0 to 7"}));
    EXPECT_TRUE(IsBadInput("trace --token -1", {"--token = -1", "from 0 to 7"}));
    EXPECT_TRUE(IsBadInput("trace --token 0 --seq-length 0", {"no tokens"}));
    EXPECT_TRUE(IsBadInput("trace --token 0 --ranks 2", {"--token = 0", "--ranks"}));
}

TEST_F(TraceTest, ShowsOfManyExpertsThoseThatATokenChose) {
    // As many as a token has numbers, which are no experts' values
    const Output trace =
        moe("trace --token 3 --num-experts 40 --moe-router-topk 3 --hidden-size 40");
    EXPECT_FALSE(has(trace, "  shared_output (8, 40) fp64, of the experts"));
    EXPECT_EQ(trace.code, kExitOk) << trace.err;
    const std::size_t at = trace.out.find("t3 chooses e");
    ASSERT_NE(at, std::string::npos);
    const std::size_t probs = trace.out.find("  probs (8, 40) fp64, of the experts", at);
    ASSERT_NE(probs, std::string::npos);
    std::istringstream lines(trace.out.substr(probs));
    std::string line;
    std::getline(lines, line);
    std::getline(lines, line);
    const std::vector<std::string> words = split(line);
    ASSERT_EQ(words.size(), 4u) << line;
    for (int k = 1; k <= 3; ++k)
        EXPECT_LT(trace.out.find(words[k].substr(0, words[k].find('=')) + " (", at),
                  probs)
            << line;
    EXPECT_TRUE(has(moe("trace --token 3 --moe-router-score-function sigmoid "
                        "--moe-router-enable-expert-bias"),
                    ", by probability plus expert bias\n"));
}

TEST_F(TraceTest, FollowsATokenOfAText) {
    const std::string file = write("text.txt", "Hello, w\xC3\xB6rld");
    const Output trace = moe({"trace", "--text", file, "--token", "4"});
    EXPECT_EQ(trace.code, kExitOk) << trace.err;
    EXPECT_TRUE(has(trace, "13 tokens (S=13 x B=1"));
    EXPECT_TRUE(
        has(trace, "Only the rows of t4 are shown: Hell[o], w··rld, byte 0x6F\n"));
    // What came before a byte is part of its embedding: the same byte twice differs.
    EXPECT_NE(lines_of(trace.out, "t4").at(0).substr(12),
              lines_of(moe({"trace", "--text", file}).out, "t2").at(0).substr(12));
    const Output two = moe({"trace", "--text", file, "--token", "5", "--seq-length", "6",
                            "--micro-batch-size", "2"});
    EXPECT_TRUE(has(two, "are shown:  w[·]·rl, byte 0xC3\n"))
        << "s = 2 of the second sequence";
    EXPECT_TRUE(IsBadInput({"trace", "--text", file, "--token", "13"},
                           {"--token = 13", "from 0 to 12"}));
    EXPECT_TRUE(IsBadInput({"trace", "--text", file, "--seq-length", "14"},
                           {"--text", "holds 13 bytes"}));
    EXPECT_TRUE(IsBadInput({"trace", "--text", file, "--ranks", "2"}, {"--ranks"}));
    EXPECT_TRUE(IsBadInput("trace --text nowhere", {"--text = nowhere", "readable"}));
    const std::string long_text = write("long.txt", std::string(5000, 'a'));
    EXPECT_TRUE(has(
        moe({"trace", "--text", long_text, "--token", "4000"}),
        ": …" + std::string(24, 'a') + "[a]" + std::string(24, 'a') + "…, byte 0x61\n"));
}

TEST_F(TraceTest, FitsTheTerminal) {
    for (const char* flags : {"", " --token 3", " --ranks 2",
                              " --ranks 4 --moe-token-dispatcher-type allgather",
                              " --ranks 4 --moe-token-dispatcher-type flex",
                              " --ranks 2 --spec experts=naive_gpu:bf16",
                              " --ranks 2 --num-experts 64 --moe-router-topk 4",
                              " --ranks 2 --tensor-model-parallel-size 2"}) {
        const Output wide = moe(std::string("trace") + flags);
        setenv("COLUMNS", "80", 1);
        const Output narrow = moe(std::string("trace") + flags);
        unsetenv("COLUMNS");
        std::istringstream lines(narrow.out);
        for (std::string line; std::getline(lines, line);)
            EXPECT_LE(columns_of(line), 80u) << line;
        std::vector<std::string> all = split(wide.out), same = split(narrow.out);
        std::sort(all.begin(), all.end());
        std::sort(same.begin(), same.end());
        if (std::string(flags).find("ranks") == std::string::npos) {
            EXPECT_EQ(same, all) << "every value is still there";
        }
        EXPECT_EQ(narrow.code, kExitOk);
    }
}

}  // namespace
}  // namespace moe::test
