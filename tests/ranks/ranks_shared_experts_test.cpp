// The shared experts over tensor-parallel ranks, against one rank that has everything.

#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "tests/support.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::rows_of;

constexpr std::int64_t kHidden = 12;

/// What shared experts made of their tokens, on the host.
struct Outcome {
    Tensor output, dhidden;  // (T, H)
    TensorMap gradients;
    std::map<std::string, distributed::BytesByPeer> sent;  // in the forward
};

class RanksSharedExpertsTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    static MoEConfig config(int tp, bool gate) {
        MoEConfig c = small_config(kHidden);
        c.moe_shared_expert_intermediate_size = 18;
        c.moe_shared_expert_gate = gate;
        c.tensor_model_parallel_size = tp;
        c.sequence_parallel = tp > 1;
        c.expert_tensor_parallel_size = 1;
        c.finalize();
        return c;
    }
    /// Rows [first, first + count) of the tokens; the gradient adds to what is there.
    Outcome run(const MoEConfig& c, const TensorMap& parameters, const GroupsPtr& groups,
                std::int64_t first, std::int64_t count) const {
        const auto shared =
            find_tier("tier", GetParam().tier)
                .make_shared_experts(c, GetParam().dtype, parameters, groups);
        const auto mine = [&](std::uint64_t seed) {
            return transfer(
                rows_of(random_tensor({count_ + 1, kHidden}, seed), first, count),
                shared->placement());
        };
        const auto on_host = [&](const Tensor& tensor) {
            return transfer(tensor, {MemorySpace::host, tensor.dtype()});
        };
        if (groups) groups->world->ledger().reset_sent();
        auto forward = shared->forward(mine(1), {});
        Outcome outcome;
        if (groups) outcome.sent = groups->world->ledger().sent();
        outcome.output = on_host(forward.output);
        Tensor dhidden = mine(2);
        shared->backward(dhidden, outcome.gradients, mine(3), *forward.saved, {});
        outcome.dhidden = on_host(dhidden);
        for (auto& [name, gradient] : outcome.gradients) gradient = on_host(gradient);
        return outcome;
    }
    static constexpr std::int64_t count_ = 30;
};

TEST_P(RanksSharedExpertsTest, ShardsEqualOneRank) {
    for (const bool gate : {false, true}) {
        for (const int tp : {1, 2, 3}) {
            const MoEConfig c = config(tp, gate);
            const TensorMap parameters =
                random_parameters(distributed::single_rank_config(c), 5);
            const Outcome whole =
                run(distributed::single_rank_config(c), parameters, nullptr, 0, count_);
            const std::int64_t T = count_ / tp;
            std::vector<Outcome> ranks(tp);
            std::vector<TensorMap> expected(tp);
            distributed::run_ranks(tp, [&](Communicator& world) {
                const int r = world.rank();
                const auto groups = make_process_groups(world, c);
                ranks[r] =
                    run(c, shard_parameters(c, parameters, *groups), groups, r * T, T);
                expected[r] = shard_parameters(c, whole.gradients, *groups);
            });
            const double bound = bound_of(GetParam());
            std::vector<double> dgate(kHidden);
            for (int r = 0; r < tp; ++r) {
                SCOPED_TRACE(testing::Message() << "rank " << r << " of " << tp);
                EXPECT_TRUE(
                    Close(ranks[r].output, rows_of(whole.output, r * T, T), bound));
                EXPECT_TRUE(
                    Close(ranks[r].dhidden, rows_of(whole.dhidden, r * T, T), bound));
                EXPECT_EQ(ranks[r].gradients.size(), gate ? 3u : 2u);
                for (const auto& [name, gradient] : ranks[r].gradients) {
                    if (name != "shared_experts.gate_weight") {
                        EXPECT_TRUE(Close(gradient, expected[r].at(name), bound)) << name;
                        continue;
                    }
                    // Each rank's own tokens
                    const std::vector<double> values = to_doubles(gradient);
                    for (std::int64_t i = 0; i < kHidden; ++i) dgate[i] += values[i];
                }
            }
            if (gate) {
                EXPECT_TRUE(Close(Tensor::from({1, kHidden}, dgate),
                                  whole.gradients.at("shared_experts.gate_weight"),
                                  bound));
            }
        }
    }
}

TEST_P(RanksSharedExpertsTest, ExchangesTokensInTheirOwnDtype) {
    const MoEConfig c = config(2, true);
    const TensorMap parameters = random_parameters(distributed::single_rank_config(c), 5);
    constexpr std::int64_t T = 7;
    distributed::run_ranks(2, [&](Communicator& world) {
        const auto groups = make_process_groups(world, c);
        const int r = world.rank();
        const Outcome mine =
            run(c, shard_parameters(c, parameters, *groups), groups, r * T, T);
        const auto bytes = T * kHidden * std::int64_t(size_of(GetParam().dtype));
        EXPECT_EQ(mine.sent.at("all_gather"), (distributed::BytesByPeer{{1 - r, bytes}}));
        EXPECT_EQ(mine.sent.at("reduce_scatter"),
                  (distributed::BytesByPeer{{1 - r, bytes}}));
        EXPECT_EQ(mine.sent.size(), 2u);
    });
}

TEST_P(RanksSharedExpertsTest, TakesNoTokens) {
    const MoEConfig c = config(2, true);
    const TensorMap parameters = random_parameters(distributed::single_rank_config(c), 5);
    distributed::run_ranks(2, [&](Communicator& world) {
        const auto groups = make_process_groups(world, c);
        const Outcome mine =
            run(c, shard_parameters(c, parameters, *groups), groups, 0, 0);
        EXPECT_EQ(mine.output.shape(), (Shape{0, kHidden}));
        for (const auto& [name, gradient] : mine.gradients)
            for (double value : to_doubles(gradient)) EXPECT_EQ(value, 0.0) << name;
    });
}

INSTANTIATE_TEST_SUITE_P(Tiers, RanksSharedExpertsTest,
                         testing::ValuesIn(on_ranks(available_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
