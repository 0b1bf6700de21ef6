// The program as a user meets it: commands and flags that are wrong, help, completion.
// Exit code 2 and one line for whatever cannot be used.

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "cli/memory.h"
#include "cli/options.h"
#include "cli/terminal.h"
#include "core/known_names.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

TEST_F(CliTest, NamesWrongCommands) {
    EXPECT_TRUE(IsBadInput("", {"--help"}));
    EXPECT_TRUE(IsBadInput(
        "dance",
        {"command = dance: ",
         "compare, verify, convert, trace, bench, profile, microscope, timeline, wire, "
         "info"}));
    EXPECT_TRUE(IsBadInput("Trace", {"command = Trace: "}));
    EXPECT_TRUE(IsBadInput("--magic", {"--help"}));
    EXPECT_TRUE(IsBadInput("trace --moe-magic 3", {"--moe-magic"}));
    EXPECT_TRUE(IsBadInput("trace verify", {"verify"}));
    EXPECT_TRUE(IsBadInput("info extra", {"extra"}));
    EXPECT_TRUE(IsBadInput("verify", {"files"}));
    EXPECT_TRUE(IsBadInput("completion fish", {"shell = fish: ", "bash, zsh"}));
}

#ifndef CUDA_ON_CPU_OBSERVE
TEST_F(CliTest, ProfileNamesTheBuildThatItNeeds) {
    EXPECT_TRUE(IsBadInput("profile", {"sees no loads and stores", "host-observe"}));
}
#endif

TEST_F(CliTest, NamesWrongValuesOfOtherFlags) {
    const auto rejects = [](const std::string& flags, const Words& words) {
        return IsBadInput("trace " + flags, words);
    };
    EXPECT_TRUE(
        rejects("--preset gpt5", {"--preset = gpt5: ", "mixtral_8x7b, mixtral_8x22b"}));
    EXPECT_TRUE(rejects("--scale 4", {"--scale = 4: ", "--preset"}));
    EXPECT_TRUE(rejects("--preset olmoe --scale 0", {"--scale = 0: ", "at least 1"}));
    EXPECT_TRUE(rejects("--preset olmoe --scale 1025", {"scale = 1025: ", "at most"}));
    EXPECT_TRUE(rejects("--preset olmoe --scale x", {"--scale"}));
    EXPECT_TRUE(rejects("--tier warp_gpu", {"--tier = warp_gpu: ", "reference_cpu"}));
    EXPECT_TRUE(rejects("--dtype fp8", {"--dtype = fp8: ", "fp64, fp32, bf16"}));
    EXPECT_TRUE(rejects("--dtype bf16", {"--dtype = bf16: "}));
    EXPECT_TRUE(rejects("--dtype fp64,fp32", {"--dtype = fp64,fp32: "}));
    EXPECT_TRUE(rejects("--spec router", {"spec = router: ", "component=tier"}));
    EXPECT_TRUE(rejects("--spec router=gpu", {"--spec router = gpu: ", "reference_cpu"}));
    EXPECT_TRUE(rejects("--spec experts=reference_cpu:bf16", {"reference_cpu:bf16: "}));
    EXPECT_TRUE(rejects("--seq-length -1", {"--seq-length = -1: ", "0 to 1000000"}));
    EXPECT_TRUE(rejects("--seq-length 1000001", {"--seq-length = 1000001: "}));
    EXPECT_TRUE(rejects("--seq-length 2.5", {"--seq-length"}));
    EXPECT_TRUE(
        rejects("--micro-batch-size 0", {"--micro-batch-size = 0: ", "1 to 100000"}));
    EXPECT_TRUE(rejects("--micro-batch-size 100001", {"--micro-batch-size = 100001: "}));
    EXPECT_TRUE(rejects("--threads 0", {"--threads = 0: ", "1 to 1024"}));
    EXPECT_TRUE(rejects("--threads 1025", {"--threads = 1025: "}));
    EXPECT_TRUE(rejects("--threads x", {"--threads"}));
    EXPECT_TRUE(rejects("--grouped-gemm-rung 0",
                        {"--grouped-gemm-rung = 0: ", "1 (1_mma_sync)"}));
    EXPECT_TRUE(rejects("--grouped-gemm-rung 5", {"--grouped-gemm-rung = 5: ",
                                                  "or 4 (4_scheduler_and_epilogue)"}));
}

// What does not fit into 64 bits must not become another seed.
TEST_F(CliTest, TakesSeedsOf64Bits) {
    EXPECT_EQ(moe("trace --seq-length 0 --seed 18446744073709551615").code, kExitOk);
    for (const char* seed : {"x", "1.5", "1e3", "-1", "18446744073709551616"})
        EXPECT_TRUE(IsBadInput(std::string("trace --seed ") + seed, {"--seed", seed}));
}

