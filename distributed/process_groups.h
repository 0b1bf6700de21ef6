/// @file
/// The groups that a layer's components talk in. Source: process_groups_config.py,
/// ProcessGroupCollection; moe_utils.py, get_default_pg_collection.
#pragma once

#include <memory>

#include "distributed/communicators/communicator.h"
#include "distributed/peer_memory/symmetric_heap.h"
#include "distributed/rank_generator.h"

namespace moe::distributed {

class FlaggedHeap;

/// One rank's ends of all its groups.
///
/// | group | over | used for |
/// |---|---|---|
/// | ep | ranks that hold different experts | token all-to-all |
/// | expt_tp | shards of the same experts | gather and reduce around experts |
/// | tp_ep | both; rank = ep rank * ETP + etp rank | counts, AllGather, Flex |
/// | tp | attention tensor parallel | shared experts |
/// | tp_cp | TP x CP, one whole sequence | auxiliary losses |
/// | tp_dp_cp | everything but PP | global loss, expert bias |
/// | dp_cp, expt_dp | replicas | gradients of dense layers, of experts |
struct ProcessGroups {
    using Group = std::shared_ptr<Communicator>;
    ParallelSizes sizes;
    Group world, tp, cp, dp, tp_cp, dp_cp, tp_dp_cp, ep, expt_tp, tp_ep, expt_dp;
    std::shared_ptr<SymmetricHeap> heap;  ///< of tp_ep, for all its layers
    /// The same where devices order the exchanges, and no host.
    std::shared_ptr<FlaggedHeap> flagged_heap;
};
using ProcessGroupsPtr = std::shared_ptr<const ProcessGroups>;

/// Splits the world; every rank of it calls this. The world must outlive the groups.
/// InputError when the config does not fit the number of ranks.
ProcessGroupsPtr make_process_groups(Communicator& world, const MoEConfig& config);

/// All groups of one rank alone: what a layer without ranks uses.
ProcessGroupsPtr single_rank_groups();

}  // namespace moe::distributed
