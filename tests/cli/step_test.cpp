// --micro-batches and --eval of `moe compare` and `moe trace`, on one rank and on
// several.

#include <cmath>

#include "cli/compare/comparison.h"
#include "cli/ranks/run.h"
#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "tests/cli/stand_in.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

const std::string kPieces[] = {"abcdefghijklmnopqr", "aababcabcdabcdeabc",
                               "zzzzzzzzyyyyyyyyxx"};

class StepTest : public CliTest {
  protected:
    std::string three() const {
        return write("three.txt", kPieces[0] + kPieces[1] + kPieces[2]);
    }
    static std::string compare(const std::string& text,
                               const std::string& report = "none") {
        return "compare --scale 256 --seq-length 9 --micro-batch-size 2 --repeats 1 "
               "--golden none --text " +
               text + " --report " + report + " ";
    }
    static std::string compare_reference(const std::string& text) {
        return compare(text) + "--tier reference_cpu --dtype fp32 ";
    }
    static std::string compare_ranks(const std::string& text, const char* ranks,
                                     const std::string& report = "none") {
        return "compare --scale 256 --seq-length 6 --micro-batch-size 3 --tier "
               "reference_cpu --text " +
               text + " --report " + report + " --ranks " + ranks + " ";
    }
    /// The reference's value of a loss.
    static double loss(const Output& output, const std::string& name) {
        const std::string text = squeezed(output.out);
        const std::size_t at = text.find("\n " + name + " ");
        EXPECT_NE(at, std::string::npos) << output.out << output.err;
        return at == std::string::npos ? NAN
                                       : std::stod(text.substr(at + 3 + name.size()));
    }
};

TEST_F(StepTest, CompareTakesSuccessivePiecesAndPrintsMeans) {
    const std::string losses =
        "--moe-router-load-balancing-type aux_loss,seq_aux_loss --moe-aux-loss-coeff "
        "0.1,0.2 --moe-z-loss-coeff 0.1";
    const Output all = moe(compare_reference(three()) + "--micro-batches 3 " + losses);
    EXPECT_EQ(all.code, kExitOk) << all.out << all.err;
    EXPECT_TRUE(has(all, "\nStep    3 micro-batches, each that many tokens"));
    EXPECT_TRUE(has(all, "agree, step by step, in every micro-batch and in the sums"));
    std::vector<Output> alone;
    for (const std::string& piece : kPieces)
        alone.push_back(moe(compare_reference(write("piece.txt", piece)) + losses));
    for (const char* name :
         {"load_balancing_loss", "seq_load_balancing_loss", "z_loss"}) {
        double sum = 0.0;
        for (const Output& output : alone) sum += loss(output, name);
        EXPECT_NEAR(loss(all, name), sum / 3.0, 2e-9) << name;
        EXPECT_NE(loss(alone[0], name), loss(alone[1], name)) << name;
    }
    EXPECT_FALSE(has(alone[0], "micro-batch"));
}

TEST_F(StepTest, CompareAgreesOnWhatAStepMoves) {
    NEEDS_DEVICE();
    const std::string quantiles =
        "--moe-aux-loss-coeff 0 --moe-router-load-balancing-type quantile_balancing "
        "--no-moe-router-fusion ";
    for (const std::string& layer :
         {std::string("--moe-router-score-function sigmoid --moe-router-enable-expert-"
                      "bias --moe-router-load-balancing-type global_aux_loss "
                      "--moe-aux-loss-coeff 0.5 --moe-router-bias-update-rate 0.1"),
          quantiles + "--moe-z-loss-coeff 0.1 --num-experts 6",
          quantiles + "--num-experts 5 --eval",
          std::string("--moe-aux-loss-coeff 0 --moe-router-load-balancing-type sinkhorn "
                      "--moe-input-jitter-eps 0.1 --eval"),
          std::string("--calculate-per-token-loss --moe-z-loss-coeff 0.1 "
                      "--moe-router-padding-for-quantization")}) {
        const Output output = moe(compare(three()) + "--micro-batches 3 " + layer);
        EXPECT_EQ(output.code, kExitOk) << layer << "\n" << output.out << output.err;
        EXPECT_TRUE(has(output, "✓ all tiers agree")) << layer;
    }
}