// An unset shell variable gives an empty word; it does not mean the default.
TEST_F(CliTest, TakesNoEmptyWords) {
    for (const char* flag : {"--config", "--preset", "--dtype", "--tier"})
        EXPECT_TRUE(IsBadInput(Words{"trace", flag, ""}, {flag + 2, " = : "})) << flag;
    const Words small = split("compare --scale 256 --repeats 1 --seq-length 1");
    for (const char* flag : {"--text", "--report"}) {
        Words words = small;
        words.insert(words.end(), {flag, ""});
        if (flag == std::string("--text"))
            words.insert(words.end(), {"--report", "none"});
        EXPECT_TRUE(IsBadInput(words, {flag + std::string(" = : ")})) << flag;
    }
}

// Names that somebody else chose may hold a line break.
TEST_F(CliTest, KeepsToOneLineWhateverANameHolds) {
    EXPECT_TRUE(IsBadInput(Words{"two\nlines"}, {"command = two"}));
    EXPECT_TRUE(IsBadInput(Words{"trace", "--config", path("a\nb")}, {"--config = "}));
    EXPECT_TRUE(IsBadInput(Words{"verify", "--json", path("a\nb")}, {"No such file"}));
    const std::string file = write("c.json", R"({"hidden\nsize": 3})");
    EXPECT_TRUE(IsBadInput("trace --config " + file, {"size = 3: no such config field"}));
}

TEST_F(CliTest, AsksForMemoryFirst) {
    EXPECT_TRUE(IsBadInput("trace --num-experts 100000 --hidden-size 100000",
                           {"memory = about", "GB"}));
    MoEConfig config = small_config(16, 8, 2, 12);
    config.finalize();
    const double small = estimate_memory(config, 100);
    EXPECT_GT(estimate_memory(config, 200), small);
    config.moe_ffn_hidden_size = 24;
    EXPECT_GT(estimate_memory(config, 100), small);
}

TEST_F(CliTest, EstimatesMemoryWithoutWrappingAround) {
    // 2^64 weights and more, each size within its limit. In a process of its own, because
    // sanitizers end it where an integer wraps around.
    MoEConfig config = small_config(std::int64_t{1} << 29, 8, 2, std::int64_t{1} << 31);
    config.finalize();
    EXPECT_EXIT(std::exit(estimate_memory(config, 100) > 0x1p64 ? 0 : 1),
                testing::ExitedWithCode(0), "");
}

TEST_F(CliTest, ListsItsFieldsTiersAndFlags) {
    const Output fields = moe("info --fields");
    EXPECT_EQ(fields.code, kExitOk);
    EXPECT_EQ(count_lines(fields.out), std::int64_t(config_fields().size()) + 1);
    const json defaults = json(config_to_json(MoEConfig{}));
    for (const FieldInfo& field : config_fields()) {
        const std::size_t line = fields.out.find("\n" + flag_name(field.name) + " ");
        ASSERT_NE(line, std::string::npos) << field.name;
        const std::string text =
            fields.out.substr(line + 1, fields.out.find('\n', line + 1) - line - 1);
        EXPECT_NE(text.find(" " + defaults[field.name].dump() + " "), std::string::npos);
        EXPECT_TRUE(text.ends_with(field.help)) << text;
    }
    EXPECT_NE(fields.out.find("in a file num_moe_experts; "), std::string::npos);
    const Output info = moe("info");
    EXPECT_EQ(info.code, kExitOk);
    for (const ComponentSpec& supplier : available_suppliers()) {
        EXPECT_NE(info.out.find("✓ " + supplier.tier), std::string::npos);
        EXPECT_NE(info.out.find(to_string(supplier.dtype)), std::string::npos);
    }
    for (const char* command :
         {"", "compare ", "verify ", "convert ", "trace ", "microscope ", "timeline ",
          "info ", "results ", "completion "}) {
        const Output help = moe(std::string(command) + "--help");
        EXPECT_EQ(help.code, kExitOk) << command;
        EXPECT_NE(help.out.find("--help"), std::string::npos) << command;
        EXPECT_EQ(help.err, "");
    }
    const Output trace = moe("trace --help"), compare = moe("compare --help");
    for (const FieldInfo& field : config_fields())
        for (const Output* help : {&trace, &compare})
            EXPECT_NE(help->out.find(flag_name(field.name)), std::string::npos)
                << field.name;
}

TEST_F(CliTest, HelpsWithALinePerCommand) {
    const Output help = moe("--help");
    EXPECT_EQ(help.code, kExitOk);
    EXPECT_EQ(moe("-h").out, help.out);
    std::size_t at = help.out.find("\nCommands\n");
    for (const char* line :
         {"\n  compare     Run real text through every tier", "\n  verify  ",
          "\n  trace  ", "\n  bench  ", "\n  profile  ", "\n  microscope  ",
          "\n  timeline  ", "\n  info  ", "\n  gpu-check  ", "\n  results  ",
          "\n  completion  ", "\nExamples\n",
          "\nEvery command has flags of its own: moe compare --help\n"}) {
        ASSERT_NE(at, std::string::npos);
        at = help.out.find(line, at);
        EXPECT_NE(at, std::string::npos) << line;
    }
    EXPECT_LT(count_lines(help.out), 27) << "the whole descriptions are the commands'";
    EXPECT_EQ(help.out.find("Exit code"), std::string::npos);
    EXPECT_NE(moe("compare --help").out.find("Exit code"), std::string::npos);
    setenv("COLUMNS", "80", 1);
    for (const char* command :
         {"", "compare ", "verify ", "convert ", "trace ", "bench ", "profile ",
          "microscope ", "timeline ", "info ", "gpu-check ", "results ", "completion "}) {
        std::istringstream lines(moe(std::string(command) + "--help").out);
        for (std::string line; std::getline(lines, line);)
            EXPECT_LE(columns_of(line), 80u) << command << line;
    }
    unsetenv("COLUMNS");
}

