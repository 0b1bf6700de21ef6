// `moe compare --ranks` and `moe trace --ranks`: who holds what, what crosses which link,
// and what they say when something differs.

#include "tests/cli/stand_in.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

class RanksTest : public CliTest {};

// --------------------------------------------------------------------------- compare
const std::string kTiny =
    "--scale 256 --seq-length 3 --micro-batch-size 2 --num-experts 4 "
    "--moe-router-topk 4 --tier reference_cpu --dtype fp32 --text ";

TEST_F(RanksTest, CompareCountsEveryLink) {
    // K = E: every token has a row for each expert. H = 16, three tokens a rank.
    const Output output = moe("compare --ranks 2 " + kTiny + write("text.txt", "abcdef") +
                              " --report " + path("report"));
    EXPECT_EQ(output.code, kExitOk) << output.out << output.err;
    const std::string text = squeezed(output.out);
    for (const char* words :
         {"TP 1 x CP 1 x DP 2; for experts ETP 1 x EP 2 x DP 1",
          "\n 0 3: s 0-2, b 0 0-1 12\n", "tp_ep exchange tokens {0 1}\n",
          "expt_tp share the same experts each alone\n",
          "\n 0 · 3 · 252 B 444 B",  // allgather: 3 (64 + 4 (4 + 1)), ⑩ 3 64
          "\n 1 6 · 424 B · 808 B",  // alltoall: 6 (64 + 4) + 4 4, ⑩ 6 64
          "\n 0 · 3 · 328 B 520 B",  // flex: 3 (64 + 4 (4 + 4) + 8) + 2 8, ⑩ 3 64
          "allgather 1.00 1.00", "alltoall 2.00 2.00", "flex 1.00 1.00",
          "lie on 2.00 ranks (2.00 if balanced): flex makes 2.00 times fewer",
          "✓ alltoall: 2 ranks give what one rank gives", "✓ flex: the bytes of ⑥",
          "✓ all dispatchers and tiers agree", "d_experts.linear_fc2.weight"})
        EXPECT_NE(text.find(words), std::string::npos) << words << "\n" << output.out;
    EXPECT_FALSE(has(output, " ms"));

    const std::string html = read(path("report/index.html"));
    for (const char* words : {"aria-label='alltoall: who sends to whom'", ">424 B<",
                              "<title>rank 1 to rank 0: 6 rows in step 6; 424 bytes",
                              "aria-label='bytes per token, counted and in theory'"})
        EXPECT_NE(html.find(words), std::string::npos) << words;
    EXPECT_EQ(html.find(" ms"), std::string::npos);
}

TEST_F(RanksTest, CompareCountsTheRowsThatCapacityDrops) {
    // Each of four experts takes two of each rank's three tokens.
    const Output output = moe("compare --ranks 2 " + kTiny + write("text.txt", "abcdef") +
                              " --report none --moe-expert-capacity-factor 0.5");
    EXPECT_EQ(output.code, kExitOk) << output.out << output.err;
    EXPECT_TRUE(has(output,
                    "\nRows    16 of 24 kept, 8 dropped: an expert takes at most 2 of "
                    "each rank's tokens\n"))
        << output.out;
}

