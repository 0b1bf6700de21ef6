// Whole layers over ranks with the flex dispatcher: against one rank that has all tokens
// and experts, and against the same ranks with the other dispatchers.

#include "cli/compare/closeness.h"
#include "core/moe_layer.h"
#include "core/parameters.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"
#include "tests/ranks/support.h"

namespace moe::test {
namespace {

using distributed::Communicator;
using distributed::make_process_groups;
using distributed::rows_of;
using distributed::run_ranks;
using distributed::shard_parameter;
using distributed::shard_parameters;
using distributed::single_rank_config;

struct Grid {
    int ep, etp, tp;
    std::vector<std::int64_t> tokens;  ///< of each rank
    std::int64_t topk = 3;
    std::optional<double> capacity = std::nullopt;
};

const std::vector<Grid> kGrids = {
    {2, 1, 1, {5, 5}},
    {2, 1, 1, {9, 0}},
    {1, 2, 2, {4, 4}},
    {2, 2, 2, {3, 3, 3, 3}},
    {4, 1, 2, {3, 3, 5, 5}, 8},
    {8, 1, 1, {2, 0, 1, 3, 5, 2, 2, 1}},
    {2, 2, 1, {2, 0, 1, 3, 5, 2, 2, 1}},
    {4, 2, 2, {3, 3, 3, 3, 3, 3, 3, 3}},
    {2, 2, 2, {8, 8, 8, 8}, 3, 0.75},
};

MoEConfig config_of(const Grid& grid, const std::string& dispatcher) {
    MoEConfig config = small_config(12, 8, grid.topk, 6);
    // Sharded shared experts have tests of their own
    if (grid.tp == 1) config.moe_shared_expert_intermediate_size = 10;
    config.moe_expert_capacity_factor = grid.capacity;
    config.expert_model_parallel_size = grid.ep;
    config.expert_tensor_parallel_size = grid.etp;
    config.tensor_model_parallel_size = grid.tp;
    config.sequence_parallel = grid.tp > 1;
    config.moe_token_dispatcher_type = dispatcher;
    config.finalize();
    return config;
}

/// What one rank has at the end: "output", "hidden_states", and gradients, those of
/// router and experts summed over the ranks that share them.
TensorMap run_layer(MoELayer& layer, const Tensor& hidden, const Tensor& doutput,
                    const distributed::ProcessGroups* groups) {
    const std::int64_t T = hidden.dim(0), H = hidden.dim(1);
    const auto forward = layer.forward(hidden.reshaped({T, 1, H}), {}, {});
    auto backward = layer.backward(doutput.reshaped({T, 1, H}), forward.saved, {});
    TensorMap results{{"output", forward.output.reshaped({T, H})},
                      {"hidden_states", backward.hidden_states.reshaped({T, H})}};
    for (const auto& [name, gradient] : backward.parameters) {
        if (name.starts_with("shared")) continue;  // the same with every dispatcher
        results[name] = transfer(gradient, {MemorySpace::host, DType::f64});
        if (groups == nullptr) continue;
        (name.starts_with("router") ? groups->world : groups->expt_dp)
            ->all_reduce(results[name]);
    }
    return results;
}

Tensor tokens_of(const Grid& grid, std::uint64_t seed) {
    std::int64_t T = 0;
    for (std::int64_t tokens : grid.tokens) T += tokens;
    return random_tensor({T, 12}, seed);
}

std::vector<TensorMap> run(const ComponentSpec& supplier, const Grid& grid,
                           const std::string& dispatcher) {
    const MoEConfig config = config_of(grid, dispatcher);
    const TensorMap parameters = random_parameters(single_rank_config(config), 3);
    const Tensor hidden = tokens_of(grid, 1), doutput = tokens_of(grid, 2);
    std::vector<TensorMap> results(grid.tokens.size());
    run_ranks(int(grid.tokens.size()), [&](Communicator& world) {
        const auto groups = make_process_groups(world, config);
        MoELayer layer(config, ModuleSpec::uniform(supplier),
                       shard_parameters(config, parameters, *groups), groups);
        std::int64_t first = 0;
        for (int r = 0; r < world.rank(); ++r) first += grid.tokens[r];
        const auto mine = [&](const Tensor& all) {
            return transfer(rows_of(all, first, grid.tokens[world.rank()]),
                            {MemorySpace::host, DType::f32});
        };
        results[world.rank()] =
            run_layer(layer, mine(hidden), mine(doutput), groups.get());
    });
    return results;
}

class FlexLayer : public testing::TestWithParam<ComponentSpec> {};

TEST_P(FlexLayer, IsTheLayerOfOneRank) {
    for (const Grid& grid : kGrids) {
        if (grid.capacity) continue;  // is each rank's own
        const MoEConfig config = config_of(grid, "flex");
        const MoEConfig whole = single_rank_config(config);
        const TensorMap parameters = random_parameters(whole, 3);
        TensorMap expected;
        run_ranks(1, [&](Communicator&) {  // in one thread, like the ranks
            MoELayer layer(whole, ModuleSpec::uniform({"reference_cpu", DType::f64}),
                           parameters);
            expected = run_layer(layer, tokens_of(grid, 1), tokens_of(grid, 2), nullptr);
        });
        const auto got = run(GetParam(), grid, "flex");
        run_ranks(int(grid.tokens.size()), [&](Communicator& world) {
            const auto groups = make_process_groups(world, config);
            std::int64_t first = 0;
            for (int r = 0; r < world.rank(); ++r) first += grid.tokens[r];
            for (const auto& [name, tensor] : got[world.rank()]) {
                const Placement host{MemorySpace::host, DType::f64};
                const Tensor& whole_tensor = expected.at(name);
                const bool rows = name == "output" || name == "hidden_states";
                const Tensor should =
                    rows ? transfer(
                               rows_of(whole_tensor, first, grid.tokens[world.rank()]),
                               host)
                         : shard_parameter(config, name, whole_tensor, *groups);
                EXPECT_TRUE(
                    Close(tensor, should, tier_bound(GetParam().dtype, name != "output")))
                    << name << ", EP " << grid.ep << ", ETP " << grid.etp << ", TP "
                    << grid.tp << ", " << world.size() << " ranks";
            }
        });
    }
}

TEST_P(FlexLayer, IsTheLayerOfTheOtherDispatchers) {
    for (const Grid& grid : kGrids) {
        const auto flex = run(GetParam(), grid, "flex");
        const auto expect_equal = [&](const std::string& dispatcher, bool bitwise) {
            const auto other = run(GetParam(), grid, dispatcher);
            for (std::size_t r = 0; r < other.size(); ++r)
                for (const auto& [name, tensor] : flex[r]) {
                    const auto equal =
                        bitwise ? BitwiseEqual(tensor, other[r].at(name))
                                : Close(tensor,
                                        transfer(other[r].at(name),
                                                 {MemorySpace::host, DType::f64}),
                                        tier_bound(GetParam().dtype, name != "output"));
                    EXPECT_TRUE(equal) << name << ", " << dispatcher << ", EP " << grid.ep
                                       << ", ETP " << grid.etp << ", TP " << grid.tp;
                }
        };
        expect_equal("alltoall", false);
        if (std::equal(grid.tokens.begin() + 1, grid.tokens.end(), grid.tokens.begin()))
            // optimized_gpu adds shared experts before it rounds, here but not there
            expect_equal("allgather", GetParam().tier != "optimized_gpu");
    }
}

INSTANTIATE_TEST_SUITE_P(Tiers, FlexLayer,
                         testing::ValuesIn(with_dispatcher(available_suppliers(),
                                                           "flex")),
                         instance_name);

}  // namespace
}  // namespace moe::test
