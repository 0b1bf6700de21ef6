// The layer's config on the command line: a flag for every field, and files of JSON.

#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using nlohmann::json;
using Words = std::vector<std::string>;

class CliConfigTest : public CliTest {};

TEST_F(CliConfigTest, NamesWrongValuesOfConfigFlags) {
    const auto rejects = [](const std::string& flags, const Words& words) {
        return IsBadInput("trace " + flags, words);
    };
    EXPECT_TRUE(rejects("--num-experts x", {"--num-experts = x: must be an integer"}));
    EXPECT_TRUE(
        rejects("--num-experts 2.5", {"--num-experts = 2.5: must be an integer"}));
    EXPECT_TRUE(rejects("--num-experts 0x8", {"--num-experts = 0x8: "}));
    EXPECT_TRUE(rejects("--num-experts +8", {"--num-experts = +8: "}));
    EXPECT_TRUE(rejects("--num-experts 99999999999999999999", {"must be an integer"}));
    EXPECT_TRUE(rejects("--num-experts 0", {"num_moe_experts = 0: must be positive"}));
    EXPECT_TRUE(rejects("--num-experts -4", {"num_moe_experts = -4: must be positive"}));
    EXPECT_TRUE(rejects("--num-experts 4 --num-experts 5", {"--num-experts"}));
    EXPECT_TRUE(rejects("--num-experts", {"--num-experts"}));
    EXPECT_TRUE(IsBadInput(Words{"trace", "--num-experts", ""}, {"--num-experts = : "}));
    EXPECT_TRUE(
        IsBadInput(Words{"trace", "--num-experts", " 4"}, {"--num-experts =  4: "}));
    EXPECT_TRUE(
        rejects("--glu-linear-offset x", {"--glu-linear-offset = x: ", "a number"}));
    EXPECT_TRUE(rejects("--glu-linear-offset 1e999", {"--glu-linear-offset = 1e999: "}));
    EXPECT_TRUE(
        rejects("--moe-z-loss-coeff nan", {"moe_z_loss_coeff = nan: ", "finite"}));
    EXPECT_TRUE(rejects("--moe-aux-loss-coeff inf", {"moe_aux_loss_coeff = inf: "}));
    EXPECT_TRUE(
        rejects("--moe-aux-loss-coeff much", {"moe_aux_loss_coeff = [\"much\"]"}));
    EXPECT_TRUE(
        rejects("--moe-aux-loss-coeff 1 2 3 4 5 6 7 8 9", {"--moe-aux-loss-coeff"}));
    EXPECT_TRUE(
        rejects("--moe-aux-loss-coeff 1 2", {"moe_aux_loss_coeff = 1 2: ", "(1)"}));
    EXPECT_TRUE(rejects("--moe-router-topk 9", {"moe_router_topk = 9: ", "(4)"}));
    EXPECT_TRUE(rejects("--swiglu --squared-relu", {"choose one"}));
    EXPECT_TRUE(rejects("--swiglu --squared-relu --quick-geglu", {"choose one"}));
}

TEST_F(CliConfigTest, TakesYesAndNoForASwitch) {
    for (const char* flag : {"--swiglu", "--gated-linear-unit", "--add-bias-linear"})
        EXPECT_TRUE(IsBadInput(std::string("trace ") + flag + "=maybe", {flag, "maybe"}));
    EXPECT_EQ(moe("trace --gated-linear-unit=false --no-moe-router-fusion").code,
              kExitOk);
}

// "none" stands for an absent value. Where there must be one, the message shows the word
// that was typed.
TEST_F(CliConfigTest, RepeatsNoneAsTyped) {
    EXPECT_TRUE(IsBadInput("trace --hidden-size none", {" = none: must be an integer"}));
    EXPECT_TRUE(IsBadInput("trace --activation-func none", {" = none: "}));
    EXPECT_TRUE(
        IsBadInput("trace --glu-linear-offset none", {" = none: must be a number"}));
}

