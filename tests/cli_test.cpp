// The program as a user meets it: exit codes, one line for bad input, nothing
// half-written.

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/commands.h"
#include "core/safetensors.h"
#include "tests/support.h"

namespace moe::test {
namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

struct Output {
    int code;
    std::string out, err;
};

Output moe(const Words& arguments) {
    available_suppliers();  // registers the tiers
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = run_program(arguments);
    return {code, testing::internal::GetCapturedStdout(),
            testing::internal::GetCapturedStderr()};
}

/// Exit code 2, nothing on stdout, and one line with these words on stderr.
testing::AssertionResult IsBadInput(const Words& arguments, const Words& words) {
    const Output output = moe(arguments);
    if (output.code != kExitBadInput)
        return testing::AssertionFailure() << "exit code " << output.code;
    if (!output.out.empty())
        return testing::AssertionFailure() << "on stdout: " << output.out;
    if (!output.err.starts_with("moe: ") ||
        output.err.find('\n') != output.err.size() - 1)
        return testing::AssertionFailure() << "not one line: " << output.err;
    for (const std::string& word : words)
        if (output.err.find(word) == std::string::npos)
            return testing::AssertionFailure() << output.err << " lacks " << word;
    return testing::AssertionSuccess();
}

/// A folder of its own for each test.
class CliTest : public testing::Test {
  protected:
    CliTest() {
        const auto* info = testing::UnitTest::GetInstance()->current_test_info();
        folder_ = fs::path(testing::TempDir()) /
                  (std::string("moe_cli_") + info->name() + std::to_string(getpid()));
        fs::create_directories(folder_);
    }
    ~CliTest() override { fs::remove_all(folder_); }

    std::string path(const std::string& name) const { return folder_ / name; }
    static std::string golden(const std::string& name) {
        return std::string(MOE_GOLDEN_DIR) + "/" + name + ".safetensors";
    }

    /// A copy of a golden case with changes, saved under `name`.
    std::string changed(
        const std::string& name,
        const std::function<void(TensorMap&, std::map<std::string, std::string>&)>&
            change) {
        const SafetensorsFile file = SafetensorsFile::open(golden("one_token"));
        TensorMap tensors;
        for (const std::string& tensor : file.names())
            tensors[tensor] = file.tensor(tensor);
        auto metadata = file.metadata();
        change(tensors, metadata);
        save_safetensors(path(name), tensors, metadata);
        return path(name);
    }

    std::string write(const std::string& name, const std::string& text) const {
        std::ofstream(path(name)) << text;
        return path(name);
    }

