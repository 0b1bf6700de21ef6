// `moe verify` on golden files of several ranks: wrong ones, and other dispatchers.

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/golden/golden.h"
#include "tests/cli/verify_support.h"

namespace moe::test {
namespace {

using nlohmann::json;

class VerifyRanksTest : public VerifyTest {
  protected:
    // A small file of 4 ranks with sequence parallelism, and one of padded rows.
    static constexpr const char* kCase = "ranks/tp2_ep2_etp2_alltoall";
    static constexpr const char* kSmall = "ranks/ep2_alltoall";
    static constexpr const char* kPadded = "ranks/ep2_drop_pad_alltoall";

    testing::AssertionResult Rejects(const Change& change, const Words& words) const {
        return IsRejected(changed("changed", change, kCase), words);
    }
    testing::AssertionResult RejectsWithout(const std::string& name,
                                            const Words& words) const {
        return Rejects([&](TensorMap& t, auto&) { t.erase(name); }, words);
    }
    testing::AssertionResult RejectsTensor(const std::string& name, const Tensor& tensor,
                                           const Words& words) const {
        return Rejects([&](TensorMap& t, auto&) { t[name] = tensor; }, words);
    }
    static bool contains(const std::string& text, const std::string& part) {
        return text.find(part) != std::string::npos;
    }
};

TEST_F(VerifyRanksTest, ChecksEveryRank) {
    const Output output = moe({"verify", golden(kSmall), "--dtype", "fp64"});
    EXPECT_EQ(output.code, kExitOk) << output.out;
    EXPECT_EQ(output.err, "");
    for (const char* line :
         {"✓ ep2_alltoall  reference_cpu:fp64\n", "✓ rank 0 expect.output ",
          "✓ rank 1 expect.output ", "✓ rank 1 expect.input_splits ",
          "✓ rank 0 expect.received_hidden_states ", "1 of 1 files match\n"})
        EXPECT_TRUE(contains(output.out, line)) << line << "\n" << output.out;
    EXPECT_FALSE(contains(output.out, "rank 2"));
    EXPECT_FALSE(contains(output.out, "not compared"));
}

TEST_F(VerifyRanksTest, NamesTheRankThatDiffers) {
    const auto differs = changed(
        "differs",
        [](TensorMap& t, auto&) {
            t.at("rank.1.expect.output").data<double>()[5] += 0.5;
            t.at("rank.0.expect.input_splits").data<std::int64_t>()[1] -= 1;
        },
        kSmall);
    const Output output = moe({"verify", differs, "--dtype", "fp64"});
    EXPECT_EQ(output.code, kExitDiffers);
    EXPECT_TRUE(contains(output.out, "✗ rank 1 expect.output "));
    EXPECT_TRUE(contains(output.out, "✓ rank 0 expect.output "));
    EXPECT_TRUE(contains(output.out, "✗ rank 0 expect.input_splits "));
    EXPECT_TRUE(contains(output.out, "✓ rank 1 expect.input_splits "));
}

TEST_F(VerifyRanksTest, NamesAWrongNumberOfRanks) {
    const auto with = [](const char* ranks) {
        return [ranks](auto&, Metadata& m) { m["world_size"] = ranks; };
    };
    for (const char* bad : {"0", "-4", "four", "4.0", ""})
        EXPECT_TRUE(Rejects(with(bad), {std::string("__metadata__.world_size = ") + bad,
                                        "positive integer"}));
    // TP = 2, ETP EP = 4
    EXPECT_TRUE(Rejects(with("3"), {"moe_config: tensor_model_parallel_size = 2: ",
                                    "must divide the 3 ranks"}));
    EXPECT_TRUE(Rejects(
        with("6"), {"expert_tensor_parallel_size * expert_model_parallel_size = 4: "}));
    EXPECT_TRUE(Rejects(with("1"), {"tensor_model_parallel_size = 2: "}));
    EXPECT_TRUE(Rejects(with("8"), {"rank.4.input.hidden_states"}));
    EXPECT_TRUE(Rejects([](auto&, Metadata& m) { m.erase("world_size"); },
                        {"must divide the 1 ranks"}));
}

TEST_F(VerifyRanksTest, NamesWhatARankLacks) {
    EXPECT_TRUE(
        RejectsWithout("rank.2.input.hidden_states", {"rank.2.input.hidden_states"}));
    EXPECT_TRUE(RejectsWithout("rank.3.input.grad_output",
                               {"rank.3.input.grad_output = absent: "}));
    EXPECT_TRUE(RejectsWithout("experts.linear_fc2.weight",
                               {"experts.linear_fc2.weight = absent: ", "(4, 16, 12)"}));
    const auto without_expectations = [](TensorMap& t, auto&) {
        std::erase_if(
            t, [](const auto& item) { return item.first.starts_with("rank.3.expect."); });
    };
    EXPECT_TRUE(Rejects(without_expectations, {"no rank.3.expect.* tensor"}));
    // What all must have or none, and no expectation asks for
    const auto forward_on_rank_3 = [](TensorMap& t, auto&) {
        t.erase("rank.3.input.grad_output");
        std::erase_if(t, [](const auto& item) {
            return item.first.starts_with("rank.3.expect.grad.");
        });
    };
    EXPECT_TRUE(Rejects(forward_on_rank_3, {"rank.3.input.grad_output = absent: ",
                                            "all ranks must have it, or none"}));
    EXPECT_TRUE(RejectsTensor("rank.1.input.padding_mask",
                              Tensor::zeros({1, 4}, DType::u8),
                              {"rank.1.input.padding_mask = present: "}));
}

TEST_F(VerifyRanksTest, NamesWrongShapes) {
    // S = 4 and B = 1 on every rank, L = 2 experts of F / ETP = 6, EP = ETP = 2
    const auto zeros = [](Shape shape) { return Tensor::zeros(shape, DType::f64); };
    const auto counts = [](Shape shape) { return Tensor::zeros(shape, DType::i64); };
    EXPECT_TRUE(RejectsTensor("rank.1.input.hidden_states", zeros({4, 1, 15}),
                              {"rank.1.input.hidden_states = shape (4, 1, 15): "}));
    EXPECT_TRUE(RejectsTensor("rank.1.input.hidden_states", zeros({8, 1, 16}),
                              {"rank.1.input.grad_output = shape (4, 1, 16): "}));
    EXPECT_TRUE(RejectsTensor("rank.2.expect.output", zeros({8, 1, 16}),
                              {"rank.2.expect.output = shape (8, 1, 16): "}));
    EXPECT_TRUE(RejectsTensor("rank.2.expect.grad.experts.linear_fc1.weight",
                              zeros({4, 24, 16}), {"(4, 24, 16)", "(2, 12, 16)"}));
    EXPECT_TRUE(RejectsTensor("rank.2.expect.grad.experts.linear_fc2.weight",
                              zeros({2, 16, 12}), {"(2, 16, 12)", "(2, 16, 6)"}));
    EXPECT_TRUE(RejectsTensor("rank.0.expect.tokens_per_expert", counts({4}),
                              {"tokens_per_expert = shape (4): ", "(2)"}));
    for (const char* name : {"input_splits", "output_splits", "output_splits_tp"}) {
        const std::string splits = std::string("rank.0.expect.") + name;
        EXPECT_TRUE(RejectsTensor(splits, counts({3}), {splits + " = shape (3): "}));
        EXPECT_TRUE(RejectsTensor(splits, zeros({2}), {splits + " = fp64: "}));
    }
    EXPECT_TRUE(RejectsTensor("rank.3.expect.sent_hidden_states", zeros({8}),
                              {"rank.3.expect.sent_hidden_states = shape (8): "}));
    EXPECT_TRUE(RejectsTensor("experts.linear_fc1.weight", zeros({2, 12, 16}),
                              {"experts.linear_fc1.weight = shape (2, 12, 16): "}));
}

TEST_F(VerifyRanksTest, NamesNumbersThatCannotBe) {
    const auto file = changed(
        "bad",
        [](TensorMap& t, auto&) {
            t.at("rank.1.input.hidden_states").data<float>()[3] = NAN;
        },
        kCase);
    EXPECT_TRUE(
        IsRejected(file, {"rank.1.input.hidden_states[3] = nan: must be finite"}));
    // Finite numbers whose logits are not, on one rank only: the others do not wait.
    const auto overflow = changed(
        "overflow",
        [](TensorMap& t, Metadata& m) {
            Tensor& hidden = t.at("rank.1.input.hidden_states");
            std::fill_n(hidden.data<float>(), hidden.numel(), 3e38f);
            std::string& config = m.at("moe_config");
            config.replace(config.find("fp64"), 4, "fp32");  // the router's
        },
        kCase);
    EXPECT_TRUE(IsBadInput({"verify", "--json", "--dtype", "fp32", overflow},
                           {overflow + ": rank 1: logits[token 0, expert "}));
}

// AlltoAll and Flex take what AllGather cannot: it needs as many tokens on every rank.
TEST_F(VerifyRanksTest, NamesARankWithMoreTokens) {
    const auto uneven_with = [&](const json& fields) {
        return changed(
            "uneven",
            [&](TensorMap& t, Metadata& m) {
                std::erase_if(t, [](const auto& item) {
                    return item.first.starts_with("rank.1.expect.") ||
                           item.first.find("loss") != std::string::npos;
                });
                for (const char* input : {"hidden_states", "grad_output"})
                    t[std::string("rank.1.input.") + input] =
                        Tensor::zeros({5, 2, 16}, DType::f32);
                t["rank.1.expect.output"] = Tensor::zeros({5, 2, 16}, DType::f64);
                json config = json::parse(m["moe_config"]);
                config.update(fields);
                m["moe_config"] = config.dump();
            },
            kSmall);
    };
    const std::string uneven = uneven_with(json::object());
    const Output all =
        moe({"verify", uneven, "--dtype", "fp64", "--moe-token-dispatcher-type", "all"});
    EXPECT_EQ(all.code, kExitDiffers) << all.err;  // rank 0 meets other tokens
    const std::string refused =
        "moe_token_dispatcher_type = allgather: needs as many tokens on every rank that "
        "exchanges them: rank 0 has 12, rank 1 10\n";
    EXPECT_TRUE(
        contains(all.out, "- ep2_alltoall through allgather: skipped: " + refused))
        << all.out;
    for (const char* type : {"alltoall", "flex"}) {
        const std::string through = fmt::format("ep2_alltoall through {}  ", type);
        EXPECT_TRUE(contains(all.out, through)) << all.out;
        EXPECT_FALSE(contains(all.out, through + "skipped")) << all.out;
    }
    EXPECT_TRUE(contains(all.out, "✓ rank 1 expect.output")) << all.out;

    // Alone as well, and where it is the file's own
    for (const Words& words :
         {Words{"verify", uneven, "--moe-token-dispatcher-type", "allgather"},
          Words{"verify", uneven_with({{"moe_token_dispatcher_type", "allgather"}})}}) {
        const Output alone = moe(words);
        EXPECT_EQ(alone.code, kExitBadInput) << alone.out;
        EXPECT_TRUE(contains(alone.out, refused)) << alone.out;
    }
    // ceil(12 2 / 4 0.4) and ceil(10 2 / 4 0.4) rows
    const Output padded =
        moe({"verify", uneven_with({{"moe_expert_capacity_factor", 0.4},
                                    {"moe_pad_expert_input_to_capacity", true}})});
    EXPECT_EQ(padded.code, kExitBadInput) << padded.out;
    EXPECT_TRUE(
        contains(padded.out,
                 "moe_pad_expert_input_to_capacity = true: needs the same "
                 "capacity on every rank that exchanges tokens: rank 0 has 3, rank 1 2"))
        << padded.out;
}

TEST_F(VerifyRanksTest, NoticesTensorsItDoesNotKnowAndGoesOn) {
    const auto file = changed(
        "more",
        [](TensorMap& t, auto&) {
            for (const char* name : {"expect.output", "rank.2.expect.output",
                                     "rank.0.expect.magic", "rank.x.expect.output"})
                t[name] = Tensor::zeros({3}, DType::f32);
        },
        kSmall);
    const Output output = moe({"verify", "--dtype", "fp64", file});
    EXPECT_EQ(output.code, kExitOk) << output.err;
    EXPECT_EQ(count_lines(output.err), 4) << output.err;
}

TEST_F(VerifyRanksTest, GoesThroughOtherDispatchers) {
    const auto verify = [&](const char* file, const char* type) {
        return moe({"verify", golden(file), "--dtype", "fp64",
                    "--moe-token-dispatcher-type", type});
    };
    const Output all = verify(kSmall, "all");
    EXPECT_EQ(all.code, kExitOk) << all.out;
    for (const char* type : kDispatcherTypes)
        EXPECT_TRUE(contains(all.out, fmt::format("✓ ep2_alltoall through {}  ", type)));
    const std::string left_out = "- ep2_alltoall through allgather: not compared, ";
    EXPECT_TRUE(contains(all.out, left_out)) << all.out;
    EXPECT_FALSE(contains(all.out, "- ep2_alltoall through alltoall"));

    const Output one = verify(kSmall, "allgather");
    EXPECT_EQ(one.code, kExitOk);
    const std::string first_line = one.out.substr(0, one.out.find('\n'));
    EXPECT_TRUE(first_line.starts_with(left_out));
    for (const char* name :
         {"sent_hidden_states", "received_hidden_states", "input_splits",
          "output_splits_tp", "dispatched_probs", "expert_output"}) {
        EXPECT_TRUE(contains(first_line, std::string("expect.") + name)) << name;
        EXPECT_FALSE(contains(one.out, std::string("✓ rank 0 expect.") + name)) << name;
    }
    for (const char* name : {"output", "routing_map", "tokens_per_expert", "probs",
                             "grad.hidden_states", "grad.router.weight"})
        EXPECT_TRUE(contains(one.out, std::string("✓ rank 0 expect.") + name)) << name;

    // The rows of a padded file are not in it: nothing is left out.
    EXPECT_FALSE(contains(verify(kPadded, "allgather").out, "not compared"));
    EXPECT_TRUE(IsBadInput(
        {"verify", golden(kSmall), "--moe-token-dispatcher-type", "carrier_pigeon"},
        {"--moe-token-dispatcher-type = carrier_pigeon: ", "all"}));
}

// Only where "flex" is among the dispatchers is there one that a file cannot go through.
TEST_F(VerifyRanksTest, SaysWhenNothingRan) {
    const auto verify = [&](const Words& more) {
        Words words = {"verify",
                       golden(kPadded),
                       "--tier",
                       "reference_cpu",
                       "--moe-token-dispatcher-type",
                       "flex"};
        words.insert(words.end(), more.begin(), more.end());
        return moe(words);
    };
    if (std::find(kDispatcherTypes.begin(), kDispatcherTypes.end(),
                  std::string("flex")) == kDispatcherTypes.end()) {
        EXPECT_EQ(verify({}).code, kExitBadInput);
        return;
    }
    const Output none = verify({});
    EXPECT_EQ(none.code, kExitBadInput) << "nothing was checked";
    EXPECT_TRUE(contains(none.out, "0 of 1 files match, 1 skipped\n")) << none.out;
    const Output object = verify({"--json"});
    EXPECT_TRUE(contains(json::parse(object.out).at("skipped").get<std::string>(),
                         "moe_pad_expert_input_to_capacity"));
}

TEST_F(VerifyRanksTest, TakesTheHeapLimitOfAFlexConfig) {
    const auto with_heap = [&](const char* bytes) {
        return changed(
            "flex",
            [bytes](TensorMap& t, Metadata& m) {
                json config = json::parse(m.at("moe_config"));
                config["moe_token_dispatcher_type"] = "flex";
                config["moe_flex_peer_heap_bytes"] = json::parse(bytes);
                m["moe_config"] = config.dump();
                std::erase_if(t, [](const auto& item) {  // in the order of AlltoAll
                    const std::string& name = item.first;
                    return contains(name, ".expect.sent") ||
                           contains(name, ".expect.received") ||
                           contains(name, "_splits") ||
                           contains(name, ".expect.dispatched") ||
                           contains(name, ".expect.expert_output");
                });
            },
            kSmall);
    };
    const auto verify = [](const std::string& file, const std::string& type) {
        return moe({"verify", file, "--moe-token-dispatcher-type", type});
    };
    const std::string file = with_heap("100000");
    EXPECT_EQ(moe({"verify", file}).code, kExitOk);
    const Output all = verify(file, "all");  // the limit is flex's alone
    EXPECT_EQ(all.code, kExitOk) << all.out;
    EXPECT_FALSE(contains(all.out, "skipped: moe_flex")) << all.out;
    EXPECT_TRUE(IsRejected(with_heap("10"), {"moe_flex_peer_heap_bytes = 10: "}));
    EXPECT_TRUE(
        IsRejected(with_heap("-1"), {"moe_config: moe_flex_peer_heap_bytes = -1: "}));
}

TEST_F(VerifyRanksTest, SaysInJsonWhatWasNotCompared) {
    const Output output =
        moe({"verify", "--json", golden(kSmall), "--tier", "reference_cpu", "--dtype",
             "fp64", "--moe-token-dispatcher-type", "all"});
    std::istringstream lines(output.out);
    std::map<std::string, std::size_t> not_compared;
    for (std::string line; std::getline(lines, line);) {
        const json object = json::parse(line);
        not_compared[object.at("dispatcher")] = object.at("not_compared").size();
    }
    EXPECT_EQ(not_compared.size(), kDispatcherTypes.size());
    EXPECT_EQ(not_compared.at("alltoall"), 0u);
    EXPECT_EQ(not_compared.at("allgather"), 8u);
}

}  // namespace
}  // namespace moe::test