TEST_F(CliConfigTest, NamesWrongConfigFiles) {
    const auto rejects = [&](const std::string& text, const Words& words) {
        return IsBadInput({"trace", "--config", write("c.json", text)}, words);
    };
    EXPECT_TRUE(IsBadInput({"trace", "--config", path("absent.json")},
                           {"--config = ", "absent.json: ", "readable"}));
    EXPECT_TRUE(IsBadInput({"trace", "--config", path("")}, {"--config = ", "readable"}));
    EXPECT_TRUE(rejects("", {"c.json", "JSON"}));
    EXPECT_TRUE(rejects("{", {"c.json", "JSON"}));
    EXPECT_TRUE(rejects("{} x", {"c.json", "JSON"}));
    EXPECT_TRUE(rejects("[1]", {"c.json = [1]: ", "object"}));
    EXPECT_TRUE(rejects("\xff\xfe{", {"c.json", R"("\ufffd\ufffd{")", "JSON"}));
    EXPECT_TRUE(rejects(R"({"moe_z_loss_coeff": NaN})", {"c.json", "JSON"}));
    EXPECT_TRUE(
        rejects(R"({"hidden": 3})", {"c.json: hidden = 3: no such config field"}));
    EXPECT_TRUE(rejects(R"({"hidden_size": "x\ny"})", {R"(hidden_size = "x\ny")"}));
    EXPECT_TRUE(
        rejects(R"({"hidden_size": 3, "hidden_size": 4})", {"hidden_size", "once"}));
    EXPECT_TRUE(
        rejects(R"({"moe_router_topk": 2.0})", {"c.json: moe_router_topk = 2.0: "}));
    EXPECT_TRUE(rejects("{}", {"hidden_size = 0: must be positive"}));
    EXPECT_TRUE(rejects(R"({"model_type": "mixtral", "hidden_size": 8})",
                        {"c.json: is a Hugging Face config.json (mixtral)",
                         "Megatron's names", "moe compare --checkpoint"}));

    const std::string good =
        write("good.json", R"({"hidden_size": 4, "num_moe_experts": 3,
        "moe_token_dispatcher_type": "alltoall"})");
    EXPECT_TRUE(
        IsBadInput("trace --preset olmoe --config " + good, {"--preset = olmoe: "}));
    EXPECT_TRUE(IsBadInput("trace --scale 2 --config " + good, {"--scale = 2: "}));
    EXPECT_EQ(moe("trace --moe-router-topk 3 --config " + good).code, kExitOk);
}

// A crash would take the other tests along, so these run in a process of their own.
TEST_F(CliConfigTest, SurvivesDeeplyNestedJson) {
    const std::string style = GTEST_FLAG_GET(death_test_style);
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    const std::size_t depth = 100'000;
    const std::string brackets =
        R"({"hidden_size": )" + std::string(depth, '[') + std::string(depth, ']') + "}";
    std::string braces;
    for (std::size_t i = 0; i < depth; ++i) braces += R"({"a":)";
    braces += "1" + std::string(depth, '}');
    for (const std::string& text : {brackets, braces}) {
        const std::string file = write("deep.json", text);
        EXPECT_EXIT(exit_with({"trace", "--config", file}),
                    testing::ExitedWithCode(kExitBadInput), "^moe: .*deep.json");
    }
    GTEST_FLAG_SET(death_test_style, style);
}

/// The config that these flags give, on top of a file.
json config_of(const std::string& file, const std::string& flags) {
    CommandLine line("moe", "", "");
    Command& command = line.add("trace", "");
    LayerOptions options(command, {"mixtral_8x7b", 16, 8, 2});
    command.runs([] { return 0; });
    line.run(split("trace --config " + file + " " + flags));
    return json(config_to_json(options.config()));
}