TEST_F(StepTest, CompareHasNoLossesInAnEvaluation) {
    const std::string line = compare_reference(three()) + "--moe-z-loss-coeff 0.1";
    const Output eval = moe(line + " --eval");
    EXPECT_EQ(eval.code, kExitOk) << eval.out << eval.err;
    EXPECT_TRUE(has(eval, "\nMode    evaluation: no losses, nothing is counted"));
    EXPECT_FALSE(has(eval, "Losses, before"));
    const std::string text = squeezed(eval.out);
    EXPECT_NE(text.find("\n⑤ auxiliary losses off\n"), std::string::npos) << eval.out;
    EXPECT_NE(text.find("\n⑯ losses backward off\n"), std::string::npos);
    const Output training = moe(line);
    EXPECT_TRUE(has(training, "Losses, before"));
    EXPECT_FALSE(has(training, "Mode "));
}

TEST_F(StepTest, ReportsSayWhatTheyShow) {
    const std::string step =
        "--dtype fp32 --eval --micro-batches 2 --moe-aux-loss-coeff 0";
    EXPECT_EQ(moe(compare(three(), path("one")) + "--tier reference_cpu " + step).code,
              kExitOk);
    EXPECT_EQ(moe(compare_ranks(three(), "3", path("ranks")) +
                  "--expert-model-parallel-size 1 " + step)
                  .code,
              kExitOk);
    const std::string one = read(path("one/index.html"));
    EXPECT_NE(one.find("<p>This is an evaluation: no losses"), std::string::npos);
    EXPECT_NE(one.find("micro-batches of one optimizer step; you see the first"),
              std::string::npos);
    const std::string ranks = read(path("ranks/index.html"));
    EXPECT_NE(ranks.find("<li>evaluation: no losses"), std::string::npos);
    EXPECT_NE(ranks.find("<li>2 micro-batches, each that many"), std::string::npos);
}

TEST_F(StepTest, RanksAgreeWithOneOnEveryMicroBatchAndOnTheStep) {
    const std::string losses =
        "--moe-router-load-balancing-type global_aux_loss,aux_loss --moe-aux-loss-coeff "
        "0.5,0.25 --moe-z-loss-coeff 0.1 ";
    const std::string bias =
        "--moe-router-score-function sigmoid --moe-router-enable-expert-bias "
        "--moe-router-bias-update-rate 0.1 ";
    const std::string quantiles =
        "--moe-aux-loss-coeff 0 --moe-router-load-balancing-type quantile_balancing "
        "--no-moe-router-fusion ";
    const std::string text = write("long.txt", kPieces[0] + kPieces[1] + kPieces[2] +
                                                   kPieces[2] + kPieces[0] + kPieces[1]);
    struct Case {
        const char* ranks;
        std::string flags, value;
    };
    for (const Case& c :
         {Case{"3", "--micro-batches 3 --expert-model-parallel-size 1 " + losses + bias,
               "expert_bias_updated"},
          Case{"2",
               "--micro-batches 2 --tensor-model-parallel-size 2 "
               "--moe-expert-capacity-factor 1.0 --moe-token-dispatcher-type alltoall "
               "--moe-aux-loss-coeff 0 " +
                   bias,
               "expert_bias_updated"},
          Case{"3",
               "--micro-batches 3 --expert-model-parallel-size 1 --moe-token-"
               "dispatcher-type allgather --num-experts 6 " +
                   quantiles,
               "qb_beta_updated"}}) {
        const Output output =
            moe(compare_ranks(text, c.ranks) + "--dtype fp64,fp32 " + c.flags);
        EXPECT_EQ(output.code, kExitOk) << c.flags << "\n" << output.out << output.err;
        for (const std::string& words :
             {std::string("micro-batch 0: output"),
              std::string("micro-batch 1: d_router.weight"),
              std::string("main_grad of experts.linear_fc1.weight"), c.value,
              std::string("✓ all dispatchers and tiers agree\n")})
            EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
    }
    const Output eval = moe(compare_ranks(text, "3") +
                            "--expert-model-parallel-size 1 "
                            "--eval --dtype fp32 " +
                            losses + bias);
    EXPECT_EQ(eval.code, kExitOk) << eval.out << eval.err;
    EXPECT_TRUE(has(eval, "\nMode    evaluation"));
    EXPECT_FALSE(has(eval, "balancing_loss"));
    EXPECT_FALSE(has(eval, "_updated"));
    // Training would want a whole share of tokens for each expert
    EXPECT_EQ(moe(compare_ranks(text, "3") +
                  "--expert-model-parallel-size 1 --dtype fp32 --num-experts 41 --eval " +
                  quantiles)
                  .code,
              kExitOk);
}