TEST_F(CliTest, HelpsWithEveryFlagOfACommand) {
    const Output help = moe("verify --help");
    for (const char* words :
         {"\nUsage: moe verify [OPTIONS] files ...\n\nArguments\n  files      ",
          "\n\nOptions\n  -h, --help   ", "\n  --tier TEXT ...  ", "\n  --json   "})
        EXPECT_NE(help.out.find(words), std::string::npos) << words << help.out;
    EXPECT_EQ(moe("verify -h").out, help.out);
    EXPECT_NE(moe("completion --help").out.find("[OPTIONS] [shell]\n"),
              std::string::npos);
    const Output trace = moe("trace --help");
    EXPECT_NE(trace.out.find("\n\nConfig (Megatron's names)\n  --hidden-size TEXT  "),
              std::string::npos);
    EXPECT_NE(trace.out.find("\n  --gated-linear-unit, --no-gated-linear-unit\n      "),
              std::string::npos);
}

TEST_F(CliTest, CompletesCommandsFlagsAndValues) {
    for (const char* shell : {"bash", "zsh"}) {
        const Output script = moe(std::string("completion ") + shell);
        EXPECT_EQ(script.code, kExitOk);
        for (const FieldInfo& field : config_fields())
            EXPECT_NE(script.out.find(flag_name(field.name)), std::string::npos);
    }
    EXPECT_EQ(moe("completion").out, moe("completion bash").out);
    EXPECT_NE(moe("completion zsh").out.find("bashcompinit"), std::string::npos);
    EXPECT_EQ(moe("completion bash").out.find("bashcompinit"), std::string::npos);
    const std::string file = write("complete.sh", moe("completion bash").out);
    ASSERT_EQ(std::system(("bash -n " + file).c_str()), 0);

    // What bash would offer after these words.
    const auto offers = [&](const std::string& words) {
        const std::string script =
            write("offers.sh", "cd " + folder_.string() + " && source " + file +
                                   "; COMP_WORDS=(" + words +
                                   "); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _moe; "
                                   "printf '%s\\n' \"${COMPREPLY[@]}\" > offers");
        EXPECT_EQ(std::system(("bash " + script).c_str()), 0);
        return split(read(path("offers")));
    };
    EXPECT_EQ(offers("moe ver"), Words{"verify"});
    EXPECT_EQ(offers("moe trace --moe-router-topk"),
              (Words{"--moe-router-topk", "--moe-router-topk-scaling-factor"}));
    EXPECT_EQ(offers("moe compare --rep"),
              (Words{"--report", "--repeats", "--replay-routing"}));
    EXPECT_EQ(offers("moe verify --js"), Words{"--json"});
    EXPECT_EQ(offers("moe verify comp"), Words{"complete.sh"});
    // After a flag, its values: those that the code knows.
    EXPECT_EQ(offers("moe compare --preset ''"), preset_names());
    EXPECT_EQ(offers("moe trace --preset qwen3_30"), Words{"qwen3_30b_a3b"});
    EXPECT_EQ(offers("moe bench --tier ref"), Words{"reference_cpu"});
    EXPECT_EQ(offers("moe verify --dtype ''"), (Words{"fp64", "fp32", "bf16"}));
    EXPECT_EQ(offers("moe bench --component exp"), Words{"experts"});
    EXPECT_EQ(offers("moe bench --pass ''"), (Words{"forward", "backward", "both"}));
    EXPECT_EQ(offers("moe bench --routing sk"), Words{"skewed"});
    EXPECT_EQ(offers("moe verify --moe-token-dispatcher-type al"),
              (Words{"allgather", "alltoall", "all"}));
    for (const char* field :
         {"activation_func", "moe_router_score_function", "moe_token_dispatcher_type",
          "moe_token_drop_policy", "moe_router_dtype", "moe_router_load_balancing_type"})
        EXPECT_EQ(offers("moe compare " + flag_name(field) + " ''"),
                  allowed_values(field))
            << field;
    // As bash splits --tier=na
    EXPECT_EQ(offers("moe bench --tier = ref"), Words{"reference_cpu"});
    EXPECT_EQ(offers("moe verify --dtype ="), (Words{"fp64", "fp32", "bf16"}));
}

}  // namespace
}  // namespace moe::test
