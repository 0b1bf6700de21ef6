/// @file
/// What commands share that run over ranks: --ranks and its kin, the configs they make,
/// and sizes of the input that every rank can have a share of.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cli/options.h"
#include "distributed/rank_generator.h"

namespace moe {

/// --rank and --world-size: who a process is, before any launcher's variables.
struct RankFlags {
    std::optional<int> rank, world_size;
};

/// --ranks of a subcommand, for threads; --spawn and --processes, with --rank and
/// --world-size, for processes.
class RankOptions {
  public:
    enum class Kind { threads, processes, threads_or_processes };
    RankOptions(Command& command, Kind kind);
    bool given() const { return ranks_ || spawn_ || processes_ || rank_ || world_size_; }
    /// W. InputError unless from 1 to 64, or when the flags disagree.
    int ranks() const;
    /// This process is to start the ranks, …
    bool spawns() const { return spawn_.has_value(); }
    /// … or is one of them.
    bool is_process() const { return processes_; }
    /// Of ranks that are processes the first prints notes, and who starts them none.
    void let_one_note() const;
    /// InputError unless below 64, or when one is there that --processes does not allow.
    RankFlags flags() const;

  private:
    std::optional<std::int64_t> ranks_, spawn_, rank_, world_size_;
    bool processes_ = false;
};

/// InputError when a flag has a meaning only with --ranks, which is not there.
void require_no_rank_flags(const LayerOptions& layer);

/// The layer over ranks, once per dispatcher.
struct RankConfigs {
    std::vector<MoEConfig> configs;     ///< finalized; they differ in the dispatcher
    std::vector<std::string> left_out;  ///< "flex: needs …"
    distributed::ParallelSizes sizes;
};

/// Configs of every dispatcher, or of the one that the user named. Without any parallel
/// size EP = W; with TP > 1 the sequence is sharded unless the user says otherwise.
/// InputError when the grid does not fit W ranks, or no dispatcher can run.
RankConfigs choose_rank_configs(const LayerOptions& layer, int ranks);

/// The same for one dispatcher: the one that the user named, else the first that can do
/// all that was asked for, beginning with the default.
/// @param adjust  changes what the user did not name, before anything is checked
RankConfigs choose_rank_config(const LayerOptions& layer, int ranks,
                               const std::function<void(LayerOptions::Chosen&)>& adjust);

/// S and B of all ranks together: what the user gave, else about as many tokens as
/// without ranks, in sequences that all replicas and shards can have a part of.
struct RankSizes {
    std::int64_t seq_len, micro_batch;
    std::int64_t shards;  ///< TP CP, which divides S
};
/// InputError when DP does not divide B, or TP CP does not divide S.
RankSizes choose_rank_sizes(const LayerOptions& layer,
                            const distributed::ParallelSizes& sizes);

}  // namespace moe
