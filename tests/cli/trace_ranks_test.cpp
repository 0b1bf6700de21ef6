// `moe trace --ranks`: one dispatch, rank by rank, and what it takes and refuses.

#include "tests/cli/support.h"

namespace moe::test {
namespace {

class TraceRanksTest : public CliTest {};

/// Columns of the longest line.
std::int64_t widest(const std::string& text) {
    std::istringstream lines(text);
    std::int64_t most = 0;
    for (std::string line; std::getline(lines, line);)
        most = std::max<std::int64_t>(
            most, std::count_if(line.begin(), line.end(),
                                [](char c) { return (c & 0xC0) != 0x80; }));
    return most;
}

TEST_F(TraceRanksTest, TakesADispatcherThatCanDoWhatIsAsked) {
    const std::string layer =
        R"({"hidden_size":5,"num_moe_experts":4,"moe_ffn_hidden_size":3,
            "moe_shared_expert_intermediate_size":3,"add_bias_linear":false,
            "moe_shared_expert_overlap":true)";
    const std::string trace = "trace --ranks 2 --config " + write("c.json", layer + "}");
    // Without a word in the file it would be AllGather, which cannot overlap
    const Output overlapped = moe(trace);
    EXPECT_EQ(overlapped.code, kExitOk) << overlapped.err;
    EXPECT_TRUE(has(overlapped, "top-2, alltoall;")) << overlapped.out;
    const Output with_heap = moe(trace + " --moe-flex-peer-heap-bytes 100000");
    EXPECT_EQ(with_heap.code, kExitOk) << with_heap.err;
    EXPECT_TRUE(has(with_heap, "top-2, flex;")) << with_heap.out;
    EXPECT_TRUE(
        IsBadInput(trace + " --moe-token-dispatcher-type allgather",
                   {"moe_shared_expert_overlap = true: needs", "alltoall or flex"}));
    EXPECT_TRUE(IsBadInput(trace + " --moe-flex-peer-heap-bytes 100000 "
                                   "--moe-token-dispatcher-type alltoall",
                           {"moe_flex_peer_heap_bytes = 100000: needs", "flex"}));
    const Output all =
        moe("compare --report none --ranks 2 --seq-length 3 "
            "--tier reference_cpu --moe-flex-peer-heap-bytes 100000 "
            "--config " +
            write("d.json", layer + "}"));
    EXPECT_EQ(all.code, kExitOk) << all.err;
    EXPECT_TRUE(has(all, "Without allgather: moe_shared_expert_overlap")) << all.out;
    EXPECT_TRUE(has(all, "✓ alltoall: 2 ranks give")) << all.out;
    EXPECT_TRUE(has(all, "✓ flex: 2 ranks give")) << all.out;
}

TEST_F(TraceRanksTest, SaysWhatCapacityDropped) {
    const Output trace = moe("trace --ranks 2 --moe-expert-capacity-factor 0.5");
    EXPECT_EQ(trace.code, kExitOk) << trace.out;
    EXPECT_TRUE(has(trace, "the experts that take them (capacity)\n"));
    EXPECT_TRUE(has(trace, "  none: all were dropped\n")) << trace.out;
    EXPECT_TRUE(has(trace, "all experts, and takes each rank's tokens in turn\n"));
    EXPECT_TRUE(has(moe("trace --ranks 2 --moe-expert-capacity-factor 1 "
                        "--moe-pad-expert-input-to-capacity"),
                    " padding"));
}

TEST_F(TraceRanksTest, ShowsAWholeDispatch) {
    const std::string all = "trace --ranks 2 --moe-router-topk 4 ";  // K = E
    const Output alltoall = moe(all);
    EXPECT_EQ(alltoall.code, kExitOk) << alltoall.out << alltoall.err;
    EXPECT_LE(widest(alltoall.out), 100);
    const std::string text = squeezed(alltoall.out);
    for (const char* words :
         {"8 tokens on 2 ranks, 4 experts, top-4, alltoall; reference_cpu:fp64\n",
          "rank 1 has e2 e3, exchanges with ranks 0 1\n t4 ",
          // 8 (48 + 8) + 4 8 bytes
          "rank 0 to 1 8 rows, 464 B t0→e2 t1→e2 t2→e2 t3→e2 t0→e3 t1→e3 t2→e3 t3→e3\n",
          "input_splits 8 8\n",
          "rank 0 from 1 8 rows t4→e0 t5→e0 t6→e0 t7→e0 t4→e1 t5→e1 t6→e1 t7→e1\n",
          "to its token's rank\nrank 0 keeps 8 rows t0→e0 t1→e0 t2→e0 t3→e0 t0→e1 ",
          "rank 0 to 1 8 rows t4→e0 t5→e0 t6→e0 t7→e0 t4→e1 t5→e1 t6→e1 t7→e1\n",
          "✓ the outputs are those of one rank: bit for bit\n"})
        EXPECT_NE(text.find(words), std::string::npos) << words << "\n" << alltoall.out;
    const std::string allgather =
        squeezed(moe(all + "--moe-token-dispatcher-type allgather").out);
    EXPECT_NE(allgather.find("rank 0 to 1 4 rows, 336 B t0 t1 t2 t3\n"),
              std::string::npos)
        << allgather;  // 4 (48 + 4 (8 + 1))
    const std::string flex = squeezed(moe(all + "--moe-token-dispatcher-type flex").out);
    EXPECT_NE(flex.find("rank 1 to 0 4 rows, 432 B t4→e0,e1 t5→e0,e1"), std::string::npos)
        << flex;  // 4 (48 + 4 (8 + 8) + 16) + 2 8
    EXPECT_NE(flex.find("rank 0 to 1 4 rows Σ(t4→e0,e1)"), std::string::npos) << flex;
}

TEST_F(TraceRanksTest, IsTrueForEveryDispatcherTierAndGrid) {
    NEEDS_DEVICE();
    for (const char* dispatcher : {"allgather", "alltoall", "flex"})
        for (const char* tier : {"", "--tier naive_gpu --dtype bf16"})
            for (const char* grid :
                 {"2", "4 --tensor-model-parallel-size 2 --expert-model-parallel-size 2",
                  "4 --tensor-model-parallel-size 2 --moe-expert-capacity-factor 0.5 "
                  "--expert-tensor-parallel-size 1 --expert-model-parallel-size 2",
                  "2 --seq-length 0", "2 --hidden-size 1", "2 --moe-latent-size 3"}) {
                const Output output =
                    moe(fmt::format("trace --ranks {} {} --moe-token-dispatcher-type {}",
                                    grid, tier, dispatcher));
                EXPECT_EQ(output.code, kExitOk) << dispatcher << tier << grid << "\n"
                                                << output.out << output.err;
                EXPECT_TRUE(has(output, "✓ the outputs are those of one rank"));
                EXPECT_LE(widest(output.out), 100) << output.out;
            }
}

TEST_F(TraceRanksTest, NamesTheRowsThatPad) {
    NEEDS_DEVICE();
    for (const char* dispatcher : {"alltoall", "flex"})
        for (const char* tier : {"", "--tier naive_gpu --dtype bf16"})
            for (const char* tokens : {"--seq-length 24", "--seq-length 3"}) {
                const Output output = moe(fmt::format(
                    "trace --ranks 2 --moe-router-padding-for-quantization {} {} "
                    "--moe-token-dispatcher-type {}",
                    tokens, tier, dispatcher));
                EXPECT_EQ(output.code, kExitOk) << dispatcher << tier << tokens << "\n"
                                                << output.out << output.err;
                EXPECT_TRUE(has(output, "✓ the outputs are those of one rank"));
                EXPECT_EQ(has(output, "padding"), dispatcher == std::string("alltoall"));
            }
}

}  // namespace
}  // namespace moe::test