TEST_F(RanksTest, CompareAgreesOnEveryGrid) {
    NEEDS_DEVICE();
    const std::string common =
        "compare --scale 256 --num-experts 4 --tier reference_cpu,naive_gpu --dtype fp32 "
        "--report none --text " +
        write("text.txt", std::string(40, 'e') + "abcdefghijklmnopqrstuvwxyz") +
        " --ranks ";
    for (const char* grid :
         {"1", "2 --tensor-model-parallel-size 2 --seq-length 6 --micro-batch-size 3",
          "4 --tensor-model-parallel-size 2 --expert-model-parallel-size 2",
          "4 --context-parallel-size 2 --expert-model-parallel-size 2",
          "4 --tensor-model-parallel-size 2 --expert-tensor-parallel-size 1 "
          "--expert-model-parallel-size 4 --moe-expert-capacity-factor 0.7",
          "2 --moe-expert-capacity-factor 1 --moe-pad-expert-input-to-capacity",
          "2 --moe-router-padding-for-quantization",
          "4 --tensor-model-parallel-size 2 --expert-model-parallel-size 2 "
          "--moe-router-padding-for-quantization",
          "4 --tensor-model-parallel-size 2 --expert-model-parallel-size 2 "
          "--moe-router-score-function sigmoid --no-moe-router-norm-topk-prob "
          "--moe-router-num-groups 2 --moe-router-group-topk 1 "
          "--moe-router-group-score-topk 1 --activation-func gelu_tanh",
          "2 --seq-length 0"}) {
        const Output output = moe(common + grid);
        EXPECT_EQ(output.code, kExitOk) << grid << "\n" << output.out << output.err;
        EXPECT_FALSE(has(output, "nan"));
    }
    const Output alone = moe(common + "1");
    for (const char* words : {"Without flex: moe_token_dispatcher_type",
                              "\nRanks   1 thread of one process: ",
                              "✓ alltoall: 1 rank gives what one rank gives"})
        EXPECT_TRUE(has(alone, words)) << alone.out;
    const Output padded = moe(common +
                              "2 --moe-expert-capacity-factor 1 "
                              "--moe-pad-expert-input-to-capacity");
    EXPECT_TRUE(has(padded, "Without flex: moe_pad_expert_input_to_capacity"));
    EXPECT_TRUE(has(padded, "takes each rank's tokens in turn"));
    EXPECT_TRUE(has(moe(common + "2 --moe-router-padding-for-quantization"),
                    "Without allgather: moe_router_padding_for_quantization"));
    const Output one = moe(common + "2 --moe-token-dispatcher-type allgather");
    EXPECT_FALSE(has(one, "alltoall"));
    EXPECT_FALSE(has(one, "Without"));
}

// Odd coefficients, large enough to be seen in the gradients.
const std::string kLosses =
    " --moe-router-load-balancing-type aux_loss seq_aux_loss global_aux_loss "
    "--moe-aux-loss-coeff 8 5 3 --moe-z-loss-coeff 2 --moe-router-topk 2";

TEST_F(RanksTest, CompareHoldsTheLosses) {
    const std::string compare =
        "compare --scale 256 --num-experts 4 --report none "
        "--tier reference_cpu --text " +
        write("text.txt", std::string(40, 'e') + "abcdefgh") + kLosses + " --ranks ";
    for (const char* grid :
         {"2 --micro-batch-size 6 --seq-length 3",
          "4 --tensor-model-parallel-size 2 --expert-model-parallel-size 2 "
          "--micro-batch-size 6 --seq-length 6",
          "4 --tensor-model-parallel-size 2 --context-parallel-size 2 "
          "--expert-model-parallel-size 2 --micro-batch-size 3 --seq-length 12"})
        for (const char* weights : {"", " --calculate-per-token-loss"}) {
            const Output output = moe(compare + grid + weights);
            EXPECT_EQ(output.code, kExitOk) << grid << weights << output.out;
            for (const char* name :
                 {"\n  load_balancing_loss ", "\n  seq_load_balancing_loss ",
                  "\n  global_load_balancing_loss ", "\n  z_loss ",
                  "\n  d_logits_losses "})
                EXPECT_TRUE(has(output, name)) << grid << name << output.out;
            EXPECT_FALSE(has(output, "off here")) << output.out;
            EXPECT_TRUE(has(output, "✓ all dispatchers and tiers agree\n"));
        }
    // A rank's tokens are whole sequences: one rank can have them with their losses
    const Output dropped = moe(compare + "2 --moe-expert-capacity-factor 1");
    EXPECT_EQ(dropped.code, kExitOk) << dropped.out;
    EXPECT_TRUE(has(dropped, "\n  seq_load_balancing_loss ")) << dropped.out;
    // … and here they are not, which is said where everything agrees
    const Output off = moe(compare +
                           "2 --moe-expert-capacity-factor 1 "
                           "--tensor-model-parallel-size 2 "
                           "--expert-tensor-parallel-size 1 "
                           "--expert-model-parallel-size 2 ");
    EXPECT_EQ(off.code, kExitOk) << off.out << off.err;
    EXPECT_TRUE(has(off,
                    "\nLosses  off here, aux_loss, seq_aux_loss, global_aux_loss, "
                    "z_loss: one rank takes"))
        << off.out;
    EXPECT_TRUE(has(off, "tiers agree, without the losses that are off here\n"));
    EXPECT_FALSE(has(off, "\n  z_loss ")) << off.out;
    // Random numbers know a token by its place among all replicas' tokens
    const Output jitter = moe(compare + "2 --moe-input-jitter-eps 0.1");
    EXPECT_EQ(jitter.code, kExitOk) << jitter.out << jitter.err;
    EXPECT_TRUE(has(jitter, "z_loss: random logits and jitter")) << jitter.out;
}

