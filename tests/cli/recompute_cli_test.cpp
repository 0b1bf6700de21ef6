// Recompute on the command line: the bytes with and without it, what runs twice, what a
// launch script says of it, and who refuses it.

#include <gmock/gmock.h>

#include "tests/cli/support.h"

namespace moe::test {
namespace {

using testing::HasSubstr;
using testing::Not;

class RecomputeCliTest : public CliTest {
  protected:
    Output compare(const std::string& more) {
        return moe("compare --seq-length 6 --micro-batch-size 2 --report " +
                   path("report") +
                   " --golden none --tier reference_cpu --dtype fp32 --hidden-size 24 "
                   "--num-experts 4 --moe-ffn-hidden-size 20 --moe-grouped-gemm "
                   "--moe-shared-expert-intermediate-size 12 --text " +
                   write("text.txt", "abcdefghijklmnopqrstuvwxyz") + " " + more);
    }
};

TEST_F(RecomputeCliTest, CompareShowsBytesWithAndWithout) {
    const Output all = compare("");
    EXPECT_THAT(all.out, Not(HasSubstr("again in backward")));
    EXPECT_THAT(all.out, Not(HasSubstr("without recompute")));
    const Output act =
        compare("--recompute-activations --recompute-modules moe_act core_attn");
    EXPECT_EQ(act.code, kExitOk) << act.err;
    EXPECT_THAT(act.out, HasSubstr("⑧ again in backward: recompute_modules moe_act\n"));
    // fp32: H = 24, N = 2 T, F = 20, Fs = 12
    EXPECT_THAT(act.out,
                HasSubstr("; without recompute 2TH + NH + 3NF + 3TFs + m = 1,008 + m"));
    EXPECT_THAT(act.out, HasSubstr("2TH + NH + 2NF + 3TFs + m = 848 + "));
    EXPECT_THAT(
        read(path("report/index.html")),
        HasSubstr("3TFs + m; without recompute 2TH + NH + 3NF + 3TFs + m = 1,008 + m"));
    const Output whole = compare("--moe-layer-recompute");
    EXPECT_EQ(whole.code, kExitOk) << whole.err;
    EXPECT_THAT(whole.out,
                HasSubstr("① and ⑥–⑩ again in backward: recompute_modules moe\n"));
    EXPECT_THAT(whole.out, HasSubstr("TH + m = 96 + "));
}

TEST_F(RecomputeCliTest, OverRanksBytesAreThoseOfBothRuns) {
    const std::string ranks =
        "compare --ranks 2 --scale 64 --seq-length 6 --micro-batch-size 2 --report none "
        "--tier reference_cpu --dtype fp32 --moe-token-dispatcher-type alltoall "
        "--moe-layer-recompute";
    const Output output = moe(ranks);
    EXPECT_EQ(output.code, kExitOk) << output.out << output.err;
    EXPECT_THAT(output.out, HasSubstr("⑥ and ⑩ are sent again in backward: their "
                                      "bytes are of both\n"));
    EXPECT_THAT(moe("trace --ranks 2 --moe-layer-recompute").out,
                HasSubstr("values are shown once, bytes are of both runs"));
}

TEST_F(RecomputeCliTest, LaunchScriptsMayHaveIt) {
    const auto from_script = [&](const std::string& more) {
        return moe({"trace", "--megatron-args",
                    "--hidden-size 8 --num-experts 4 --moe-router-topk 2 "
                    "--moe-grouped-gemm " +
                        more});
    };
    const Output several = from_script(
        "--recompute-granularity selective --recompute-modules layernorm "
        "moe_act --moe-layer-recompute");
    EXPECT_EQ(several.code, kExitOk) << several.err;
    EXPECT_THAT(several.out, HasSubstr("⑥–⑩ again in backward: recompute_modules "
                                       "moe_act moe; its values are shown once\n"));
    EXPECT_EQ(several.err, "");
    const Output activations =
        from_script("--recompute-activations --recompute-modules moe_act");
    EXPECT_THAT(activations.out, HasSubstr("⑧ again in backward"));
    // What a model does around the layer
    const Output full = from_script("--recompute-granularity full");
    EXPECT_EQ(full.code, kExitOk) << full.err;
    EXPECT_THAT(full.err, HasSubstr("runs whole transformer layers again"));
}

TEST_F(RecomputeCliTest, IsRefusedWhereItMeansNothing) {
    EXPECT_TRUE(IsBadInput("trace --recompute-granularity full",
                           {"recompute_granularity = full: must be selective"}));
    EXPECT_TRUE(IsBadInput("wire --moe-layer-recompute",
                           {"recompute_modules = moe: must be left out"}));
    const Output nothing = compare("--recompute-modules moe");
    EXPECT_EQ(nothing.code, kExitOk);
    EXPECT_THAT(nothing.err, HasSubstr("recompute_modules does nothing without"));
}

}  // namespace
}  // namespace moe::test