TEST_F(CliConfigTest, SetsEveryConfigFieldByItsFlag) {
    const std::string file = write("base.json", R"({"hidden_size": 16,
        "num_moe_experts": 8, "ffn_hidden_size": 12, "add_bias_linear": false,
        "moe_token_dispatcher_type": "alltoall", "moe_router_score_function": "sigmoid",
        "moe_router_num_groups": 2, "moe_expert_capacity_factor": 1.5})");
    const json base = config_of(file, "");
    // Field, what follows its flag, and what it then is.
    const std::map<std::string, std::pair<std::string, json>> values = {
        {"hidden_size", {"24", 24}},
        {"num_moe_experts", {"10", 10}},
        {"ffn_hidden_size", {"7", 7}},
        {"moe_ffn_hidden_size", {"9", 9}},
        {"moe_shared_expert_intermediate_size", {"5", 5}},
        {"moe_latent_size", {"6", 6}},
        {"moe_mlp_glu_interleave_size", {"5", 5}},
        {"moe_shared_expert_glu_interleave_size", {"5", 5}},
        {"activation_func", {"quick_gelu", "quick_gelu"}},
        {"activation_func_clamp_value", {"0.5", 0.5}},
        {"glu_linear_offset", {"-0.25", -0.25}},
        {"moe_router_topk", {"3", 3}},
        {"moe_router_score_function", {"sqrtsoftplus", "sqrtsoftplus"}},
        {"moe_router_num_groups", {"none", nullptr}},
        {"moe_router_group_topk", {"1", 1}},
        {"moe_router_topk_scaling_factor", {"2.5", 2.5}},
        {"moe_router_dtype", {"fp64", "fp64"}},
        {"moe_router_bias_update_rate", {"1e-4", 1e-4}},
        {"moe_router_quantile_balancing_ema", {"0.9", 0.9}},
        {"moe_input_jitter_eps", {"0.01", 0.01}},
        {"moe_router_force_biased", {"-0.5", -0.5}},
        {"moe_router_load_balancing_type", {"none", {"none"}}},
        {"moe_aux_loss_coeff", {"0.125", {0.125}}},
        {"moe_z_loss_coeff", {"0.5", 0.5}},
        {"moe_expert_capacity_factor", {"none", nullptr}},
        {"moe_token_drop_policy", {"position", "position"}},
        {"moe_flex_dispatcher_backend", {"hybridep", "hybridep"}},
        {"fp8_recipe", {"mxfp8", "mxfp8"}},
        {"recompute_granularity", {"selective", "selective"}},
        {"recompute_modules", {"moe,shared_experts", {"moe", "shared_experts"}}}};
    // Only one value is built, or the flag needs another.
    const std::vector<std::string> fixed = {
        "moe_token_dispatcher_type",    "tensor_model_parallel_size",
        "context_parallel_size",        "expert_model_parallel_size",
        "expert_tensor_parallel_size",  "moe_flex_peer_heap_bytes",
        "moe_flex_max_tokens_per_rank", "moe_expert_rank_capacity_factor",
        "moe_router_group_score_topk",  "moe_router_hash_vocab_size"};
    for (const FieldInfo& field : config_fields()) {
        const std::string& name = field.name;
        const std::string flag = flag_name(name);
        json expected = base;
        if (field.kind == FieldKind::boolean) {
            const std::string off = name == "add_bias_linear" ? "--disable-bias-linear"
                                                              : "--no-" + flag.substr(2);
            expected[name] = false;
            EXPECT_EQ(config_of(file, off), expected) << off;
            std::string also;  // what the field asks for
            if (name == "moe_apply_probs_on_input") {
                also = " --moe-router-topk 1";
                expected["moe_router_topk"] = 1;
            }
            if (name == "moe_enable_deepep") {
                also = " --moe-token-dispatcher-type flex --expert-model-parallel-size 2";
                expected["moe_token_dispatcher_type"] = "flex";
                expected["expert_model_parallel_size"] = 2;
            }
            if (name == "moe_router_padding_for_fp8")
                expected["moe_router_padding_for_quantization"] = true;
            expected[name] = true;
            EXPECT_EQ(config_of(file, flag + also), expected) << flag;
        } else if (std::count(fixed.begin(), fixed.end(), name)) {
            EXPECT_TRUE(IsBadInput("trace --config " + file + " " + flag + " 2", {name}));
        } else {
            const auto& [text, value] = values.at(name);
            expected[name] = value;
            if (name == "ffn_hidden_size") expected["moe_ffn_hidden_size"] = value;
            EXPECT_NE(expected, base) << name;
            EXPECT_EQ(config_of(file, flag + " " + text), expected) << flag;
        }
    }
}