TEST_F(RanksTest, GivesFlexItsHeap) {
    const std::string heap = " --moe-flex-peer-heap-bytes 100000";
    const Output traced = moe("trace --ranks 2 --moe-token-dispatcher-type flex" + heap);
    EXPECT_EQ(traced.code, kExitOk) << traced.err;
    const Output all = moe("compare --ranks 2 " + kTiny + write("text.txt", "abcdef") +
                           " --report none" + heap);
    EXPECT_EQ(all.code, kExitOk) << all.err;
    EXPECT_TRUE(has(all, "✓ flex: 2 ranks give")) << all.out;
    EXPECT_TRUE(
        IsBadInput("trace --ranks 2 --moe-flex-peer-heap-bytes 10 "
                   "--moe-token-dispatcher-type flex",
                   {"moe_flex_peer_heap_bytes = 10"}));
}

TEST_F(RanksTest, NamesRowsForWhichThereIsNoRoom) {
    const std::string flex =
        "compare --ranks 2 " + kTiny + write("text.txt", "abcdef") + " --report " +
        path("report") +
        " --moe-token-dispatcher-type flex --moe-flex-dispatcher-backend hybridep "
        "--moe-expert-rank-capacity-factor ";
    const Output roomy = moe(flex + "9");
    EXPECT_EQ(roomy.code, kExitOk) << roomy.out << roomy.err;
    const Output tight = moe(flex + "0.2");
    EXPECT_EQ(tight.code, kExitDiffers) << tight.err;
    for (const char* said :
         {"✗ flex reference_cpu:fp32: rank 0 dropped 10 rows for which",
          "✗ flex reference_cpu:fp32: rank 1 dropped 10 rows for which"})
        EXPECT_TRUE(has(tight, said)) << tight.out;
    EXPECT_NE(read(path("report/index.html"))
                  .find("<li>flex reference_cpu:fp32: rank 1 dropped 10 rows for which"),
              std::string::npos);
    // ⑥ runs twice, and drops these rows each time
    const Output again = moe(flex + "0.2 --moe-layer-recompute");
    EXPECT_TRUE(has(again, "rank 1 dropped 10 rows for which")) << again.out;
}

// As Megatron's users write them
TEST_F(RanksTest, TakesOrRefusesMegatronsNamesOfFlex) {
    const std::string two =
        "compare --ranks 2 " + kTiny + write("text.txt", "abcdef") + " --report none ";
    const Output deepep =
        moe(two + "--moe-token-dispatcher-type flex --moe-enable-deepep");
    EXPECT_EQ(deepep.code, kExitOk) << deepep.err;
    EXPECT_NE(deepep.err.find("use moe_flex_dispatcher_backend deepep\n"),
              std::string::npos);
    // Of all three dispatchers it is flex's
    const Output hybrid = moe(two + "--moe-flex-dispatcher-backend hybridep");
    EXPECT_EQ(hybrid.code, kExitOk) << hybrid.err;
    EXPECT_EQ(count_lines(hybrid.err), 1) << hybrid.err;
    EXPECT_NE(hybrid.err.find("moe: note: moe_flex_dispatcher_backend hybridep means"),
              std::string::npos);
    EXPECT_TRUE(has(hybrid, "flex: 2 ranks give what one rank gives"));
    EXPECT_FALSE(has(hybrid, "→ hybridep")) << "it is no change of the layer";

    EXPECT_TRUE(IsBadInput(two + "--moe-flex-dispatcher-backend hybrid",
                           {"did you mean hybridep?"}));
    EXPECT_TRUE(IsBadInput(two + "--moe-deepep-num-sms 24",
                           {"flag = --moe-deepep-num-sms: not here: ", "leave it out"}));
    EXPECT_TRUE(IsBadInput(two + "--moe-permute-fusion-into-hybridep",
                           {"not here: use moe_permute_fusion"}));
}

