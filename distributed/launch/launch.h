/// @file
/// From a started process to a rank with a communicator, and from one process to many.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "distributed/communicators/communicator.h"

namespace moe::distributed {

/// Which of how many processes this is.
struct RankIdentity {
    int rank = 0, world_size = 1;
    int local_rank = 0;  ///< on its machine: which GPU
    std::string source;  ///< "flags", "torchrun", "Open MPI", "PMI" or "Slurm"
};

/// What getenv() gives; null when there is no such variable.
using Environment = std::function<const char*(const char* name)>;

/// From, in this order: the flags; RANK, WORLD_SIZE and LOCAL_RANK (torchrun, --spawn);
/// OMPI_COMM_WORLD_*; PMI_*; SLURM_*. Nothing when none is there. InputError that names
/// the variable when one is there without the other, is no number, or is out of range.
std::optional<RankIdentity> identify_rank(std::optional<int> rank_flag,
                                          std::optional<int> world_size_flag,
                                          const Environment& environment);

/// Where rank 0 listens: MASTER_ADDR, and MOE_PORT, or else MASTER_PORT (one more under
/// torchrun, whose own store has that one). InputError that names what is missing.
struct MasterAddress {
    std::string host;
    int port = 0;
};
MasterAddress master_address(const Environment& environment);

/// How a rank is started.
struct LaunchOptions {
    std::optional<int> rank, world_size;  ///< --rank, --world-size
    std::string fingerprint;              ///< the config as text; the same on every rank
    /// For every rank to come, and for every operation.
    std::chrono::milliseconds deadline = std::chrono::seconds(60);
    bool gpus = false;  ///< NCCL, one GPU for each rank; otherwise MPI
};

/// Runs `program` as one rank: meets the others, gives it the group "world", watches
/// over it, and parts from the others when it is done. Whatever `program` throws ends all
/// ranks, each with one line on stderr.
/// @return what `program` returned; 2 after an InputError, kExitRanksFailed (70) after
///         one that the ranks have in common
int run_as_rank(const LaunchOptions& options,
                const std::function<int(Communicator& world)>& program);

/// `moe … --spawn N`: runs `command` (a program and its arguments) as N ranks of this
/// machine and returns the job's exit code. Rank processes die with the launcher.
/// Without GPUs under mpirun; InputError where there is none.
int spawn_with_mpirun(int ranks, const std::vector<std::string>& command);

/// What mpirun must be told, besides -n, to start more ranks than there are cores, and as
/// root: Open MPI 4 and 5 in words of their own, MPICH and others nothing.
/// @param version  what `mpirun --version` printed
std::vector<std::string> mpirun_flags(const std::string& version, bool as_root);

/// With GPUs, before any CUDA call: starts the processes itself, with torchrun's
/// variables. When one fails, the others have two seconds to end by themselves; the
/// first failure is told on stderr and is the exit code.
int spawn_processes(int ranks, const std::vector<std::string>& command);

/// For rank processes: dies with the launcher that --spawn made its parent.
void die_with_launcher();

}  // namespace moe::distributed
