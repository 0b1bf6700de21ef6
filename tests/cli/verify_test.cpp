// `moe verify` on golden files: good ones, wrong ones, and ones that say something else.

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "cli/places.h"
#include "core/transfer.h"
#include "tests/cli/verify_support.h"

namespace moe::test {
namespace {

using nlohmann::json;

TEST_F(VerifyTest, NamesFilesThatAreNone) {
    EXPECT_TRUE(IsRejected(path("absent"), {"No such file"}));
    EXPECT_TRUE(IsRejected(path(""), {"regular file"}));
    EXPECT_TRUE(IsRejected("/dev/null", {"regular file"}));
    for (const char* text :
         {"", "short", "A text of some length.", R"({"a": [1, 2]})", R"({"long":{}})"})
        EXPECT_TRUE(IsRejected(write("other", text), {"no safetensors file"}));
    EXPECT_TRUE(IsRejected(default_text(), {"no safetensors file"}));
    const std::string whole = read(golden("one_token"));
    ASSERT_GT(whole.size(), 10'000u);
    for (std::size_t length : {std::size_t{1}, std::size_t{8}, std::size_t{100},
                               whole.size() / 2, whole.size() - 1})
        EXPECT_TRUE(IsRejected(write("cut", whole.substr(0, length)), {})) << length;
    EXPECT_TRUE(IsRejected(write("long", whole + "x"), {}));
}

TEST_F(VerifyTest, SaysWhatAGoldenCaseIsAndWhereThatIsDescribed) {
    const std::string described = golden_folder() + "/README.md";
    EXPECT_NE(read(described).find("moe-golden-1"), std::string::npos);
    const auto lacks = [&](const std::string& name) {
        return changed(name, [&](TensorMap& t, Metadata& m) {
            EXPECT_EQ(t.erase(name) + m.erase(name), 1u);
        });
    };
    for (const char* name :
         {"format", "moe_config", "input.hidden_states", "router.weight"})
        EXPECT_TRUE(IsRejected(lacks(name), {std::string(name) + " = absent: ",
                                             "in a golden case", described}));
    save_safetensors(path("weights"), {{"w", Tensor::zeros({2}, DType::f32)}}, {});
    EXPECT_TRUE(IsRejected(path("weights"), {"format = absent: ", described}));
}

TEST_F(VerifyTest, NamesWrongMetadata) {
    const auto without = [&](const std::string& key) {
        return changed("without", [&](auto&, Metadata& m) { m.erase(key); });
    };
    EXPECT_TRUE(IsRejected(without("format"), {"format = absent: ", "moe-golden-1"}));
    EXPECT_TRUE(RejectsMetadata("format", "2", {"format = 2: ", "moe-golden-1"}));
    EXPECT_TRUE(RejectsMetadata("world_size", "2", {"rank.0.input.hidden_states"}));
    for (const char* bad : {"x", "", "0", "-2", "1.5", "2 ", "99999999999999"})
        EXPECT_TRUE(RejectsMetadata(
            "world_size", bad,
            {std::string("world_size = ") + bad + ": ", "positive integer"}));
    EXPECT_TRUE(IsRejected(without("moe_config"), {"moe_config = absent: "}));
    EXPECT_TRUE(RejectsMetadata("moe_config", "{", {"moe_config", "JSON"}));
    EXPECT_TRUE(RejectsMetadata("moe_config", "[]", {"moe_config = []: ", "object"}));
    EXPECT_TRUE(RejectsMetadata("moe_config", "{}", {"moe_config: hidden_size = 0: "}));
    EXPECT_TRUE(RejectsMetadata("source_errors", "3", {"source_errors = 3: "}));
    EXPECT_TRUE(RejectsMetadata("source_dtype", "fp8",
                                {"source_dtype = fp8: ", "fp64, fp32, bf16"}));
    EXPECT_TRUE(RejectsMetadata("source_errors", R"({"fp32": 3})", {"source_errors"}));
    EXPECT_TRUE(RejectsMetadata("source_errors", "{", {"source_errors", "JSON"}));
    EXPECT_TRUE(RejectsConfig(R"("moe_magic": 1)", {"moe_magic = 1: no such"}));
    EXPECT_TRUE(RejectsConfig(R"("moe_router_topk": 1)", {"moe_router_topk", "once"}));
    EXPECT_TRUE(RejectsConfig(R"("moe_token_drop_policy": 1)",
                              {"moe_config: moe_token_drop_policy = 1: ", "string"}));
    EXPECT_TRUE(RejectsConfig(R"("moe_pad_expert_input_to_capacity": true)",
                              {"moe_config: moe_pad_expert_input_to_capacity = true: "}));
}

// What the source's dtype has rounded is not held to a better one; the router stays fp64.
TEST_F(VerifyTest, HoldsWhatWasRoundedToItsDtype) {
    const auto code = [&](const std::string& source_dtype) {
        const std::string file = changed("rounded", [&](TensorMap& t, Metadata& m) {
            Tensor& output = t.at("expect.output");
            output = transfer(transfer(output, {MemorySpace::host, DType::bf16}),
                              {MemorySpace::host, DType::f64});
            m["source_dtype"] = source_dtype;
        });
        return moe({"verify", "--tier", "reference_cpu", "--dtype", "fp64", "--", file})
            .code;
    };
    EXPECT_EQ(code("fp64"), kExitDiffers);
    EXPECT_EQ(code("fp32"), kExitDiffers);
    EXPECT_EQ(code("bf16"), kExitOk);
}

TEST_F(VerifyTest, SaysWhichRouterAFileWithoutOneHas) {
    const auto hints = [&](const std::string& source_dtype, double off) {
        const std::string file = changed("open", [&](TensorMap& t, Metadata& m) {
            std::string& config = m.at("moe_config");
            const std::string router = ", \"moe_router_dtype\": \"fp64\"";
            EXPECT_NE(config.find(router), std::string::npos);
            config.erase(config.find(router), router.size());
            t.at("expect.output").data<double>()[0] += off;
            if (!source_dtype.empty()) m["source_dtype"] = source_dtype;
        });
        return has(moe({"verify", "--tier", "naive_gpu", "--dtype", "bf16", "--", file}),
                   "moe_router_dtype is not set: this router is of bf16");
    };
    NEEDS_DEVICE();
    EXPECT_TRUE(hints("", 100.0));
    EXPECT_FALSE(hints("bf16", 100.0)) << "the file says so";
    EXPECT_FALSE(hints("", 0.0));
}

TEST_F(VerifyTest, NamesWrongInputs) {
    EXPECT_TRUE(RejectsTensor("input.hidden_states", Tensor::zeros({1, 16}, DType::f32),
                              {"input.hidden_states = shape (1, 16): "}));
    EXPECT_TRUE(RejectsTensor("input.hidden_states",
                              Tensor::zeros({1, 1, 15}, DType::f32),
                              {"input.hidden_states = shape (1, 1, 15): "}));
    EXPECT_TRUE(RejectsTensor("input.hidden_states",
                              Tensor::zeros({1, 1, 16}, DType::i64),
                              {"input.hidden_states = int64: ", "F64, F32 or BF16"}));
    EXPECT_TRUE(RejectsTensor("input.grad_output", Tensor::zeros({1, 2, 16}, DType::f32),
                              {"input.grad_output = shape (1, 2, 16): ", "(1, 1, 16)"}));
    EXPECT_TRUE(RejectsTensor("input.padding_mask", Tensor::zeros({2, 1}, DType::u8),
                              {"input.padding_mask = shape (2, 1): ", "(1, 1)"}));
    EXPECT_TRUE(RejectsTensor("input.padding_mask", Tensor::zeros({1, 1}, DType::f32),
                              {"input.padding_mask = fp32: ", "integer"}));
    EXPECT_TRUE(RejectsTensor("input.padding_mask", Tensor::zeros({1, 1}, DType::i64),
                              {"input.padding_mask = int64: ", "U8 or BOOL"}));
    EXPECT_TRUE(RejectsTensor("router.weight", Tensor::zeros({16, 8}, DType::f32),
                              {"router.weight = shape (16, 8): ", "(8, 16)"}));
    EXPECT_TRUE(RejectsTensor("router.weight", Tensor::zeros({8, 16}, DType::i64),
                              {"router.weight = int64: "}));
    for (const char* name : {"router.weight", "experts.linear_fc2.weight",
                             "input.hidden_states", "input.grad_output"}) {
        const auto without =
            changed("without", [&](TensorMap& t, auto&) { t.erase(name); });
        EXPECT_TRUE(IsRejected(without, {name}));
    }
}

TEST_F(VerifyTest, NamesWrongExpectations) {
    EXPECT_TRUE(RejectsTensor("expect.output", Tensor::zeros({1, 16}, DType::f64),
                              {"expect.output = shape (1, 16): ", "(1, 1, 16)"}));
    EXPECT_TRUE(RejectsTensor("expect.routing_map", Tensor::zeros({1, 8}, DType::f32),
                              {"expect.routing_map = fp32: ", "integer"}));
    EXPECT_TRUE(RejectsTensor("expect.probs", Tensor::zeros({1, 8}, DType::u8),
                              {"expect.probs = uint8: "}));
    EXPECT_TRUE(RejectsTensor("expect.loss.z_loss", Tensor::zeros({1}, DType::f64),
                              {"expect.loss.z_loss = shape (1): ", "()"}));
    EXPECT_TRUE(RejectsTensor("expect.grad.router.weight", Tensor::zeros({8}, DType::f64),
                              {"expect.grad.router.weight = shape (8): ", "(8, 16)"}));
    const auto nothing = changed("nothing", [](TensorMap& t, auto&) {
        std::erase_if(t,
                      [](const auto& item) { return item.first.starts_with("expect."); });
    });
    EXPECT_TRUE(IsRejected(nothing, {"expect.*", "something to check"}));
}

TEST_F(VerifyTest, RejectsNumbersThatAreNotFinite) {
    for (double bad : {double(NAN), double(INFINITY), -double(INFINITY)})
        for (const char* name :
             {"input.hidden_states", "input.grad_output", "router.weight",
              "experts.linear_fc1.weight", "experts.linear_fc2.weight", "expect.output",
              "expect.loss.load_balancing_loss", "expect.grad.router.weight"}) {
            const auto file = changed("bad", [&](TensorMap& t, auto&) {
                Tensor& tensor = t.at(name);
                const std::int64_t at = std::min<std::int64_t>(3, tensor.numel() - 1);
                if (tensor.dtype() == DType::f64)
                    tensor.data<double>()[at] = bad;
                else
                    tensor.data<float>()[at] = float(bad);
            });
            EXPECT_TRUE(IsRejected(file, {std::string(name) + "[", "must be finite"}));
        }
    // Finite numbers whose logits are not.
    const auto overflow = changed("overflow", [](TensorMap& t, Metadata& m) {
        for (const char* name : {"input.hidden_states", "router.weight"})
            std::fill_n(t.at(name).data<float>(), t.at(name).numel(), 3e38f);
        std::string& config = m.at("moe_config");
        config.replace(config.find("fp64"), 4, "fp32");  // the router's
    });
    EXPECT_TRUE(IsBadInput({"verify", "--json", "--dtype", "fp32", overflow},
                           {overflow + ": logits[token 0, expert 0] = inf: "}));
}

TEST_F(VerifyTest, NoticesTensorsItDoesNotKnowAndGoesOn) {
    const auto file = changed("more", [](TensorMap& t, auto&) {
        t["something.else"] = Tensor::zeros({3}, DType::f32);
        t["expect.magic"] = Tensor::zeros({3}, DType::u8);
    });
    const Output output = moe({"verify", file});
    EXPECT_EQ(output.code, kExitOk);
    EXPECT_EQ(count_lines(output.err), 2);
    for (const char* name : {"something.else", "expect.magic"})
        EXPECT_NE(output.err.find(name), std::string::npos);
    EXPECT_NE(output.out.find("1 of 1 files match"), std::string::npos);
}

TEST_F(VerifyTest, SaysWhichSettingLeavesATensorUnused) {
    const auto told = [&](const std::string& name, const std::string& source) {
        const std::string file = changed(
            "unused",
            [&](TensorMap& t, auto&) { t[name] = Tensor::zeros({3}, DType::f32); },
            source);
        const Output output = moe({"verify", "--dtype", "fp64", file});
        EXPECT_EQ(output.code, kExitOk) << name;
        return output.err.substr(std::min(output.err.size(), file.size() + 7));
    };
    const std::string one = "one_token", none = " is not used: ";
    for (const auto& [name, setting] : std::map<std::string, std::string>{
             {"router.expert_bias", "moe_router_enable_expert_bias is false"},
             {"router.qb_beta",
              "moe_router_load_balancing_type is not quantile_balancing"},
             {"router.bias", "add_bias_linear is false"},
             {"experts.linear_fc1.bias", "add_bias_linear is false"},
             {"expect.grad.experts.linear_fc2.bias", "add_bias_linear is false"},
             {"fc2_latent_proj.weight", "moe_latent_size is not set"},
             {"shared_experts.linear_fc1.weight",
              "moe_shared_expert_intermediate_size is not set"},
             {"shared_experts.gate_weight",
              "moe_shared_expert_intermediate_size is not set"}})
        EXPECT_EQ(told(name, one), name + none + setting + "\n");
    EXPECT_EQ(told("rank.1.expect.grad.router.bias", "ranks/tp2_shared_alltoall"),
              "rank.1.expect.grad.router.bias is not used: add_bias_linear is false\n");
    EXPECT_EQ(
        told("shared_experts.gate_weight", "ranks/tp2_shared_alltoall"),
        "shared_experts.gate_weight is not used: moe_shared_expert_gate is false\n");
    EXPECT_EQ(told("rank.1", one),
              "rank.1 is not a tensor name known here; not checked\n");
}

// Names that somebody else chose may hold a line break.
TEST_F(VerifyTest, KeepsToOneLineWhateverANameHolds) {
    EXPECT_TRUE(RejectsConfig(R"("moe\nmagic": 1)", {"magic = 1: no such"}));
    const auto unknown = changed("unknown", [](TensorMap& t, auto&) {
        t["two\nlines"] = Tensor::zeros({3}, DType::f32);
    });
    EXPECT_EQ(count_lines(moe({"verify", unknown}).err), 1);
}

TEST_F(VerifyTest, TellsWhatDiffersAndGoesOn) {
    const std::string differs = changed("differs", [](TensorMap& t, auto&) {
        t.at("expect.output").data<double>()[5] += 0.5;
    });
    const Output output = moe({"verify", differs, golden("one_expert")});
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_EQ(output.err, "");
    EXPECT_NE(output.out.find("✗ one_token  reference_cpu:fp64\n"
                              "    begins at ⑩ combine (unpermute)\n"),
              std::string::npos)
        << output.out;
    EXPECT_NE(output.out.find("✓ one_expert"), std::string::npos);
    EXPECT_NE(output.out.find("✗ expect.output"), std::string::npos);
    EXPECT_NE(output.out.find("worst element (0, 0, 5)"), std::string::npos);
    EXPECT_EQ(output.out.find("✗ expect.logits"), std::string::npos);
    EXPECT_NE(output.out.find("1 of 2 files match\n"), std::string::npos);

    // What cannot be read outweighs what differs, wherever it stands.
    for (const Words& files :
         {Words{"verify", differs, path("absent"), golden("one_expert")},
          Words{"verify", path("absent"), golden("one_expert"), differs}}) {
        const Output mixed = moe(files);
        EXPECT_EQ(mixed.code, kExitBadInput);
        EXPECT_EQ(count_lines(mixed.err), 1);
        EXPECT_NE(mixed.out.find("1 of 3 files match, 1 could not be run"),
                  std::string::npos);
    }
    EXPECT_EQ(moe({"verify", golden("one_token"), golden("one_expert")}).code, kExitOk);
}

TEST_F(VerifyTest, NoticesAChangeInEveryPart) {
    const SafetensorsFile file = SafetensorsFile::open(golden("three_losses"));
    for (const std::string& name : file.names()) {
        if (!name.starts_with("expect.")) continue;
        const auto differs = changed(
            "differs",
            [&](TensorMap& t, auto&) {
                Tensor& tensor = t.at(name);
                const std::int64_t last = tensor.numel() - 1;
                if (tensor.dtype() == DType::f64) tensor.data<double>()[last] += 1.0;
                if (tensor.dtype() == DType::i64) tensor.data<std::int64_t>()[last] += 1;
                if (tensor.dtype() == DType::u8) tensor.data<std::uint8_t>()[last] ^= 1;
            },
            "three_losses");
        const Output output = moe({"verify", "--dtype", "fp64", differs});
        EXPECT_EQ(output.code, kExitDiffers) << name;
        EXPECT_NE(output.out.find("✗ " + name), std::string::npos) << output.out;
    }
}

TEST_F(VerifyTest, NoticesAnExpectationThatTheLayerDoesNotHave) {
    const auto file = changed("z", [](TensorMap& t, auto&) {
        t["expect.loss.z_loss"] = Tensor::zeros({}, DType::f64);
    });
    const Output output = moe({"verify", file});
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_NE(output.out.find("the layer has no such value"), std::string::npos);
}

TEST_F(VerifyTest, ChecksTheForwardAloneWithoutAGradient) {
    const std::string forward = changed("forward", [](TensorMap& t, Metadata& m) {
        m.erase("case");
        t.erase("input.grad_output");
        std::erase_if(
            t, [](const auto& item) { return item.first.starts_with("expect.grad."); });
    });
    const Output output = moe({"verify", forward});
    EXPECT_EQ(output.code, kExitOk);
    EXPECT_EQ(output.out.find("expect.grad."), std::string::npos);
    EXPECT_NE(output.out.find("expect.output"), std::string::npos);
    EXPECT_TRUE(output.out.starts_with("✓ forward ")) << "a file without a name";
}

TEST_F(VerifyTest, PrintsOneJsonObjectPerFileAndPrecision) {
    const std::string differs = changed("differs", [](TensorMap& t, Metadata& m) {
        t.at("expect.output").data<double>()[5] += 0.5;
        m["case"] = "two\nlines";
    });
    const Output output =
        moe({"verify", "--json", golden("sinkhorn_k2"), differs, path("absent"), "--tier",
             "reference_cpu", "--dtype", "fp64,fp32"});
    EXPECT_EQ(output.code, kExitBadInput);
    EXPECT_EQ(count_lines(output.err), 1);
    std::istringstream lines(output.out);
    std::vector<std::string> seen;
    for (std::string line; std::getline(lines, line);) {
        const json object = json::parse(line);
        const std::string name = object.at("case");
        seen.push_back(name + " " + object.at("dtype").get<std::string>());
        EXPECT_EQ(object.at("tier"), "reference_cpu");
        EXPECT_EQ(object.at("ok"), name == "sinkhorn_k2");
        EXPECT_GT(object.at("tensors").size(), 8u);
        for (const json& tensor : object.at("tensors")) {
            const double error = tensor.at("error"), bound = tensor.at("bound");
            EXPECT_EQ(tensor.at("ok"), error <= bound);
            EXPECT_EQ(tensor.contains("detail"), error > bound);
            EXPECT_EQ(error > bound,
                      name != "sinkhorn_k2" && tensor.at("name") == "expect.output");
        }
    }
    EXPECT_EQ(seen, (Words{"sinkhorn_k2 fp64", "sinkhorn_k2 fp32", "two\nlines fp64",
                           "two\nlines fp32"}));
}

TEST_F(VerifyTest, PrintsAnInfiniteErrorAsNull) {
    // Where zero is expected, anything else is infinitely far off; JSON has no infinity.
    const std::string zero = changed("zero", [](TensorMap& t, auto&) {
        t.at("expect.output") = Tensor::zeros({1, 1, 16}, DType::f64);
    });
    const Output output = moe({"verify", "--json", "--dtype", "fp64", zero});
    EXPECT_EQ(output.code, kExitDiffers);
    const json object = json::parse(output.out);
    for (const json& tensor : object.at("tensors"))
        EXPECT_EQ(tensor.at("error").is_null(), tensor.at("name") == "expect.output");
}

TEST_F(VerifyTest, RunsInTheTiersAndPrecisionsAskedFor) {
    const std::string file = golden("one_token");
    const auto cases = [&](const std::string& flags) {
        const Output output = moe("verify --json " + file + " " + flags);
        EXPECT_EQ(output.code, kExitOk) << output.err;
        return count_lines(output.out);
    };
    EXPECT_EQ(cases(""), std::int64_t(available_suppliers().size()));
    const std::vector<ComponentSpec> all = available_suppliers();
    const auto in_fp32 = [](const ComponentSpec& s) { return s.dtype == DType::f32; };
    EXPECT_EQ(cases("--dtype fp32"), std::count_if(all.begin(), all.end(), in_fp32));
    EXPECT_EQ(cases("--tier reference_cpu"), 2);
    EXPECT_EQ(cases("--tier reference_cpu --dtype fp64 --dtype fp32"), 2);
    EXPECT_TRUE(IsBadInput("verify --tier warp_gpu " + file, {"--tier = warp_gpu: "}));
    EXPECT_TRUE(IsBadInput("verify --tier reference_cpu --dtype bf16 " + file,
                           {"--dtype = bf16: no chosen tier has it"}));
    EXPECT_TRUE(IsBadInput("verify --dtype fp16 " + file, {"--dtype = fp16: "}));
}

// Some checkpoints keep the rows of FC1 otherwise: the file's numbers show it.
TEST_F(VerifyTest, TellsAnotherOrderOfGateAndUpRows) {
    // @param at  where the file has what is row `row` of 2F here
    const auto with_rows = [&](const char* source, const char* name, const auto& at) {
        return changed(
            "other_rows",
            [&](TensorMap& t, auto&) {
                Tensor& weight = t.at(name);
                const Tensor as_here = weight.clone();
                const std::int64_t rows = weight.dim(-2 + int(weight.shape().size()));
                const std::int64_t H = weight.shape().back();
                for (std::int64_t i = 0; i < weight.numel(); ++i) {
                    const std::int64_t row = i / H % rows;
                    const std::int64_t to = at(row, rows / 2);
                    weight.data<float>()[i + (to - row) * H] = as_here.data<float>()[i];
                }
            },
            source);
    };
    const auto verify = [](const std::string& file) {
        return moe({"verify", file, "--tier", "reference_cpu", "--dtype", "fp64"});
    };
    const auto in_turns = [](std::int64_t row, std::int64_t F) {
        return row < F ? 2 * row : 2 * (row - F) + 1;
    };
    const auto up_first = [](std::int64_t row, std::int64_t F) {
        return row < F ? row + F : row - F;
    };
    const char* experts = "experts.linear_fc1.weight";
    const Output turns = verify(with_rows("hf_mixtral", experts, in_turns));
    EXPECT_EQ(turns.code, kExitDiffers) << turns.err;
    EXPECT_TRUE(has(turns, "if in linear_fc1 of the experts gate and up rows take turns"))
        << turns.out;
    const Output up = verify(with_rows("ranks/ep2_alltoall", experts, up_first));
    EXPECT_TRUE(has(up, "of the experts all up rows come before the gate rows"))
        << up.out;
    const json object =
        json::parse(moe({"verify", "--json", with_rows("hf_mixtral", experts, up_first),
                         "--tier", "reference_cpu", "--dtype", "fp64"})
                        .out);
    EXPECT_NE(object.at("hint").get<std::string>().find("all up rows"),
              std::string::npos);
    // What is wrong otherwise has no such word
    const Output other =
        verify(with_rows("hf_mixtral", experts, [](std::int64_t row, std::int64_t F) {
            return (row + 1) % (2 * F);
        }));
    EXPECT_EQ(other.code, kExitDiffers) << other.err;
    EXPECT_FALSE(has(other, "linear_fc1 of the experts")) << other.out;
}

}  // namespace
}  // namespace moe::test
