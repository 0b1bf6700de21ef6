// Experts that somebody else gives, in the commands: token ids of a text, files of
// recorded choices, and golden cases that have them.

#include "cli/compare/given.h"
#include "cli/ranks/comparison.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "tests/cli/verify_support.h"

namespace moe::test {
namespace {

class GivenExpertsTest : public VerifyTest {
  protected:
    std::string compare() {
        return kSmall + write("text.txt", std::string(60, 'e') + std::string(60, 'o')) +
               " --num-experts 6 --tier reference_cpu --seed ";
    }
};

TEST_F(GivenExpertsTest, AreRecordedAndReplayed) {
    const std::string file = path("r.safetensors");
    const Output recorded = moe(compare() + "1 --record-routing " + file);
    EXPECT_EQ(recorded.code, kExitOk) << recorded.err;
    EXPECT_TRUE(has(recorded, "Routing " + file + "\n")) << recorded.out;
    const SafetensorsFile routing = SafetensorsFile::open(file);
    EXPECT_EQ(routing.names(), Words{"topk_idx"});
    const Tensor topk_idx = routing.tensor("topk_idx");
    EXPECT_EQ(topk_idx.dtype(), DType::i32);
    EXPECT_EQ(topk_idx.shape(), (Shape{99, 2}));

    // Other weights would choose others
    const auto load = [](const Output& output) {
        return output.out.substr(output.out.find("Expert load"));
    };
    const Output other = moe(compare() + "2"),
                 same = moe(compare() + "2 --record-routing " + path("again") +
                            " --replay-routing " + file);
    EXPECT_EQ(same.code, kExitOk) << same.err << same.out;
    const auto bars = [&](const Output& output) {
        const std::string text = load(output);
        return text.substr(0, text.find("golden cases"));
    };
    EXPECT_TRUE(has(same, "\nExperts are those of " + file + "\n")) << same.out;
    EXPECT_EQ(bars(same), bars(recorded));
    EXPECT_NE(bars(other), bars(recorded));
    EXPECT_TRUE(
        BitwiseEqual(SafetensorsFile::open(path("again")).tensor("topk_idx"), topk_idx));

    // A column's choice is its own
    const Output of_column = moe(compare() +
                                 "1 --record-column reference_cpu:fp32 "
                                 "--record-routing " +
                                 path("fp32"));
    EXPECT_EQ(of_column.code, kExitOk) << of_column.err;
    EXPECT_TRUE(
        BitwiseEqual(SafetensorsFile::open(path("fp32")).tensor("topk_idx"), topk_idx));
    EXPECT_TRUE(IsBadInput(
        split(compare() + "1 --record-column naive_gpu:fp32 --record-routing x"),
        {"--record-column = naive_gpu:fp32: columns are reference_cpu:fp64, "
         "reference_cpu:fp32"}));
    EXPECT_TRUE(IsBadInput(split("compare --ranks 2 --record-column reference_cpu:fp64"),
                           {"--record-column = reference_cpu:fp64: must be left out with "
                            "--ranks"}));

    const auto refuses = [&](const std::string& flags, const std::string& words) {
        return IsBadInput(split(compare() + "1 --replay-routing " + file + " " + flags),
                          {words});
    };
    EXPECT_TRUE(refuses("--moe-router-topk 3",
                        file +
                            ": topk_idx = int32 (99, 2): must be int64 or int32 (N, K) "
                            "= (99, 3)"));
    EXPECT_TRUE(IsBadInput(
        split("compare --ranks 3 --scale 256 --num-experts 6 --replay-routing " + file),
        {file + ": __metadata__.world_size = 1: must be 3, as many ranks as now"}));
    EXPECT_TRUE(
        refuses("--moe-router-load-balancing-type sinkhorn --moe-aux-loss-coeff 0",
                "moe_enable_routing_replay = true: must be false with sinkhorn"));
    save_safetensors(
        file, {{"topk_idx", Tensor::zeros({99, 2}, DType::i32)}},
        {{"format", "moe-routing-1"}, {"num_moe_experts", "6"}, {"world_size", "1"}});
    EXPECT_TRUE(refuses("", file + ": topk_idx[0, 1] = 0: must not name an expert"));
    save_safetensors(
        file, {{"topk_idx", topk_idx}},
        {{"format", "moe-routing-1"}, {"num_moe_experts", "7"}, {"world_size", "1"}});
    EXPECT_TRUE(refuses("", file + ": __metadata__.num_moe_experts = 7: must be 6"));
    save_safetensors(file, {{"topk_idx", topk_idx}}, {});
    EXPECT_TRUE(
        refuses("", file + ": __metadata__.format = absent: must be moe-routing-1"));
    EXPECT_TRUE(
        IsBadInput(split(compare() + "1 --record-routing " + path("no/where")),
                   {"--record-routing = ", "must be a file in a folder that is there"}));
}

// One rank's tokens, and each rank's own: the same experts, whoever holds them.
TEST_F(GivenExpertsTest, FollowTheTokensOfEachRank) {
    NEEDS_DEVICE();
    available_tiers();
    // The choice is the router's, who knows no dispatcher
    for (const auto& [dispatcher, replays] : std::vector<std::pair<std::string, bool>>{
             {"allgather", false}, {"alltoall", true}, {"flex", false}}) {
        SCOPED_TRACE(dispatcher);
        RankComparisonRequest request;
        MoEConfig config = small_config(16, 6, 3, 8);
        config.tensor_model_parallel_size = config.expert_model_parallel_size = 2;
        config.expert_tensor_parallel_size = 1;
        config.sequence_parallel = true;
        config.moe_token_dispatcher_type = dispatcher;
        config.moe_router_load_balancing_type = {"aux_loss"};
        config.moe_aux_loss_coeff = {0.5};
        replays ? void(config.moe_enable_routing_replay = true)
                : void(config.moe_router_hash_vocab_size = 257);
        config.finalize();
        request.configs = {config};
        request.sizes = distributed::parallel_sizes(config, 4);
        request.text =
            read_text(write("text.txt", "the quick brown fox jumps over the lazy dog"),
                      10, 2, false);
        const RankTokens tokens = split_tokens(request.sizes, 10, 2);
        if (replays) {
            MoEConfig table = small_config(16, 6, 3);
            table.moe_router_hash_vocab_size = 20;
            table.finalize();
            const Tensor whole = random_parameters(table, 9).at("router.tid2eid");
            for (const auto& mine : tokens.of_rank)
                request.target_topk_idx.push_back(take_rows(whole, mine));
        }
        for (const char* tier : {"naive_gpu", "optimized_gpu"})
            request.columns.push_back(ModuleSpec::uniform({tier, DType::bf16}));
        const RankComparison result = run_rank_comparison(request);
        EXPECT_TRUE(result.ok);
        for (const RankColumn& column : result.dispatchers[0].columns)
            for (const RankValue& value : column.values)
                EXPECT_EQ(value.detail, "") << column.label << " " << value.name;
        if (replays) {
            EXPECT_EQ(to_doubles(result.topk_idx),
                      to_doubles(join_rows(request.target_topk_idx, tokens)));
        }
    }
}

TEST_F(GivenExpertsTest, TakeTheBytesOfATextAsIds) {
    MoEConfig config = small_config();
    const TextTokens text = {"t", 2, 2, {9, 255, 0, 7}};
    EXPECT_FALSE(text_ids(config, text).defined());
    config.moe_router_hash_vocab_size = 256;
    EXPECT_EQ(to_doubles(text_ids(config, text)), (std::vector<double>{9, 255, 0, 7}));
    EXPECT_EQ(to_doubles(by_sequence(text_ids(config, text), 2, 2)),
              (std::vector<double>{9, 0, 255, 7}));
    for (const char* command : {"compare --report none --golden none",
                                "compare --ranks 2", "trace --text README.md"})
        EXPECT_TRUE(IsBadInput(
            split(std::string(command) + " --moe-router-hash-vocab-size 255" +
                  (std::string(command).starts_with("trace")
                       ? ""
                       : " --text " + write("t", std::string(4096, 'e')))),
            {"moe_router_hash_vocab_size = 255: must be at least 256 with a text"}));
    const Output all =
        moe(kSmall +
            write("all.txt", "the quick brown fox jumps over the lazy dog, " +
                                 std::string(60, 'o')) +
            " --moe-router-hash-vocab-size 257 --eval");
    EXPECT_EQ(all.code, kExitOk) << all.out << all.err;
    const Output traced = moe("trace --moe-router-hash-vocab-size 5");
    EXPECT_EQ(traced.code, kExitOk) << traced.err;
    EXPECT_TRUE(has(traced, "  token_ids (8, 1) int64\n")) << traced.out;
    EXPECT_EQ(moe("trace --ranks 2 --moe-router-hash-vocab-size 5").code, kExitOk);
    EXPECT_TRUE(IsBadInput(split("bench --moe-router-hash-vocab-size 5"),
                           {"moe_router_hash_vocab_size = 5: must be left out here"}));
}

TEST_F(GivenExpertsTest, AreReadFromGoldenCases) {
    const auto hash = [&](const std::string& name, const Change& change) {
        return changed(name, change, "models/hf_deepseek_v4_hash");
    };
    const auto replay = [&](const std::string& name, const Change& change) {
        return changed(name, change, "replay_softmax_post");
    };
    EXPECT_TRUE(
        IsRejected(hash("a", [](TensorMap& t, auto&) { t.erase("input.token_ids"); }),
                   {"input.token_ids = absent: required, with shape (3, 7)"}));
    EXPECT_TRUE(
        IsRejected(hash("b", [](TensorMap& t, auto&) { t.erase("router.tid2eid"); }),
                   {"router.tid2eid = absent: required, with shape (17, 3)"}));
    EXPECT_TRUE(IsRejected(
        hash("c", [](TensorMap& t,
                     auto&) { t["input.token_ids"].data<std::int64_t>()[8] = 17; }),
        {"token_ids[1, 1] = 17: must be from 0 to 16"}));
    EXPECT_TRUE(IsRejected(
        replay("d",
               [](TensorMap& t, auto&) {
                   t["input.target_topk_idx"] = Tensor::zeros({27, 2}, DType::i32);
               }),
        {"input.target_topk_idx = shape (27, 2): ", "(27, 3)"}));
    EXPECT_TRUE(IsRejected(
        replay("e",
               [](TensorMap& t, auto&) {
                   t["input.target_topk_idx"] = Tensor::zeros({27, 3}, DType::i32);
               }),
        {"target_topk_idx[0, 1] = 0: must not name"}));
    EXPECT_TRUE(IsRejected(
        changed(
            "one",
            [](TensorMap& t, auto&) {
                EXPECT_EQ(t.erase("rank.1.input.target_topk_idx"), 1u);
            },
            "ranks/tp2_ep2_replay"),
        {"rank.1.input.target_topk_idx = absent: all ranks must have it, or none"}));
    // Without it the router chooses, and nothing is as it was
    const Output free =
        moe({"verify", "--dtype", "fp64", "--tier", "reference_cpu",
             replay("f", [](TensorMap& t, auto&) { t.erase("input.target_topk_idx"); })});
    EXPECT_EQ(free.code, kExitDiffers) << free.out;
    EXPECT_TRUE(has(free, "✗ expect.routing_map")) << free.out;
    const Output off = moe({"verify", "--dtype", "fp64", "--tier", "reference_cpu",
                            replay("g", [](auto&, Metadata& m) {
                                std::string& config = m.at("moe_config");
                                const std::string on =
                                    "\"moe_enable_routing_replay\": true";
                                config.replace(config.find(on), on.size(),
                                               "\"moe_enable_routing_replay\": false");
                            })});
    EXPECT_EQ(off.code, kExitDiffers);
    EXPECT_NE(off.err.find("input.target_topk_idx is not used: moe_enable_routing_replay "
                           "is false"),
              std::string::npos)
        << off.err;
}

}  // namespace
}  // namespace moe::test
