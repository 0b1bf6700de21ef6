// moe_shared_expert_overlap: the dispatcher runs the shared experts, and no bit changes.

#include <functional>

#include "core/error.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "tests/ranks/support.h"
#ifdef MOE_EXECUTOR
#include "tests/gpu/held_streams.h"
#endif

namespace moe::test {
namespace {

using distributed::Communicator;

constexpr std::int64_t kSeq = 5, kBatch = 3, kHidden = 12;

MoEConfig config(int ranks, bool gate) {
    MoEConfig c = small_config(kHidden);
    c.moe_shared_expert_intermediate_size = 12;
    c.moe_shared_expert_gate = gate;
    c.moe_router_load_balancing_type = {"aux_loss"};
    c.moe_aux_loss_coeff = {0.5};
    c.tensor_model_parallel_size = c.expert_model_parallel_size = ranks;
    c.expert_tensor_parallel_size = 1;
    c.sequence_parallel = ranks > 1;
    c.finalize();
    return c;
}

class SharedExpertOverlapTest : public testing::TestWithParam<ComponentSpec> {
  protected:
    std::unique_ptr<SharedExperts> make(const MoEConfig& c) const {
        return find_tier("tier", GetParam().tier)
            .make_shared_experts(c, GetParam().dtype, random_parameters(c, 3));
    }
    Tensor random(const Placement& placement, std::uint64_t seed) const {
        return transfer(random_tensor({kSeq * kBatch, kHidden}, seed), placement);
    }
};

/// Everything that two micro-batches leave behind, the second forward before the first
/// backward.
TensorMap run(const MoEConfig& c, const ComponentSpec& supplier, const GroupsPtr& groups,
              int rank) {
    MoELayer layer(
        c, ModuleSpec::uniform(supplier),
        shard_parameters(c, random_parameters(distributed::single_rank_config(c), 3),
                         groups ? *groups : *distributed::single_rank_groups()),
        groups);
    const auto random = [&](std::uint64_t seed) {
        return random_tensor({kSeq, kBatch, kHidden}, seed + 10 * rank);
    };
    TensorMap values;
    const auto keep = [&](const std::string& name, const Tensor& tensor) {
        values[name] = transfer(tensor, {MemorySpace::host, tensor.dtype()});
    };
    const auto first = layer.forward(random(1), {}, {});
    const auto second = layer.forward(random(2), {}, {});
    for (const auto* forward : {&first, &second}) {
        const std::string batch = forward == &first ? "first " : "second ";
        keep(batch + "output", forward->output);
        for (const auto& [name, loss] : forward->losses.read())
            keep(batch + name, Tensor::from<double>({}, {loss}));
        const auto gradients = layer.backward(random(3), forward->saved, {});
        keep(batch + "hidden_states", gradients.hidden_states);
        for (const auto& [name, gradient] : gradients.parameters)
            keep(batch + name, gradient);
    }
    return values;
}

TEST_P(SharedExpertOverlapTest, ChangesNoBit) {
    struct Way {
        int ranks;
        const char* dispatcher;
    };
    for (const auto& [ranks, dispatcher] :
         {Way{1, "alltoall"}, Way{2, "alltoall"}, Way{2, "flex"}})
        for (const bool gate : {false, true}) {
            if (with_dispatcher({GetParam()}, dispatcher).empty()) continue;
            MoEConfig plain = config(ranks, gate);
            plain.moe_token_dispatcher_type = dispatcher;
            plain.finalize();
            MoEConfig overlap = plain;
            overlap.moe_shared_expert_overlap = true;
            distributed::run_ranks(ranks, [&](Communicator& world) {
                const auto groups = make_process_groups(world, plain);
                const TensorMap expected = run(plain, GetParam(), groups, world.rank());
                const TensorMap got = run(overlap, GetParam(), groups, world.rank());
                ASSERT_EQ(got.size(), expected.size());
                for (const auto& [name, tensor] : got)
                    EXPECT_TRUE(BitwiseEqual(tensor, expected.at(name)))
                        << dispatcher << " " << name;
            });
        }
}

TEST_P(SharedExpertOverlapTest, StagesHaveOneOrder) {
    const MoEConfig c = config(1, true);
    const auto shared = make(c);
    const Tensor hidden = random(shared->placement(), 1);
    SavedPtr saved;
    Tensor output, dhidden = random(shared->placement(), 2);
    TensorMap gradients;
    const std::vector<std::function<void()>> stages = {
        [&] { saved = shared->pre_forward_comm(hidden, {}); },
        [&] { shared->linear_fc1_forward_and_act({}); },
        [&] { shared->linear_fc2_forward({}); },
        [&] { shared->post_forward_comm({}); },
        [&] { output = shared->get_output({}); },
        [&] { shared->linear_fc2_backward(hidden, *saved, {}); },
        [&] { shared->linear_fc1_backward({}); },
        [&] { shared->pre_forward_comm_backward(dhidden, gradients, {}); }};
    for (std::size_t next = 0; next < stages.size(); ++next) {
        for (std::size_t stage = 0; stage < stages.size(); ++stage) {
            // Between a forward and its backward another forward may begin.
            if (stage == next || (next == 5 && stage == 0)) continue;
            if (next == 0 && stage == 5) continue;  // nothing saved yet
            EXPECT_THROW(stages[stage](), InternalError) << stage << " before " << next;
        }
        stages[next]();
    }
    // The refused calls have left no trace.
    const auto again = shared->forward(hidden, {});
    EXPECT_TRUE(BitwiseEqual(output, again.output));
    Tensor expected = random(shared->placement(), 2);
    shared->backward(expected, gradients, hidden, *again.saved, {});
    EXPECT_TRUE(BitwiseEqual(dhidden, expected));
}

/// Notes when its stages run: how many exchanges this rank had opened by then.
class Spy : public SharedExperts {
  public:
    Spy(const Placement& placement, const Tensor& output, const GroupsPtr& groups)
        : SharedExperts(placement), output_(output), groups_(groups) {}

