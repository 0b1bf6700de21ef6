/// @file
/// Ranks as processes: start them, be one of them, and bring together what each of them
/// recorded.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/ranks/options.h"
#include "cli/ranks/run.h"
#include "core/config.h"
#include "distributed/communicators/communicator.h"

namespace moe {

/// How many ranks a launcher (mpirun, srun, torchrun), or a flag, says that there are.
/// InputError when neither does.
int launched_ranks(const RankFlags& flags);

/// Starts this program again as `ranks` processes, with --processes in place of --spawn,
/// and returns the job's exit code: over MPI, or, in a build for GPUs, over NCCL with one
/// GPU each.
int spawn_ranks(int ranks);

/// Runs `program` as the rank that this process is. What it prints is rank 0's alone;
/// its exit code, the largest that any rank has, is everybody's.
/// @param asked_for  as text; the same on every rank
int run_as_process(const RankFlags& flags, const std::string& asked_for,
                   const std::function<int(distributed::Communicator& world)>& program);

/// Configs as text.
std::string in_words(const std::vector<MoEConfig>& configs);

/// Every rank's record, on every rank.
std::vector<RankStep> gather_steps(distributed::Communicator& world,
                                   const RankStep& mine);

/// Every rank's tensors, which lie on the host, on every rank.
std::vector<TensorMap> gather_tensors(distributed::Communicator& world,
                                      const TensorMap& mine);

}  // namespace moe