TEST_F(StepTest, TraceRunsMicroBatchesOneAfterAnother) {
    const std::string trace =
        "trace --dtype fp64 --moe-router-score-function sigmoid "
        "--moe-router-enable-expert-bias ";
    const Output one = moe(trace), same = moe(trace + "--micro-batches 1");
    EXPECT_EQ(one.out, same.out);
    const Output two = moe(trace + "--micro-batches 2");
    EXPECT_EQ(two.code, kExitOk) << two.err;
    for (const char* words :
         {"\n2 micro-batches of one optimizer step, each that many tokens\n",
          "\nMicro-batch 0\n", "\nMicro-batch 1\n", "\nAll 2 micro-batches together\n",
          "\nMeans of the losses", "\nSums of the gradients (main_grad)\n",
          "\nAfter the step\n  expert_bias_updated (4) fp32\n"})
        EXPECT_TRUE(has(two, words)) << words;
    // Forward the first is what it is alone; its losses pull half as hard
    const auto forward = [](const Output& output) {
        const std::size_t at = output.out.find("\nInput\n");
        return output.out.substr(at, output.out.find("\nGradient of", at) - at);
    };
    EXPECT_EQ(forward(two), forward(one));
    EXPECT_EQ(count_lines(two.err), count_lines(one.err));
}

TEST_F(StepTest, TraceScalesMicroBatchesAndAddsThemUp) {
    const std::string trace = "trace --dtype fp64 --moe-aux-loss-coeff ";
    const Output two = moe(trace + "0.2 --moe-z-loss-coeff 0.1 --micro-batches 2"),
                 half = moe(trace + "0.1 --moe-z-loss-coeff 0.05");
    const std::string gradients = half.out.substr(half.out.find("\nGradients\n"));
    EXPECT_TRUE(has(two, gradients + "\nMicro-batch 1\n")) << gradients;
    // Of both micro-batches, and of all together; four decimals are printed
    const auto first_numbers = [&](const std::string& name, char before) {
        std::vector<double> numbers;
        for (std::size_t at = 0; (at = two.out.find("\n  " + name, at)) != two.out.npos;)
            numbers.push_back(
                std::stod(two.out.substr(at = two.out.find(before, at + 3) + 1)));
        return numbers;
    };
    const auto losses = first_numbers("z_loss ", ' '),
               weights = first_numbers("grad.router.weight ", '\n');
    ASSERT_EQ(losses.size(), 3u);
    ASSERT_EQ(weights.size(), 3u);
    EXPECT_NEAR(losses[2], (losses[0] + losses[1]) / 2.0, 1.1e-4);
    EXPECT_NEAR(weights[2], weights[0] + weights[1], 1.6e-4);
    EXPECT_GT(std::abs(weights[0]), 1e-3);
    EXPECT_NE(losses[0], losses[1]);
}

