// What a rank asks of its device, counted: launches and waits of one thread, in a layer
// that nobody watches, and the table of `moe compare --ranks`.

#include <future>
#include <thread>

#include "cli/ranks/asked.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "gpu/counters.h"
#include "gpu/thread_counters.h"
#include "tests/cli/support.h"

namespace moe::test {
namespace {

using gpu::ThreadCounters;

TEST(ThreadCounters, AreOfOneThreadAndTellExchangesApart) {
    const ThreadCounters before = gpu::thread_counters();
    const gpu::Counters all = gpu::counters();
    gpu::count_launch("", nullptr);
    {
        const gpu::ExchangeScope outer;
        {
            const gpu::ExchangeScope inner;
            gpu::count_host_wait();
        }
        gpu::count_launch("", nullptr);
        gpu::count_launch("", nullptr);
    }
    gpu::count_host_wait();
    const auto theirs = std::async(std::launch::async, [] {
        gpu::count_launch("", nullptr);
        return gpu::thread_counters();
    });
    theirs.wait();
    EXPECT_EQ(gpu::thread_counters() - before, (ThreadCounters{1, 1, 2, 1}));
    EXPECT_EQ(gpu::counters().launches - all.launches, 4);
    EXPECT_EQ(gpu::counters().host_waits - all.host_waits, 2);
}

RankJob asked_job(const std::string& dispatcher, std::int64_t ffn, const ModuleSpec& spec,
                  int ranks) {
    RankJob job;
    job.config = small_config(24, 6, 3, ffn);
    job.config.moe_token_dispatcher_type = dispatcher;
    job.config.moe_shared_expert_intermediate_size = ffn + 8;
    job.config.expert_model_parallel_size = ranks;
    job.config.finalize();
    job.spec = spec;
    job.parameters = random_parameters(distributed::single_rank_config(job.config), 2);
    job.hidden = random_tensor({7 * ranks, 24}, 3);
    job.doutput = random_tensor({7 * ranks, 24}, 4);
    return job;
}

/// What the layer as it is asks, the second time that it runs.
ThreadCounters asked_by_the_whole(const RankJob& job,
                                  const std::vector<std::int64_t>& mine,
                                  const GroupsPtr& groups) {
    MoELayer layer(job.config, job.spec,
                   distributed::shard_parameters(job.config, job.parameters, *groups),
                   groups);
    const auto place = [&](const Tensor& whole) {
        return transfer(take_rows(whole, mine).reshaped({7, 1, 24}),
                        {MemorySpace::device, job.spec.dispatcher.dtype});
    };
    const Tensor hidden = place(job.hidden), doutput = place(job.doutput);
    ThreadCounters before;
    for (int run = 0; run < 2; ++run) {
        before = gpu::thread_counters();
        const auto forward = layer.forward(hidden, {}, {});
        layer.backward(doutput, forward.saved, {});
    }
    return gpu::thread_counters() - before;
}

// 300 is five tiles, 236 four: more than one, whose parts of a sum a kernel adds up.
TEST(AskedOfTheDevice, IsTheSameInANarrowLayer) {
    NEEDS_DEVICE();
    available_tiers();
    constexpr int kRanks = 2;
    const RankJob job = asked_job(
        "flex", 300, ModuleSpec::uniform({"optimized_gpu", DType::bf16}), kRanks);
    EXPECT_EQ(narrowed(job.config).ffn(), 192 + 300 % 64);
    EXPECT_EQ(narrowed(job.config).shared_ffn(), 192 + 308 % 64);
    EXPECT_EQ(narrowed(asked_job("flex", 255, {}, kRanks).config).ffn(), 255);
    RankTokens tokens{7, 1, {{}, {}}};
    for (std::int64_t t = 0; t < 7 * kRanks; ++t) tokens.of_rank[t / 7].push_back(t);
    std::vector<ThreadCounters> narrow(kRanks), whole(kRanks);
    distributed::run_ranks(kRanks, [&](distributed::Communicator& world) {
        const auto groups = distributed::make_process_groups(world, job.config);
        const int rank = world.rank();
        whole[rank] = asked_by_the_whole(job, tokens.of_rank[rank], groups);
        narrow[rank] = count_asked(job, tokens, groups).counts;
    });
    for (int rank = 0; rank < kRanks; ++rank)
        for (const auto count : kCountsAsked)
            EXPECT_EQ(narrow[rank].*count, whole[rank].*count);
    EXPECT_GT(whole[0].launches, 20);
}

class AskedTest : public CliTest {};

TEST_F(AskedTest, CompareShowsItForEveryDispatcherAndTier) {
    NEEDS_DEVICE();
    const std::string line =
        "compare --hidden-size 24 --moe-ffn-hidden-size 40 --scale 1 "
        "--seq-length 7 --micro-batch-size 2 --num-experts 6 --moe-router-topk 3 "
        "--moe-router-dtype fp32 "
        "--text " +
        write("text.txt", "abcdefghijklmnopqrstuvwxyz") + " --report ";
    const Output output = moe(line + path("report") + " --ranks 2");
    EXPECT_EQ(output.code, kExitOk) << output.out << output.err;
    for (const char* words :
         {"\nAsked of the device in one forward and backward, by the rank that asks most "
          "(+ n: by its exchanges over threads); counted where nobody watches\n",
          "\n"
          "                                        launches"
          "                      host waits\n"
          "                   allgather  alltoall      flex   allgather  alltoall      "
          "flex\n",
          "\nreference_cpu:fp32         ·         ·         ·           ·         ·      "
          "   ·\n",
          "\nnaive_gpu:fp32        35 + 3        68        43      26 + 3        26      "
          "  36\n"
          // AllGather's sums of ⑩ are cast to fp32 and back
          "naive_gpu:bf16        37 + 3        68        43      32 + 3        32        "
          "42\n"
          "optimized_gpu:bf16    18 + 3        22        29       0 + 3         1        "
          " 0\n"})
        EXPECT_TRUE(has(output, words)) << words << "\n" << output.out;
    const std::string html = read(path("report/index.html"));
    EXPECT_NE(html.find("What a rank asks of its device"), std::string::npos);
    EXPECT_NE(html.find("<tr><td>naive_gpu:fp32</td><td>35 + 3</td><td>"),
              std::string::npos);
    // All is the host's own work: there is nothing to show
    const Output host = moe(line + "none --ranks 2 --tier reference_cpu");
    EXPECT_EQ(host.code, kExitOk) << host.err;
    EXPECT_FALSE(has(host, "Asked of the device"));
    // One rank exchanges nothing
    const Output alone = moe(line + "none --ranks 1 --tier naive_gpu --dtype fp32");
    EXPECT_TRUE(has(alone, "by the rank that asks most; counted where")) << alone.out;
    EXPECT_FALSE(has(alone, "by its exchanges")) << alone.out;
}

}  // namespace
}  // namespace moe::test
