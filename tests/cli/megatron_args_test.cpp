// A launch script's arguments: how they are read, and what `moe compare` takes of them.

#include "cli/megatron_args.h"

#include <gmock/gmock.h>

#include "core/error.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

std::vector<std::string> flags_of(const std::string& text) {
    std::vector<std::string> flags;
    for (const ScriptFlag& flag : read_script_flags("script", text)) {
        flags.push_back(flag.name);
        for (const std::string& value : flag.values) flags.back() += "|" + value;
    }
    return flags;
}

TEST(ScriptFlags, AreCutAsAShellCutsThem) {
    EXPECT_THAT(flags_of("--a 1 --b=2 --c \"3 4\" '5' --d\\\n  6 # --e 7\n--f a\\ b"),
                ElementsAre("--a|1", "--b|2", "--c|3 4|5", "--d|6", "--f|a b"));
    EXPECT_THAT(flags_of("--lr 1e-4 --seed -1 --last"),
                ElementsAre("--lr|1e-4", "--seed|-1", "--last"));
    EXPECT_THAT(flags_of("--windows \\\r\n 1 \r\n"), ElementsAre("--windows|1"));
    EXPECT_THAT(flags_of("python train.py"), ElementsAre());
}

TEST(ScriptFlags, StandInArraysAndStrings) {
    EXPECT_THAT(
        flags_of("MOE=(\n  --num-experts 8\n  --freq \"([0]*3+[1]*5)\"\n"
                 "  --topk 2)\nrun ${MOE[@]} --swiglu"),
        ElementsAre("--num-experts|8", "--freq|([0]*3+[1]*5)", "--topk|2", "--swiglu"));
    EXPECT_THAT(
        flags_of("ARGS=(--bf16\n)\nB=\"--a 1 \\\n --b\"\ntorchrun x.py ${ARGS[@]} $B"),
        ElementsAre("--bf16", "--a|1", "--b"));
}

TEST(ScriptFlags, TakeVariablesThatTheTextSets) {
    EXPECT_THAT(
        flags_of("export H=64\nF=$H\n--h $H --f ${F} --k ${K:-2} --unknown ${H}x$X"),
        ElementsAre("--h|64", "--f|64", "--k|2", "--unknown|64x$X"));
}

TEST(ScriptFlags, CountWhereTheyAreUsed) {
    EXPECT_THAT(flags_of("OLD='--k 5'\nX=' --k 4'\nA=(--e 8)\nA+=(--h 2)\n"
                         "run ${A[@]} $X; echo done\nrun --l > log 2>&1"),
                ElementsAre("--e|8", "--h|2", "--k|4", "--l"));
    // A file of settings, which another script reads
    EXPECT_THAT(flags_of("MODEL_ARGS=\" \\\n--e 8 \\\n  --k 2 \""),
                ElementsAre("--e|8", "--k|2"));
}

TEST(ScriptFlags, EndTheirQuotes) {
    EXPECT_THROW(flags_of("--a 'b --c 1"), InputError);
}

class MegatronArgsTest : public CliTest {
  protected:
    const std::string script_ =
        "#!/bin/bash\nHIDDEN=24\nARGS=(\n  --num-layers 4 --hidden-size $HIDDEN\n"
        "  --num-experts 6 --moe-router-topk 3 --moe-ffn-hidden-size 40\n"
        "  --moe-router-load-balancing-type aux_loss seq_aux_loss\n"
        "  --moe-aux-loss-coeff 1e-2 1e-3 --disable-bias-linear --swiglu\n"
        "  --tensor-model-parallel-size 1 --expert-model-parallel-size 2\n"
        "  --moe-token-dispatcher-type alltoall --lr 1e-4 --bf16\n)\n"
        "torchrun --nproc-per-node 8 pretrain_gpt.py ${ARGS[@]}\n";
    Output compare(const std::string& more) {
        return moe(
            "compare --seq-length 7 --micro-batch-size 2 --report none --tier "
            "reference_cpu --text " +
            write("text.txt", "abcdefghijklmnopqrstuvwxyz") + " " + more);
    }
};