TEST_F(StepTest, TraceOfAnEvaluationIsThatWithoutLosses) {
    const auto gradients = [](const Output& output) {
        EXPECT_EQ(output.code, kExitOk) << output.err;
        return output.out.substr(output.out.find("\nGradients\n"));
    };
    const Output eval = moe("trace --eval --dtype fp64");
    EXPECT_TRUE(has(eval, "An evaluation: no losses"));
    EXPECT_EQ(gradients(eval), gradients(moe("trace --dtype fp64 --moe-aux-loss-coeff 0 "
                                             "--moe-z-loss-coeff none")));
    EXPECT_NE(gradients(eval), gradients(moe("trace --dtype fp64")));
    const std::string quantiles =
        "trace --moe-router-load-balancing-type quantile_balancing --seq-length 3 "
        "--micro-batch-size 1 ";
    EXPECT_EQ(moe(quantiles).code, kExitBadInput) << "no whole share";
    const Output any = moe(quantiles + "--eval");
    EXPECT_EQ(any.code, kExitOk) << any.err;
    EXPECT_FALSE(has(any, "qb_beta"));
    const Output ranks = moe("trace --eval --ranks 2");
    EXPECT_EQ(ranks.code, kExitOk);
    EXPECT_NE(squeezed(ranks.out).find("; an evaluation: no losses"), std::string::npos)
        << ranks.out;
}

TEST_F(StepTest, SaysWhatCannotBe) {
    const std::string text = write("short.txt", "abcdefghijklmnopqr");
    for (const char* bad : {"0", "-1", "1001"})
        EXPECT_TRUE(IsBadInput(compare_reference(text) + "--micro-batches " + bad,
                               {std::string("--micro-batches = ") + bad, "1 to 1000"}));
    EXPECT_TRUE(
        IsBadInput(compare_reference(text) + "--micro-batches x", {"--micro-batches"}));
    EXPECT_TRUE(IsBadInput(compare_reference(text) + "--micro-batches 2",
                           {"holds 18 bytes", "2 micro-batches x S x B = 36"}));
    EXPECT_TRUE(IsBadInput("trace --ranks 2 --micro-batches 2",
                           {"--micro-batches = 2: must be left out with --ranks"}));
    for (const char* command : {"bench", "wire", "verify file"})
        for (const char* flag : {" --eval", " --micro-batches 2"})
            EXPECT_TRUE(IsBadInput(std::string(command) + flag, {split(flag)[0]}));
}

// Ranks and whole have these from one place, so that neither shows the other's fault.
TEST(StepInputs, AreOfTheirMicroBatch) {
    RankJob job;
    job.config = small_config();
    EXPECT_EQ(job.context().main_loss_backward_scale.value(), 1.0);
    job.more_micro_batches.resize(3);
    EXPECT_EQ(job.context().main_loss_backward_scale.value(), 0.25);
    std::vector<std::vector<double>> gradients;
    for (const std::int64_t i : {0, 1, 0})
        gradients.push_back(to_doubles(random_gradient({7, 3}, 5, i)));
    EXPECT_EQ(gradients[0], gradients[2]);
    EXPECT_NE(gradients[0], gradients[1]);
}

// ------------------------------------------------------------ a tier that is wrong there

enum class Fault {
    forgets_counts,
    ignores_scale,
    moves_bias_back,
    moves_bias_back_on_rank_1,
    trains_always
};

class FaultyTier : public StandIn {
  public:
    explicit FaultyTier(Fault fault) : StandIn("faulty"), fault_(fault) {}
    std::unique_ptr<moe::Router> make_router(const MoEConfig& config, DType dtype,
                                             const TensorMap& parameters,
                                             const GroupsPtr& groups) const override {
        const bool is_rank_1 = groups != nullptr && groups->tp_dp_cp->rank() == 1;
        return std::make_unique<Router>(
            StandIn::make_router(config, dtype, parameters, groups),
            fault_ == Fault::moves_bias_back_on_rank_1 && is_rank_1
                ? Fault::moves_bias_back
                : fault_);
    }