TEST_F(RanksTest, NamesWhatCannotBeCut) {
    const std::string compare = "compare --report none --scale 256 ";
    for (const char* ranks : {"0", "-1", "65"})
        for (const std::string& command : {compare, std::string("trace ")})
            EXPECT_TRUE(IsBadInput(command + "--ranks " + ranks,
                                   {std::string("--ranks = ") + ranks, "from 1 to 64"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks x", {"--ranks = x"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 3",
                           {"--ranks = 3", "must divide num_moe_experts (8)"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 4 --expert-model-parallel-size 3",
                           {"expert_model_parallel_size = 3"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 4 --expert-model-parallel-size 8",
                           {"expert_tensor_parallel_size * expert_model", "4 ranks\n"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 4 --tensor-model-parallel-size 2 "
                                     "--expert-model-parallel-size 4",
                           {"expert_tensor_parallel_size * expert_model", "4 ranks; ",
                            "is tensor_model_parallel_size unless it is given"}));
    EXPECT_TRUE(
        IsBadInput(compare + "--ranks 2 --tensor-model-parallel-size 2 --seq-length 33",
                   {"--seq-length = 33", "2 tensor x context parallel ranks"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 2 --micro-batch-size 3",
                           {"--micro-batch-size = 3", "2 data-parallel replicas"}));
    EXPECT_TRUE(IsBadInput(
        compare + "--ranks 2 --tensor-model-parallel-size 2 --no-sequence-parallel",
        {"sequence_parallel = false"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 2 --repeats 2", {"--repeats = 2"}));
    EXPECT_TRUE(IsBadInput(compare + "--ranks 1 --moe-token-dispatcher-type flex",
                           {"moe_token_dispatcher_type = flex"}));
    EXPECT_TRUE(IsBadInput("trace --ranks 2 --moe-token-dispatcher-type all",
                           {"= all: trace shows one"}));
    for (const char* flag :
         {"--tensor-model-parallel-size 2", "--context-parallel-size 2",
          "--expert-model-parallel-size 2", "--expert-tensor-parallel-size 2",
          "--moe-token-dispatcher-type all", "--moe-token-dispatcher-type flex"})
        for (const std::string& command : {compare, std::string("trace ")})
            EXPECT_TRUE(IsBadInput(command + flag, {"needs --ranks"}));
}

TEST_F(RanksTest, NamesWhoCannotBe) {
    const std::string file = golden("ranks/ep2_alltoall");
    for (const std::string& command :
         {std::string("compare"), std::string("trace"), "verify " + file}) {
        const auto is_bad = [&](const std::string& flags, const std::string& line) {
            return IsBadInput(command + " " + flags, {"moe: " + line + "\n"});
        };
        EXPECT_TRUE(is_bad("--rank 0", "--rank = 0: needs --processes"));
        EXPECT_TRUE(
            is_bad("--world-size 2 --spawn 2", "--world-size = 2: needs --processes"));
        EXPECT_TRUE(is_bad("--processes --rank 1",
                           "--world-size = missing: --rank and --world-size go "
                           "together"));
        EXPECT_TRUE(is_bad("--processes --world-size 2",
                           "--rank = missing: --rank and --world-size go together"));
        EXPECT_TRUE(is_bad("--processes --rank 2 --world-size 2",
                           "--rank = 2: must be from 0 to 1 (--world-size is 2)"));
        EXPECT_TRUE(is_bad("--processes --rank -1 --world-size 2",
                           "--rank = -1: must be from 0 to 63"));
        EXPECT_TRUE(is_bad("--processes --rank 0 --world-size 65",
                           "--world-size = 65: must be from 1 to 64"));
        EXPECT_TRUE(is_bad("--processes --rank 4294967296 --world-size 2",
                           "--rank = 4294967296: must be from 0 to 63"));
        EXPECT_TRUE(is_bad("--processes --rank one --world-size 2",
                           "--rank = one: must be an integer"));
    }
    EXPECT_TRUE(IsBadInput("verify --ranks 2 " + file, {"--ranks"}));
}

// ------------------------------------------------------------------- what is found out
/// The reference, but every dispatcher is AlltoAll; or with an expert of its own mind.
class DisguisedTier : public StandIn {
  public:
    explicit DisguisedTier(bool scales) : StandIn("disguised"), scales_(scales) {}
    std::unique_ptr<TokenDispatcher> make_dispatcher(
        const MoEConfig& config, DType dtype, const GroupsPtr& groups) const override {
        MoEConfig other = config;
        if (!scales_) other.moe_token_dispatcher_type = "alltoall";
        return StandIn::make_dispatcher(other, dtype, groups);
    }
    std::unique_ptr<Experts> make_experts(const MoEConfig& config, DType dtype,
                                          const TensorMap& parameters) const override {
        TensorMap own = parameters;
        if (scales_) {
            own["experts.linear_fc2.weight"] =
                parameters.at("experts.linear_fc2.weight").clone();
            own["experts.linear_fc2.weight"].data<float>()[3] += 1.0f;
        }
        return StandIn::make_experts(config, dtype, own);
    }

  private:
    bool scales_;
};

/// The reference, whose losses know nothing of other ranks.
class LonelyTier : public StandIn {
  public:
    LonelyTier() : StandIn("lonely") {}
    std::unique_ptr<Router> make_router(const MoEConfig& config, DType dtype,
                                        const TensorMap& parameters,
                                        const GroupsPtr&) const override {
        return StandIn::make_router(config, dtype, parameters, nullptr);
    }
};

// A registered tier stays, so these live in processes of their own.
class DisguisedRanksTest : public RanksTest {
  protected:
    DisguisedRanksTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
    ~DisguisedRanksTest() override { GTEST_FLAG_SET(death_test_style, style_); }

    void run(bool scales, const std::string& line) const {
        run(std::make_unique<DisguisedTier>(scales), line);
    }
    void run(std::unique_ptr<Tier> tier, const std::string& line) const {
        available_suppliers();  // the reference goes first
        const std::string name = tier->name();
        register_tier(std::move(tier));
        dup2(STDERR_FILENO, STDOUT_FILENO);  // where the death test looks
        exit_with(split(line + " --tier " + name + " --dtype fp32"));
    }

    const std::string style_ = GTEST_FLAG_GET(death_test_style);
    const std::string compare_ = "compare --ranks 2 --scale 256 --seq-length 3 --text " +
                                 write("text.txt", "abcdefghijkl") + " --report none";
    const testing::ExitedWithCode differs_{kExitDiffers};
};

TEST_F(DisguisedRanksTest, CompareTellsADispatcherByItsBytes) {
    EXPECT_EXIT(run(false, compare_), differs_,
                "✗ flex disguised:fp32: rank 0 sent rank 1 .* the routing map asks for"
                ".*✗ flex disguised:fp32 deviates: first seen at ⑥ dispatch");
}

TEST_F(DisguisedRanksTest, CompareFindsTheValuesThatDiffer) {
    EXPECT_EXIT(run(true, compare_), differs_,
                "✗ allgather disguised:fp32 output: worst element .*\n"
                "✗ allgather disguised:fp32 deviates: first seen at ⑩ combine .*\n"
                ".*some differ");
}

TEST_F(DisguisedRanksTest, CompareFindsLossesOfARankAlone) {
    // Both populations are cut to a rank's own tokens: a replica's, and that of all
    std::string of_replica = compare_ + kLosses;
    of_replica.replace(of_replica.find("length 3"), 8, "length 2");
    of_replica += " --context-parallel-size 2 --expert-model-parallel-size 2";
    EXPECT_EXIT(run(std::make_unique<LonelyTier>(), of_replica), differs_,
                "✗ alltoall lonely:fp32 load_balancing_loss: worst element .*\n"
                "✗ alltoall lonely:fp32 seq_load_balancing_loss: .*\n"
                "✗ alltoall lonely:fp32 d_logits_losses: .*some differ");
    EXPECT_EXIT(run(std::make_unique<LonelyTier>(), compare_ + kLosses), differs_,
                "✗ alltoall lonely:fp32 global_load_balancing_loss: .*\n"
                "✗ alltoall lonely:fp32 d_logits_losses: .*"
                "lonely:fp32 deviates: first seen at ⑤ .*some differ");
}

TEST_F(DisguisedRanksTest, TraceFindsRowsThatAreElsewhere) {
    EXPECT_EXIT(run(false, "trace --ranks 2 --moe-token-dispatcher-type allgather"),
                differs_, "✗ rank 0: sent_hidden_states holds other rows than these");
}

}  // namespace
}  // namespace moe::test
