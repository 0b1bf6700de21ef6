// chunk_map_test.cu: where rows of many ranks stand, against the plan's own lists.

#include "optimized_gpu/chunk_map.h"

#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "tests/optimized/permutation_support.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::ExchangePlan;

/// Arrived rows in the order of the plan's chunks.
Ints sorted_rows(const ExchangePlan& plan) {
    Ints starts = {0}, rows;
    for (const std::int64_t size : plan.chunk_sizes)
        starts.push_back(starts.back() + int(size));
    for (const std::int64_t chunk : plan.chunk_order)
        for (int row = starts[chunk]; row < starts[chunk + 1]; ++row) rows.push_back(row);
    return rows;
}

void expect_sorted(const ExchangePlan& plan, const distributed::ProcessGroups& groups) {
    const Ints expected = sorted_rows(plan);
    const int N = int(expected.size()), L = int(plan.tokens_per_expert.size());
    std::vector<float> probs(N);
    for (int r = 0; r < N; ++r) probs[r] = 0.5f + float(r);
    const RowMap map =
        optimized::make_chunk_map(plan, groups.ep->size(), groups.expt_tp->size(),
                                  groups.ep->rank() * L, gpu::to_device(probs), nullptr);
    gpu::synchronize();
    Ints offsets = {0}, counts;
    for (const std::int64_t count : plan.tokens_per_expert) {
        counts.push_back(int(count));
        offsets.push_back(offsets.back() + int(count));
    }
    EXPECT_EQ(gpu::to_host<int>(map.offsets), offsets);
    EXPECT_EQ(gpu::to_host<int>(map.rows_per_expert), counts);
    EXPECT_EQ(map.row_token.defined(), !plan.arrives_sorted());
    if (plan.arrives_sorted()) return;
    EXPECT_EQ(gpu::to_host<int>(map.row_token), expected);
    const Ints token_rows = gpu::to_host<int>(map.token_rows);
    const std::vector<float> row_probs = gpu::to_host<float>(map.row_probs);
    for (int r = 0; r < N; ++r) {
        EXPECT_EQ(token_rows[expected[r]], r);
        EXPECT_EQ(row_probs[r], probs[expected[r]]);
    }
}

TEST(ChunkMap, SortsWhatManyRanksSent) {
    struct Case {
        int ep, etp, experts;
    };
    for (const auto& [ep, etp, E] :
         {Case{3, 1, 9}, Case{2, 2, 6}, Case{1, 2, 5}, Case{2, 1, 600}, Case{4, 1, 4}}) {
        MoEConfig config = small_config(12, E);
        config.expert_model_parallel_size = ep;
        config.expert_tensor_parallel_size = etp;
        config.finalize();
        const int world = ep * etp;
        Ints sent(std::size_t(world) * E);  // some chunks empty, one longer than a block
        for (std::size_t i = 0; i < sent.size(); ++i)
            sent[i] = E > 100 ? int(i % 2) : int(i * i % 7) * (i == 3 ? 90 : 1);
        distributed::run_ranks(world, [&](distributed::Communicator& all) {
            const auto groups = make_process_groups(all, config);
            ExchangePlan plan = distributed::make_exchange_plan(
                {sent.begin(), sent.end()}, E, *groups->ep, *groups->expt_tp);
            plan.counts = gpu::to_device(sent).reshaped({world, E});
            expect_sorted(plan, *groups);
            // Padded to capacity, nobody counts
            expect_sorted(distributed::plan_padded_exchange(5, E, *groups), *groups);
            expect_sorted(distributed::plan_padded_exchange(0, E, *groups), *groups);
        });
    }
}

}  // namespace
}  // namespace moe::test