  private:
    struct Router : moe::Router {
        Router(std::unique_ptr<moe::Router> good, Fault fault)
            : moe::Router(good->placement()), good(std::move(good)), fault(fault) {}
        Output forward(const Tensor& hidden, const Tensor& mask,
                       const RunContext& context) override {
            if (fault == Fault::forgets_counts) good->reset_global_aux_loss_tracker();
            RunContext changed = context;
            if (fault == Fault::trains_always) changed.training = true;
            return good->forward(hidden, mask, changed);
        }
        void backward(Tensor& dhidden, TensorMap& gradients, const Tensor& dprobs,
                      const Saved& saved, const RunContext& context) override {
            RunContext changed = context;
            if (fault == Fault::ignores_scale) changed.main_loss_backward_scale = 1.0;
            good->backward(dhidden, gradients, dprobs, saved, changed);
        }
        Tensor update_expert_bias() override {
            Tensor bias = good->update_expert_bias();
            if (fault == Fault::moves_bias_back) bias.data<float>()[1] += 0.125f;
            return bias;
        }
        Tensor update_qb_beta() override { return good->update_qb_beta(); }
        void reset_global_aux_loss_tracker() override {
            good->reset_global_aux_loss_tracker();
        }
        std::unique_ptr<moe::Router> good;
        Fault fault;
    };
    Fault fault_;
};

// A registered tier stays, so these live in processes of their own.
class FaultyStepTest : public StepTest {
  protected:
    FaultyStepTest() { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
    ~FaultyStepTest() override { GTEST_FLAG_SET(death_test_style, style_); }

    void run(Fault fault, const std::string& flags) const {
        available_suppliers();  // the reference goes first
        register_tier(std::make_unique<FaultyTier>(fault));
        dup2(STDERR_FILENO, STDOUT_FILENO);  // where the death test looks
        exit_with(split(
            "compare --scale 256 --seq-length 9 --micro-batch-size 2 --report none "
            "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.5 "
            "--moe-router-score-function sigmoid --moe-router-enable-expert-bias "
            "--tier faulty --text " +
            text_ + flags));
    }

    const std::string style_ = GTEST_FLAG_GET(death_test_style);
    const std::string text_ = three();
    const testing::ExitedWithCode differs_{kExitDiffers};
};

TEST_F(FaultyStepTest, IsFoundInTheMicroBatchAndInTheSum) {
    const std::string step = " --golden none --repeats 1 --micro-batches 3";
    EXPECT_EXIT(run(Fault::forgets_counts, step), differs_,
                "✗ faulty:fp32 ⑯ .*: micro-batch 1: d_logits_losses: worst");
    EXPECT_EXIT(run(Fault::ignores_scale, step), differs_,
                "✗ faulty:fp32 ⑯ .*: micro-batch 0: d_logits_losses: worst");
    EXPECT_EXIT(run(Fault::moves_bias_back, step), differs_,
                "✗ faulty:fp32 ③ routing: expert_bias_updated: worst element .1.");
    EXPECT_EXIT(run(Fault::trains_always, " --golden none --repeats 1 --eval"), differs_,
                "deviates: begins at ⑯");
}

TEST_F(FaultyStepTest, IsFoundOverRanks) {
    const std::string step =
        " --ranks 2 --micro-batches 3 --moe-token-dispatcher-type "
        "alltoall";
    EXPECT_EXIT(
        run(Fault::forgets_counts, step), differs_,
        "✗ alltoall faulty:fp32 micro-batch 1: global_load_balancing_loss: worst");
    EXPECT_EXIT(run(Fault::ignores_scale, step), differs_,
                "✗ alltoall faulty:fp32 main_grad of router.weight: worst");
    EXPECT_EXIT(run(Fault::moves_bias_back, step), differs_,
                "✗ alltoall faulty:fp32 expert_bias_updated: worst element .0, 1.");
    EXPECT_EXIT(run(Fault::moves_bias_back_on_rank_1, step), differs_,
                "✗ alltoall faulty:fp32 expert_bias_updated: worst element .1, 1.");
}

}  // namespace
}  // namespace moe::test