    fs::path folder_;
};

TEST_F(CliTest, NamesWrongFlagsAndValues) {
    EXPECT_TRUE(IsBadInput({}, {"--help"}));
    EXPECT_TRUE(IsBadInput({"dance"}, {"dance"}));
    EXPECT_TRUE(IsBadInput({"trace", "--moe-magic", "3"}, {"--moe-magic"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--num-experts", "x"}, {"--num-experts = x", "integer"}));
    EXPECT_TRUE(IsBadInput({"trace", "--num-experts", "2.5"}, {"--num-experts = 2.5"}));
    EXPECT_TRUE(IsBadInput({"trace", "--num-experts", "0"}, {"num_moe_experts = 0"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--moe-aux-loss-coeff", "much"}, {"moe_aux_loss_coeff"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--moe-router-topk", "9"}, {"moe_router_topk = 9", "(4)"}));
    EXPECT_TRUE(IsBadInput({"trace", "--swiglu", "--squared-relu"}, {"choose one"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--preset", "gpt5"}, {"preset = gpt5", "mixtral_8x7b"}));
    EXPECT_TRUE(IsBadInput({"trace", "--scale", "4"}, {"--scale = 4", "--preset"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--preset", "olmoe", "--scale", "0"}, {"scale = 0"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--tier", "warp_gpu"}, {"warp_gpu", "reference_cpu"}));
    EXPECT_TRUE(IsBadInput({"trace", "--dtype", "fp8"}, {"--dtype = fp8", "fp64"}));
    EXPECT_TRUE(IsBadInput({"trace", "--dtype", "bf16"}, {"--dtype = bf16"}));
    EXPECT_TRUE(IsBadInput({"trace", "--spec", "router"}, {"spec = router"}));
    EXPECT_TRUE(IsBadInput({"trace", "--seq-length", "-1"}, {"--seq-length = -1"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--micro-batch-size", "0"}, {"--micro-batch-size = 0"}));
    EXPECT_TRUE(IsBadInput({"trace", "--threads", "0"}, {"--threads = 0"}));
    EXPECT_TRUE(IsBadInput({"compare", "--repeats", "0"}, {"--repeats = 0"}));
    EXPECT_TRUE(IsBadInput({"verify"}, {"files"}));
    EXPECT_TRUE(IsBadInput({"completion", "fish"}, {"shell = fish", "bash"}));
}

TEST_F(CliTest, NamesWrongConfigFiles) {
    const auto rejects = [&](const std::string& file, const Words& words) {
        return IsBadInput({"trace", "--config", file}, words);
    };
    EXPECT_TRUE(rejects(path("absent.json"), {"--config", "absent.json", "readable"}));
    EXPECT_TRUE(rejects(folder_, {"--config"}));
    EXPECT_TRUE(rejects(write("a.json", "{"), {"a.json", "JSON"}));
    EXPECT_TRUE(rejects(write("b.json", "[1]"), {"b.json", "object"}));
    EXPECT_TRUE(rejects(write("c.json", R"({"hidden": 3})"), {"hidden = 3", "no such"}));
    EXPECT_TRUE(rejects(write("d.json", R"({"hidden_size": "x\ny"})"), {"hidden_size"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--preset", "olmoe", "--config", "x"}, {"--preset"}));
    const std::string good = write("e.json", R"({"hidden_size": 4, "num_moe_experts": 3,
        "moe_token_dispatcher_type": "alltoall"})");
    EXPECT_EQ(moe({"trace", "--config", good, "--moe-router-topk", "3"}).code, kExitOk);
}

TEST_F(CliTest, NamesWrongGoldenFiles) {
    const auto rejects = [&](const std::string& file, const Words& words) {
        const Output output = moe({"verify", "--json", file});
        EXPECT_EQ(output.out, "");
        EXPECT_EQ(std::count(output.err.begin(), output.err.end(), '\n'), 1)
            << output.err;
        for (const std::string& word : words)
            EXPECT_NE(output.err.find(word), std::string::npos) << output.err << word;
        return output.code;
    };
    EXPECT_EQ(rejects(path("absent"), {"absent"}), kExitBadInput);
    EXPECT_EQ(rejects(folder_, {"regular file"}), kExitBadInput);
    EXPECT_EQ(rejects(write("empty", ""), {"empty"}), kExitBadInput);
    std::ifstream whole(golden("one_token"), std::ios::binary);
    std::string bytes(std::istreambuf_iterator<char>(whole), {});
    EXPECT_EQ(rejects(write("cut", bytes.substr(0, bytes.size() / 2)), {"cut"}),
              kExitBadInput);

    using Metadata = std::map<std::string, std::string>;
    const auto with = [&](auto change) { return changed("changed", change); };
    EXPECT_EQ(
        rejects(with([](TensorMap&, Metadata& m) { m.erase("format"); }), {"format"}), 2);
    EXPECT_EQ(rejects(with([](TensorMap&, Metadata& m) { m["world_size"] = "2"; }),
                      {"world_size = 2"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap&, Metadata& m) { m["moe_config"] = "{"; }),
                      {"moe_config", "JSON"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap&, Metadata& m) {
                          m["moe_config"].replace(1, 0, "\"moe_magic\": 1, ");
                      }),
                      {"moe_magic = 1"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap&, Metadata& m) {
                          m["moe_config"].replace(1, 0, "\"moe_router_topk\": 1, ");
                      }),
                      {"moe_router_topk", "only once"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap&, Metadata& m) { m["source_errors"] = "3"; }),
                      {"source_errors"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap& t, Metadata&) { t.erase("router.weight"); }),
                      {"router.weight = absent"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap& t, Metadata&) {
                          t["router.weight"] = t["router.weight"].reshaped({16, 8});
                      }),
                      {"router.weight", "(16, 8)", "(8, 16)"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap& t, Metadata&) {
                          t["router.weight"] = Tensor::zeros({8, 16}, DType::i64);
                      }),
                      {"router.weight = int64"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap& t, Metadata&) {
                          t["expect.routing_map"] = Tensor::zeros({1, 8}, DType::f32);
                      }),
                      {"expect.routing_map = fp32", "integer"}),
              2);
    EXPECT_EQ(rejects(with([](TensorMap& t, Metadata&) { t.erase("input.grad_output"); }),
                      {"input.grad_output = absent"}),
              2);
    for (const char* name : {"input.hidden_states", "experts.linear_fc2.weight"})
        EXPECT_EQ(rejects(with([&](TensorMap& t, Metadata&) {
                              t[name].data<float>()[3] = NAN;
                          }),
                          {name, "[3] = nan", "finite"}),
                  2);
}

TEST_F(CliTest, TellsWhatDiffersAndGoesOn) {
    const std::string differs = changed("differs", [](TensorMap& t, auto&) {
        t["expect.output"].data<double>()[5] += 0.5;
        t["something.else"] = Tensor::zeros({3}, DType::f32);
    });
    const Output output = moe({"verify", differs, golden("one_expert")});
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_NE(output.out.find("✗ expect.output"), std::string::npos);
    EXPECT_NE(output.out.find("worst element (0, 0, 5)"), std::string::npos);
    EXPECT_NE(output.out.find("1 of 2 files match"), std::string::npos);
    EXPECT_NE(output.err.find("something.else"), std::string::npos);
    const Output mixed = moe({"verify", differs, path("absent"), golden("one_expert")});
    EXPECT_EQ(mixed.code, kExitBadInput);
    EXPECT_NE(mixed.out.find("1 of 3 files match, 1 could not be run"),
              std::string::npos);
}

TEST_F(CliTest, ChecksTheForwardAloneWithoutAGradient) {
    const std::string forward = changed("forward", [](TensorMap& t, auto&) {
        t.erase("input.grad_output");
        std::erase_if(t, [](const auto& tensor) {
            return tensor.first.starts_with("expect.grad.");
        });
    });
    EXPECT_EQ(moe({"verify", forward}).code, kExitOk);
}

TEST_F(CliTest, PrintsOneJsonObjectPerFileAndPrecision) {
    const Output output =
        moe({"verify", "--json", golden("one_token"), golden("sinkhorn_k2"), "--tier",
             "reference_cpu", "--dtype", "fp64,fp32"});
    EXPECT_EQ(output.code, kExitOk);
    std::istringstream lines(output.out);
    int count = 0;
    for (std::string line; std::getline(lines, line); ++count) {
        const auto object = nlohmann::json::parse(line);
        EXPECT_EQ(object.at("tier"), "reference_cpu");
        EXPECT_EQ(object.at("ok"), true);
        EXPECT_EQ(object.at("case"), count < 2 ? "one_token" : "sinkhorn_k2");
        EXPECT_GT(object.at("tensors").size(), 8u);
        for (const auto& tensor : object.at("tensors"))
            EXPECT_LE(tensor.at("error").get<double>(), tensor.at("bound").get<double>());
    }
    EXPECT_EQ(count, 4);
}

TEST_F(CliTest, ComparesAndWritesAReport) {
    const std::string text = write("text.txt", "<i>a & b</i> " + std::string(300, 'e'));
    const Output output =
        moe({"compare", "--text", text, "--scale", "256", "--seq-length", "33",
             "--micro-batch-size", "3", "--repeats", "1", "--report", path("report"),
             "--spec", "experts=reference_cpu:fp64"});
    EXPECT_EQ(output.code, kExitOk) << output.err;
    for (const char* words :
         {"⑳", "99 tokens", "all tiers agree", "39 of 39", "expert 7"})
        EXPECT_NE(output.out.find(words), std::string::npos) << words;
    std::ifstream page(path("report/index.html"));
    const std::string html(std::istreambuf_iterator<char>(page), {});
    EXPECT_NE(html.find("</html>"), std::string::npos);
    EXPECT_EQ(html.find("<i>a"), std::string::npos) << "the text must be escaped";
    EXPECT_EQ(std::distance(fs::directory_iterator(path("report")), {}), 1);
}

TEST_F(CliTest, NamesWhatCompareCannotUse) {
    const auto rejects = [](Words flags, const Words& words) {
        flags.insert(flags.begin(), "compare");
        return IsBadInput(flags, words);
    };
    const std::string text = write("text.txt", "short");
    EXPECT_TRUE(rejects({"--text", path("absent")}, {"--text", "absent"}));
    EXPECT_TRUE(rejects({"--text", folder_}, {"--text"}));
    EXPECT_TRUE(rejects({"--text", write("empty.txt", "")}, {"--text", "0 bytes"}));
    EXPECT_TRUE(rejects({"--text", text, "--seq-length", "9"}, {"5 bytes", "36"}));
    EXPECT_TRUE(
        IsBadInput({"trace", "--num-experts", "100000", "--hidden-size", "100000"},
                   {"memory = about", "GB"}));
    EXPECT_TRUE(rejects({"--report", text}, {"--report", "text.txt"}));
    EXPECT_TRUE(rejects({"--report", text + "/below"}, {"--report"}));
}

TEST_F(CliTest, TracesTheSameLinesInEveryPrecision) {
    const Output fp64 = moe({"trace"}), fp32 = moe({"trace", "--dtype", "fp32"});
    EXPECT_EQ(fp64.code, kExitOk);
    const auto lines = [](const std::string& text) {
        return std::count(text.begin(), text.end(), '\n');
    };
    EXPECT_EQ(lines(fp64.out), lines(fp32.out));
    for (int n = 1; n <= kNumSteps; ++n)
        EXPECT_NE(fp64.out.find("\n" + circled(static_cast<Step>(n)) + " "),
                  std::string::npos)
            << n;
    EXPECT_EQ(fp64.out.find("-0.0000"), std::string::npos);
    EXPECT_EQ(fp64.out.find("nan"), std::string::npos);
}

TEST_F(CliTest, TellsWhatThereIs) {
    const Output fields = moe({"info", "--fields"});
    EXPECT_EQ(fields.code, kExitOk);
    for (const FieldInfo& field : config_fields()) {
        EXPECT_FALSE(field.help.empty());
        EXPECT_NE(
            fields.out.find(field.name == "num_moe_experts" ? "--num-experts" : "--moe"),
            std::string::npos);
    }
    EXPECT_NE(moe({"info"}).out.find("reference_cpu"), std::string::npos);
    const Output script = moe({"completion", "bash"});
    EXPECT_NE(script.out.find("--moe-router-topk"), std::string::npos);
    const std::string file = write("complete.sh", script.out);
    EXPECT_EQ(std::system(("bash -n " + file).c_str()), 0);
    for (const Words& help :
         {Words{"--help"}, {"compare", "--help"}, {"verify", "--help"}})
        EXPECT_EQ(moe(help).code, kExitOk);
}

}  // namespace
}  // namespace moe::test