TEST_F(CliConfigTest, NamesTheModelAndWhatFlagsChange) {
    const auto model = [](const std::string& flags, std::optional<MoEConfig> own = {}) {
        CommandLine line("moe", "", "");
        Command& command = line.add("trace", "");
        LayerOptions options(command, {"mixtral_8x7b", 16, 8, 2, std::move(own)});
        command.runs([] { return 0; });
        line.run(split("trace " + flags));
        EXPECT_EQ(options.seq_length(), 8);
        EXPECT_EQ(options.micro_batch_size(), 2);
        EXPECT_FALSE(options.seq_length_given());
        return options.model();
    };
    EXPECT_EQ(model(""), "mixtral_8x7b, widths / 16");
    EXPECT_EQ(model("--scale 1"), "mixtral_8x7b");
    EXPECT_EQ(model("--preset olmoe"), "olmoe, widths / 16");
    EXPECT_EQ(model("--preset olmoe --scale 4"), "olmoe, widths / 4");
    EXPECT_EQ(model("--config a.json"), "a.json");
    // What flags change is no longer the preset's layer; what they repeat is.
    EXPECT_EQ(model("--num-experts 16 --moe-router-topk 4 --scale 1"),
              "mixtral_8x7b, changed: num_moe_experts 8 → 16, moe_router_topk 2 → 4");
    EXPECT_EQ(model("--squared-relu --moe-z-loss-coeff 0.5"),
              "mixtral_8x7b, widths / 16, changed: gated_linear_unit true → false, "
              "activation_func silu → squared_relu, moe_z_loss_coeff none → 0.5");
    EXPECT_EQ(model("--num-experts 8 --swiglu"), "mixtral_8x7b, widths / 16");
    EXPECT_EQ(model("--tensor-model-parallel-size 2 --sequence-parallel"),
              "mixtral_8x7b, widths / 16");
    const std::string file = write("own.json", R"({"num_moe_experts": 4})");
    EXPECT_EQ(model("--num-experts 6 --config " + file),
              file + ", changed: num_moe_experts 4 → 6");
    EXPECT_EQ(model("", small_config()), "mixtral_8x7b");
    EXPECT_EQ(model("--preset olmoe", small_config()), "olmoe, widths / 16");
}

TEST_F(CliConfigTest, TakesSizesUpToTheirLimits) {
    const auto sizes = [](const std::string& flags) {
        CommandLine line("moe", "", "");
        Command& command = line.add("trace", "");
        LayerOptions options(command, {"mixtral_8x7b", 16, 8, 2});
        command.runs([] { return 0; });
        line.run(split("trace " + flags));
        return std::pair(options.seq_length(), options.micro_batch_size());
    };
    using Sizes = std::pair<std::int64_t, std::int64_t>;
    EXPECT_EQ(sizes("--seq-length 0 --micro-batch-size 1"), (Sizes{0, 1}));
    EXPECT_EQ(sizes("--seq-length 1000000 --micro-batch-size 100000"),
              (Sizes{1'000'000, 100'000}));
    EXPECT_TRUE(
        Rejects([&] { sizes("--seq-length 1000001"); }, {"--seq-length = 1000001"}));
    EXPECT_TRUE(
        Rejects([&] { sizes("--micro-batch-size 100001"); }, {"--micro-batch-size = "}));
}

TEST_F(CliConfigTest, HasMegatronsShortFlags) {
    const std::string file = write("base.json", R"({"hidden_size": 16,
        "num_moe_experts": 8, "moe_token_dispatcher_type": "alltoall"})");
    const auto expect = [&](const std::string& flag, bool gated, const std::string& act) {
        const json config = config_of(file, flag);
        EXPECT_EQ(config["gated_linear_unit"], gated) << flag;
        EXPECT_EQ(config["activation_func"], act) << flag;
    };
    expect("--swiglu", true, "silu");
    expect("--squared-relu", false, "squared_relu");
    expect("--quick-geglu", true, "quick_gelu");
    EXPECT_EQ(config_of(file,
                        "--moe-router-load-balancing-type aux_loss seq_aux_loss "
                        "--moe-aux-loss-coeff 0.5 0.25")["moe_aux_loss_coeff"],
              (json{0.5, 0.25}));
}

}  // namespace
}  // namespace moe::test
