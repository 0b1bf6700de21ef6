// Golden files of several micro-batches, and of an evaluation.

#include <nlohmann/json.hpp>

#include "core/transfer.h"
#include "tests/cli/verify_support.h"

namespace moe::test {
namespace {

class VerifyStepTest : public VerifyTest {
  protected:
    static constexpr const char* kThree = "micro_batches_global_bias";

    static Output verify(const std::string& file) {
        return moe({"verify", "--tier", "reference_cpu", "--dtype", "fp64", "--", file});
    }
};

TEST_F(VerifyStepTest, NamesWrongMetadata) {
    for (const char* bad : {"x", "", "0", "-2", "1.5", "2 ", "99999999999999"})
        EXPECT_TRUE(RejectsMetadata(
            "micro_batches", bad,
            {std::string("micro_batches = ") + bad + ": ", "positive integer"}));
    for (const char* bad : {"", "False", "0", "no"})
        EXPECT_TRUE(RejectsMetadata(
            "training", bad, {std::string("training = ") + bad + ": ", "true or false"}));
    EXPECT_TRUE(RejectsMetadata("micro_batches", "2",
                                {"micro_batch.0.input.hidden_states = absent: "}));
}

TEST_F(VerifyStepTest, NamesTheMicroBatchThatLacksSomething) {
    const auto without = [&](const std::string& name) {
        return changed(
            "without", [&](TensorMap& t, auto&) { EXPECT_EQ(t.erase(name), 1u); },
            kThree);
    };
    EXPECT_TRUE(IsRejected(without("micro_batch.1.input.hidden_states"),
                           {"micro_batch.1.input.hidden_states = absent: "}));
    EXPECT_TRUE(IsRejected(without("micro_batch.0.input.grad_output"),
                           {"micro_batch.0.input.grad_output = absent: ",
                            "micro_batch.0.expect.grad.hidden_states"}));
    const auto forward_of_first = changed(
        "first",
        [](TensorMap& t, auto&) {
            t.erase("micro_batch.0.input.grad_output");
            t.erase("micro_batch.0.expect.grad.hidden_states");
        },
        kThree);
    EXPECT_TRUE(IsRejected(forward_of_first, {"micro_batch.1.input.grad_output = present",
                                              "all micro-batches"}));
    const auto no_backward = changed(
        "none",
        [](TensorMap& t, auto&) {
            std::erase_if(t, [](const auto& item) {
                return item.first.ends_with("input.grad_output") ||
                       item.first.ends_with("grad.hidden_states");
            });
        },
        kThree);
    EXPECT_TRUE(IsRejected(no_backward, {"micro_batch.0.input.grad_output = absent: ",
                                         "required by expect.grad.experts"}));
}

TEST_F(VerifyStepTest, NoticesAChangeInEveryPart) {
    const SafetensorsFile file = SafetensorsFile::open(golden(kThree));
    int names = 0;
    for (const std::string& name : file.names()) {
        if (name.find("expect.") == std::string::npos) continue;
        ++names;
        const auto differs = changed(
            "differs",
            [&](TensorMap& t, auto&) {
                Tensor& tensor = t.at(name);
                if (tensor.dtype() == DType::f64) tensor.data<double>()[0] += 1.0;
                if (tensor.dtype() == DType::i64) tensor.data<std::int64_t>()[0] += 1;
                if (tensor.dtype() == DType::u8) tensor.data<std::uint8_t>()[0] ^= 1;
            },
            kThree);
        const Output output = verify(differs);
        EXPECT_EQ(output.code, kExitDiffers) << name;
        EXPECT_NE(output.out.find("✗ " + name), std::string::npos) << output.out;
    }
    EXPECT_EQ(names, 34);
}

/// Counts of the global loss begin with the first micro-batch.
TEST_F(VerifyStepTest, NoticesMicroBatchesThatChangePlaces) {
    const auto swapped = changed(
        "swapped",
        [](TensorMap& t, auto&) {
            const TensorMap old = t;
            for (const auto& [name, tensor] : old) {
                const std::string rest =
                    name.substr(std::min<std::size_t>(name.size(), 14));
                if (name.starts_with("micro_batch.0."))
                    t["micro_batch.2." + rest] = tensor;
                if (name.starts_with("micro_batch.2."))
                    t["micro_batch.0." + rest] = tensor;
            }
        },
        kThree);
    const Output output = verify(swapped);
    EXPECT_EQ(output.code, kExitDiffers);
    for (const char* line : {"✗ micro_batch.0.expect.loss.global_load_balancing_loss",
                             "✗ expect.grad.router.weight", "✓ expect.loss.z_loss",
                             "✓ micro_batch.2.expect.loss.seq_load_balancing_loss",
                             "✓ expect.expert_bias_updated"})
        EXPECT_NE(output.out.find(line), std::string::npos) << line << "\n" << output.out;
}

TEST_F(VerifyStepTest, SaysMicroBatchesAndEvaluation) {
    Output output = verify(golden(kThree));
    EXPECT_TRUE(output.out.starts_with("✓ micro_batches_global_bias, 3 micro-batches  "))
        << output.out;
    output = verify(golden("evaluation_sinkhorn"));
    EXPECT_TRUE(output.out.starts_with("✓ evaluation_sinkhorn, evaluation  "));
    output = moe({"verify", "--json", "--dtype", "fp64", "--",
                  golden("evaluation_bias_losses"), golden("one_token")});
    std::istringstream lines(output.out);
    std::string line;
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(nlohmann::json::parse(line).at("training"), false);
    EXPECT_EQ(nlohmann::json::parse(line).at("micro_batches"), 2);
    ASSERT_TRUE(std::getline(lines, line));
    EXPECT_EQ(nlohmann::json::parse(line).at("training"), true);
    EXPECT_EQ(nlohmann::json::parse(line).at("micro_batches"), 1);
}

TEST_F(VerifyStepTest, TellsAnEvaluationFromTraining) {
    const auto with_training = [&](const char* file, const char* training) {
        return changed(
            std::string(file) + training,
            [&](auto&, Metadata& m) { m["training"] = training; }, file);
    };
    EXPECT_EQ(verify(with_training("evaluation_sinkhorn", "false")).code, kExitOk);
    Output output = verify(with_training("evaluation_sinkhorn", "true"));
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_NE(output.out.find("✗ expect.routing_map"), std::string::npos) << output.out;
    output = verify(with_training("evaluation_quantile_balancing", "true"));
    EXPECT_EQ(output.code, kExitBadInput) << "no expert has a whole share";
    output = verify(with_training("evaluation_bias_losses", "true"));
    EXPECT_EQ(output.code, kExitDiffers) << "losses have a gradient";
    EXPECT_NE(output.out.find("begins at ⑲"), std::string::npos) << output.out;
}

TEST_F(VerifyStepTest, SaysWhatAnEvaluationDoesNotHave) {
    const auto file = changed(
        "losses",
        [](TensorMap& t, auto&) {
            t["micro_batch.1.expect.loss.z_loss"] = Tensor::zeros({}, DType::f64);
            t["expect.expert_bias_updated"] = Tensor::zeros({7}, DType::f64);
            t["micro_batch.2.expect.output"] = Tensor::zeros({1}, DType::f64);
        },
        "evaluation_bias_losses");
    const Output output = verify(file);
    EXPECT_EQ(output.code, kExitOk);
    EXPECT_EQ(count_lines(output.err), 3);
    for (const char* line :
         {": micro_batch.1.expect.loss.z_loss is not used: training is false",
          ": expect.expert_bias_updated is not used: training is false",
          ": micro_batch.2.expect.output is not a tensor name known here"})
        EXPECT_NE(output.err.find(line), std::string::npos) << line << output.err;
}

}  // namespace
}  // namespace moe::test
