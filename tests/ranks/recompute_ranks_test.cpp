// What is run again in backward, over ranks: the same bits, and ranks that still meet.

#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/sharding.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

constexpr std::int64_t kSeq = 3, kBatch = 2, kHidden = 12;

/// EP = 2 and TP = 2: tokens and the shared experts' rows travel.
MoEConfig recompute_config(const std::string& dispatcher,
                           const std::vector<std::string>& modules, bool overlap) {
    MoEConfig c = small_config(kHidden);
    c.moe_shared_expert_intermediate_size = 10;
    c.moe_shared_expert_gate = true;
    c.moe_shared_expert_overlap = overlap;
    c.moe_router_load_balancing_type = {"global_aux_loss"};
    c.moe_aux_loss_coeff = {0.5};
    c.moe_router_score_function = "sigmoid";
    c.moe_router_enable_expert_bias = c.moe_grouped_gemm = true;
    c.tensor_model_parallel_size = c.expert_model_parallel_size = 2;
    c.expert_tensor_parallel_size = 1;
    c.sequence_parallel = true;
    c.moe_token_dispatcher_type = dispatcher;
    if (!modules.empty()) {
        c.recompute_granularity = "selective";
        c.recompute_modules = modules;
    }
    c.finalize();
    return c;
}

/// What two micro-batches leave on a rank, the second forward before the first backward.
std::vector<Tensor> train_on_rank(const MoEConfig& config, const ComponentSpec& supplier,
                                  distributed::Communicator& world) {
    const auto groups = distributed::make_process_groups(world, config);
    const TensorMap whole = random_parameters(distributed::single_rank_config(config), 3);
    MoELayer layer(config, ModuleSpec::uniform(supplier),
                   distributed::shard_parameters(config, whole, *groups), groups);
    const auto random = [&](std::uint64_t seed) {
        return random_tensor({kSeq, kBatch, kHidden}, seed + 10 * world.rank());
    };
    std::vector<Tensor> left;
    const auto add = [&](const Tensor& tensor) {
        left.push_back(transfer(tensor, {MemorySpace::host, tensor.dtype()}).clone());
    };
    const MoELayer::Forward first = layer.forward(random(1), {}, {});
    const MoELayer::Forward second = layer.forward(random(2), {}, {});
    for (const MoELayer::Forward* forward : {&first, &second}) {
        add(forward->output);
        for (const auto& [name, loss] : forward->losses.read())
            add(Tensor::from<double>({}, {loss}));
        const auto gradients = layer.backward(random(3), forward->saved, {});
        add(gradients.hidden_states);
        for (const auto& [name, gradient] : gradients.parameters) add(gradient);
    }
    add(layer.update_expert_bias());
    return left;
}

class RecomputeOnRanks : public testing::TestWithParam<ComponentSpec> {};

TEST_P(RecomputeOnRanks, ChangesNoBit) {
    const auto train = [&](const MoEConfig& config) {
        std::vector<std::vector<Tensor>> ranks(4);
        distributed::run_ranks(4, [&](distributed::Communicator& world) {
            ranks[world.rank()] = train_on_rank(config, GetParam(), world);
        });
        return ranks;
    };
    struct Way {
        std::string dispatcher;
        bool overlap;
        std::vector<std::string> modules;
    };
    const std::vector<Way> ways = {{"allgather", false, {"moe"}},
                                   {"alltoall", false, {"shared_experts", "moe_act"}},
                                   {"alltoall", true, {"moe", "moe_act"}},
                                   {"flex", false, {"moe"}},
                                   {"flex", true, {"moe"}}};
    for (const auto& [dispatcher, overlap, modules] : ways) {
        SCOPED_TRACE(dispatcher + ", " + modules[0] + (overlap ? ", overlap" : ""));
        const auto kept = train(recompute_config(dispatcher, {}, overlap));
        const auto again = train(recompute_config(dispatcher, modules, overlap));
        for (int rank = 0; rank < 4; ++rank)
            for (std::size_t i = 0; i < kept[rank].size(); ++i)
                EXPECT_TRUE(BitwiseEqual(again[rank].at(i), kept[rank][i]))
                    << "rank " << rank << ", " << i;
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, RecomputeOnRanks,
                         testing::ValuesIn(on_ranks(available_suppliers())),
                         instance_name);

}  // namespace
}  // namespace moe::test