    SavedPtr pre_forward_comm(const Tensor& hidden, const RunContext&) override {
        note("pre_forward_comm");
        hidden_ = hidden;
        return std::make_unique<Saved>();
    }
    void linear_fc1_forward_and_act(const RunContext&) override { note("fc1"); }
    void linear_fc2_forward(const RunContext&) override { note("fc2"); }
    void post_forward_comm(const RunContext&) override { note("post_forward_comm"); }
    Tensor get_output(const RunContext&) override {
        note("get_output");
        return output_;
    }
    void linear_fc2_backward(const Tensor& doutput, const Saved&,
                             const RunContext&) override {
        note("fc2_backward");
        doutput_ = doutput;
    }
    void linear_fc1_backward(const RunContext&) override { note("fc1_backward"); }
    void pre_forward_comm_backward(Tensor&, TensorMap&, const RunContext&) override {
        note("pre_forward_comm_backward");
    }

    void note(const std::string& stage) {
        std::int64_t bytes = 0;
        const auto sent = groups_->world->ledger().sent();
        if (const auto found = sent.find("all_to_all"); found != sent.end())
            for (const auto& [peer, count] : found->second) bytes += count;
        log.push_back({stage, bytes});
    }
    std::vector<std::pair<std::string, std::int64_t>> log;  // bytes exchanged by then
    Tensor hidden_, doutput_;

