#include "distributed/process_groups.h"

#include "distributed/peer_memory/flagged_heap.h"

namespace moe::distributed {
namespace {

/// The world as one of its own groups, without owning it.
ProcessGroups::Group borrow(Communicator& world) {
    return {std::shared_ptr<void>(), &world};
}

/// One group out of the world, by a grid and its axes.
ProcessGroups::Group make_group(Communicator& world, const RankGenerator& grid,
                                const std::string& name, const std::string& token) {
    const int size = grid.group_size(token);
    if (size == 1)
        return local_communicator(name, world.world_rank(world.rank()),
                                  world.ledger_ptr());
    return world.split(name, grid.color(world.rank(), token),
                       grid.key(world.rank(), token));
}

}  // namespace

ProcessGroupsPtr make_process_groups(Communicator& world, const MoEConfig& config) {
    const ParallelSizes sizes = parallel_sizes(config, world.size());
    const RankGenerator dense = RankGenerator::dense(sizes);
    const RankGenerator experts = RankGenerator::experts(sizes);
    auto groups = std::make_shared<ProcessGroups>();
    groups->sizes = sizes;
    groups->world = borrow(world);
    groups->tp = make_group(world, dense, "tp", "tp");
    groups->cp = make_group(world, dense, "cp", "cp");
    groups->dp = make_group(world, dense, "dp", "dp");
    groups->tp_cp = make_group(world, dense, "tp_cp", "tp-cp");
    groups->dp_cp = make_group(world, dense, "dp_cp", "dp-cp");
    groups->tp_dp_cp = make_group(world, dense, "tp_dp_cp", "tp-dp-cp");
    groups->ep = make_group(world, experts, "ep", "ep");
    groups->expt_tp = make_group(world, experts, "expt_tp", "tp");
    groups->tp_ep = make_group(world, experts, "tp_ep", "tp-ep");
    groups->expt_dp = make_group(world, experts, "expt_dp", "dp");
    groups->heap = std::make_shared<SymmetricHeap>(groups->tp_ep);
    groups->flagged_heap = std::make_shared<FlaggedHeap>(groups->tp_ep);
    return groups;
}

ProcessGroupsPtr single_rank_groups() {
    auto groups = std::make_shared<ProcessGroups>();
    const auto ledger = std::make_shared<OpLedger>();
    const auto alone = [&](const char* name) -> ProcessGroups::Group {
        return local_communicator(name, 0, ledger);
    };
    groups->world = alone("world");
    groups->tp = alone("tp");
    groups->cp = alone("cp");
    groups->dp = alone("dp");
    groups->tp_cp = alone("tp_cp");
    groups->dp_cp = alone("dp_cp");
    groups->tp_dp_cp = alone("tp_dp_cp");
    groups->ep = alone("ep");
    groups->expt_tp = alone("expt_tp");
    groups->tp_ep = alone("tp_ep");
    groups->expt_dp = alone("expt_dp");
    groups->heap = std::make_shared<SymmetricHeap>(groups->tp_ep);
    groups->flagged_heap = std::make_shared<FlaggedHeap>(groups->tp_ep);
    return groups;
}

}  // namespace moe::distributed
