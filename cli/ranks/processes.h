/// @file
/// Ranks as processes: start them, be one of them, and bring together what each of them
/// recorded.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/ranks/run.h"
#include "core/config.h"
#include "distributed/communicators/communicator.h"

namespace moe {

/// How many ranks a launcher (mpirun, srun, torchrun) started this process as one of.
/// InputError when there is no launcher.
int launched_ranks();

/// Starts this program again as `ranks` processes, with the same arguments but for
/// --spawn, and returns the job's exit code: over MPI, or, in a build for GPUs, over NCCL
/// with one GPU each.
int spawn_ranks(int ranks);

/// Runs `program` as the rank that this process is. The ranks must have been asked for
/// the same `configs`. @return an exit code
int run_as_process(const std::vector<MoEConfig>& configs,
                   const std::function<int(distributed::Communicator& world)>& program);

/// Every rank's record, on every rank.
std::vector<RankRecord> gather_records(distributed::Communicator& world,
                                       const RankRecord& mine);

}  // namespace moe