  private:
    Tensor output_;
    GroupsPtr groups_;
};

TEST_P(SharedExpertOverlapTest, StagesRunBetweenTheExchanges) {
    // Every token goes to expert 0 of the first rank and expert 1 of the second.
    constexpr std::int64_t T = kSeq * kBatch, E = 2;
    MoEConfig c = config(2, false);
    c.num_moe_experts = E;
    c.finalize();
    distributed::run_ranks(2, [&](Communicator& world) {
        const auto groups = make_process_groups(world, c);
        const auto dispatcher = find_tier("tier", GetParam().tier)
                                    .make_dispatcher(c, GetParam().dtype, groups);
        const Placement placement = dispatcher->placement();
        const Tensor hidden = random(placement, 1), doutput = random(placement, 2);
        Tensor map = Tensor::zeros({T, E}, DType::u8);
        std::fill_n(map.data<std::uint8_t>(), T * E, 1);
        const Tensor probs =
            transfer(random_tensor({T, E}, 4), probs_placement(placement));
        Spy spy(placement, random(placement, 5), groups);
        const auto pass = [&] {
            auto sent = dispatcher->dispatch(hidden, probs, transfer(map, placement), {});
            const Tensor output =
                dispatcher->combine(sent.rows.values, {}, *sent.saved, {});
            const Tensor drows =
                dispatcher->combine_backward(doutput, *sent.saved, {}).values;
            dispatcher->dispatch_backward(drows, sent.row_probs, *sent.saved, {});
            return to_doubles(output);
        };
        const std::vector<double> alone = pass();
        EXPECT_TRUE(spy.log.empty());

        dispatcher->set_shared_experts(&spy);
        world.ledger().reset_sent();
        const std::vector<double> both = pass();
        const auto rows = T * kHidden * std::int64_t(size_of(placement.dtype));
        const auto row_probs =
            T * std::int64_t(size_of(probs_placement(placement).dtype));
        const std::vector<std::pair<std::string, std::int64_t>> expected = {
            {"pre_forward_comm", 0},
            {"fc1", rows},  // the probabilities follow
            {"fc2", 2 * rows + row_probs},
            {"post_forward_comm", 2 * rows + row_probs},
            {"get_output", 2 * rows + row_probs},
            {"fc2_backward", 2 * rows + row_probs},  // before the rows' gradients
            {"fc1_backward", 3 * rows + 2 * row_probs}};
        EXPECT_EQ(spy.log, expected);
        EXPECT_TRUE(BitwiseEqual(spy.hidden_, hidden));
        EXPECT_TRUE(BitwiseEqual(spy.doutput_, doutput));
        std::vector<double> sum = to_doubles(random(placement, 5));
        for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += alone[i];
        EXPECT_TRUE(Close(Tensor::from({T, kHidden}, both),
                          Tensor::from({T, kHidden}, sum), bound_of(GetParam())));
    });
}

#ifdef MOE_EXECUTOR
/// Of the tiers that have streams.
class HeldSharedExpertOverlapTest : public SharedExpertOverlapTest {
  protected:
    /// What a forward and a backward of the shared experts leave behind.
    TensorMap stages(const MoEConfig& c, const GroupsPtr& groups) const {
        const TensorMap parameters =
            random_parameters(distributed::single_rank_config(c), 3);
        const auto shared =
            find_tier("tier", GetParam().tier)
                .make_shared_experts(c, GetParam().dtype,
                                     shard_parameters(c, parameters, *groups), groups);
        const std::uint64_t seed = 10 * std::uint64_t(groups->world->rank());
        const auto forward = shared->forward(random(shared->placement(), seed + 1), {});
        TensorMap values;
        Tensor dhidden = random(shared->placement(), seed + 2);
        shared->backward(dhidden, values, random(shared->placement(), seed + 3),
                         *forward.saved, {});
        values["hidden_states"] = dhidden;
        values["output"] = forward.output;
        for (auto& [name, tensor] : values)
            tensor = transfer(tensor, {MemorySpace::host, tensor.dtype()});
        return values;
    }
};
std::vector<ComponentSpec> device_suppliers() {
    std::vector<ComponentSpec> suppliers = on_ranks(available_suppliers());
    std::erase_if(suppliers, [](const ComponentSpec& supplier) {
        return placement_of(supplier).space == MemorySpace::host;
    });
    return suppliers;
}

TEST_P(HeldSharedExpertOverlapTest, ChangesNoBit) {
    struct Way {
        int ranks;
        const char* dispatcher;
    };
    for (const auto& [ranks, dispatcher] :
         {Way{1, "alltoall"}, Way{2, "alltoall"}, Way{3, "alltoall"}, Way{2, "flex"}}) {
        if (with_dispatcher({GetParam()}, dispatcher).empty()) continue;
        MoEConfig c = config(ranks, true);
        c.moe_token_dispatcher_type = dispatcher;
        c.moe_shared_expert_overlap = true;
        c.finalize();
        std::vector<TensorMap> expected(ranks);
        const auto on_ranks = [&](const auto& use) {
            distributed::run_ranks(ranks, [&](Communicator& world) {
                const int rank = world.rank();
                use(rank, run(c, GetParam(), make_process_groups(world, c), rank));
            });
        };
        on_ranks([&](int rank, const TensorMap& values) { expected[rank] = values; });
        for (const char* order : kStreamOrders) {
            const HeldStreams held(order);
            on_ranks([&](int rank, const TensorMap& values) {
                for (const auto& [name, tensor] : values)
                    EXPECT_TRUE(BitwiseEqual(tensor, expected[rank].at(name)))
                        << ranks << " " << dispatcher << " " << order << " " << name;
            });
        }
    }
}

/// The stages alone, without a dispatcher between them, whose waits for the whole device
/// would stand in for theirs. On one rank nobody else demands anything.
TEST_P(HeldSharedExpertOverlapTest, StagesWaitForTheirStreams) {
    for (const int ranks : {1, 2})
        for (const bool gate : {false, true}) {
            MoEConfig c = config(ranks, gate);
            c.moe_shared_expert_overlap = true;
            c.finalize();
            const auto run_stages = [&] {
                std::vector<TensorMap> results(ranks);
                distributed::run_ranks(ranks, [&](Communicator& world) {
                    results[world.rank()] = stages(c, make_process_groups(world, c));
                });
                return results;
            };
            const std::vector<TensorMap> expected = run_stages();
            for (const char* order : kStreamOrders) {
                const HeldStreams held(order);
                const std::vector<TensorMap> got = run_stages();
                for (int rank = 0; rank < ranks; ++rank)
                    for (const auto& [name, tensor] : got[rank])
                        EXPECT_TRUE(BitwiseEqual(tensor, expected[rank].at(name)))
                            << ranks << " ranks, " << order << ", " << name;
            }
        }
}

INSTANTIATE_TEST_SUITE_P(Tiers, HeldSharedExpertOverlapTest,
                         testing::ValuesIn(device_suppliers()), instance_name);
#endif

INSTANTIATE_TEST_SUITE_P(Tiers, SharedExpertOverlapTest,
                         testing::ValuesIn(on_ranks(available_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