TEST_F(MegatronArgsTest, TheLayersAreTakenAndTheOthersNamed) {
    const Output output = compare("--megatron-args " + write("run.sh", script_));
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_THAT(output.out, HasSubstr("pasted arguments"));
    EXPECT_THAT(output.out, HasSubstr("H=24"));
    EXPECT_THAT(output.err, HasSubstr("moe: note: --megatron-args: not the layer's: "
                                      "--nproc-per-node, --num-layers, --lr, --bf16\n"));
    EXPECT_THAT(output.err,
                HasSubstr("moe: note: --megatron-args: how ranks share a layer, which "
                          "none do here: --tensor-model-parallel-size, "
                          "--expert-model-parallel-size\n"));
    const Output quoted = moe({"trace", "--megatron-args",
                               "--hidden-size=24 --num-experts 4 --moe-router-topk 2"});
    EXPECT_EQ(quoted.code, kExitOk) << quoted.err;
    // Flags stand on top of them
    const Output wider =
        compare("--megatron-args " + path("run.sh") + " --hidden-size 32");
    EXPECT_THAT(wider.out, HasSubstr("changed: hidden_size 24 → 32"));
    const Output over = compare("--ranks 2 --megatron-args " + path("run.sh"));
    EXPECT_EQ(over.code, kExitOk) << over.err;
    EXPECT_THAT(over.err, Not(HasSubstr("which none do here")));
    EXPECT_THAT(over.out, Not(HasSubstr("allgather")));
}

// Megatron-Core 0.19.2, arguments.py: a third less for a gated unit, in 64s
TEST_F(MegatronArgsTest, TheWidthIsMegatronsWhereTheScriptHasNone) {
    for (const auto& [more, width] : {std::pair{" --swiglu", "F=256,"}, {"", "F=384,"}}) {
        const std::string text = "--num-experts 4 --hidden-size 96 --disable-bias-linear";
        EXPECT_THAT(compare("--megatron-args " + write("run.sh", text + more)).out,
                    HasSubstr(width));
    }
}

TEST_F(MegatronArgsTest, RefusesWhatIsNoLayer) {
    const auto refused = [&](const std::string& more) {
        const Output output = compare(more);
        EXPECT_EQ(output.code, kExitBadInput) << more;
        EXPECT_EQ(output.out, "") << more;
        return output.err;
    };
    write("run.sh", script_);
    EXPECT_THAT(refused("--megatron-args " + path("missing.sh")),
                HasSubstr("--megatron-args = "));
    EXPECT_THAT(refused("--megatron-args=--lr=1"),
                HasSubstr("has no flag of the MoE layer"));
    EXPECT_THAT(refused("--megatron-args=--hidden-size=$H"),
                HasSubstr("--megatron-args: --hidden-size = $H: "));
    EXPECT_THAT(refused("--megatron-args=--hidden-size"),
                HasSubstr("--megatron-args: --hidden-size = missing: needs a value"));
    EXPECT_THAT(refused("--megatron-args=--moe-token-dropping"),
                HasSubstr("--megatron-args = --moe-token-dropping: not here: "));
    write("value.sh", "--moe-grouped-gemm false");
    EXPECT_THAT(refused("--megatron-args " + path("value.sh")),
                HasSubstr("--moe-grouped-gemm = false: takes no value"));
    write("two.sh", "--moe-router-topk 3 4");
    EXPECT_THAT(refused("--megatron-args " + path("two.sh")),
                HasSubstr("--moe-router-topk = 3 4: takes one value"));
    EXPECT_THAT(refused("--megatron-args=--moe_router_tpok=4"),
                HasSubstr("did you mean --moe-router-topk?"));
    EXPECT_THAT(refused("--preset olmoe --megatron-args " + path("run.sh")),
                HasSubstr("--preset = olmoe: must be left out with --megatron-args"));
    EXPECT_THAT(refused("--scale 100 --megatron-args " + path("run.sh")),
                HasSubstr("--scale = 100: "));
}

}  // namespace
}  // namespace moe::test
