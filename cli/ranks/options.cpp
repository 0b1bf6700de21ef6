// options.cpp: flags that make a layer over ranks.

#include "cli/ranks/options.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include "cli/notes.h"
#include "cli/ranks/processes.h"
#include "core/error.h"
#include "core/known_names.h"
#include "distributed/launch/launch.h"

namespace moe {
namespace {

constexpr int kMostRanks = 64;

constexpr std::array kParallelFields = {
    "tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size",
    "expert_tensor_parallel_size"};

/// EP = W when nobody said anything; every rank needs as many experts as the others.
void fill_in(LayerOptions::Chosen& chosen, int ranks) {
    MoEConfig& config = chosen.config;
    const bool any_size =
        std::any_of(kParallelFields.begin(), kParallelFields.end(),
                    [&](const char* name) { return chosen.given.contains(name); });
    if (!any_size) {
        if (config.num_moe_experts && *config.num_moe_experts % ranks != 0)
            reject("--ranks", ranks,
                   fmt::format("must divide num_moe_experts ({}), or be cut by "
                               "--expert-model-parallel-size and its like",
                               *config.num_moe_experts));
        config.expert_model_parallel_size = ranks;
    }
    if (config.tensor_model_parallel_size > 1 &&
        !chosen.given.contains("sequence_parallel"))
        config.sequence_parallel = true;
}

/// What the user chose, with the grid over W ranks.
LayerOptions::Chosen choose_over_ranks(
    const LayerOptions& layer, int ranks,
    const std::function<void(LayerOptions::Chosen&)>& adjust) {
    LayerOptions::Chosen chosen = layer.choose();
    if (adjust) adjust(chosen);
    fill_in(chosen, ranks);
    return chosen;
}

/// What is wrong with the layer itself is wrong with every dispatcher; AlltoAll has every
/// feature.
distributed::ParallelSizes require_grid(const MoEConfig& config, int ranks) {
    MoEConfig plain = config.with_dispatcher("alltoall");
    plain.finalize();
    const std::string& backend = config.moe_flex_dispatcher_backend;
    const auto& backends = allowed_values("moe_flex_dispatcher_backend");
    if (std::find(backends.begin(), backends.end(), backend) == backends.end())
        reject_unknown("moe_flex_dispatcher_backend", backend, backends);
    return distributed::parallel_sizes(plain, ranks);
}

int in_range(const char* flag, std::int64_t value, int least, int most) {
    if (value < least || value > most)
        reject(flag, value, fmt::format("must be from {} to {}", least, most));
    return int(value);
}

}  // namespace

RankOptions::RankOptions(Command& command, Kind kind) {
    if (kind != Kind::processes)
        command.option("--ranks", ranks_,
                       "Ranks, as threads of this process, that share the layer "
                       "(default grid: EP = ranks)");
    if (kind == Kind::threads) return;
    command.option("--spawn", spawn_,
                   "Ranks as processes, which this one starts: over MPI, or NCCL in "
                   "a build for GPUs");
    command.flag("--processes", processes_,
                 "This process is one rank, started by mpirun, srun or torchrun");
    command.option("--rank", rank_,
                   "With --processes: which rank this is (default: what the launcher's "
                   "variables say)");
    command.option("--world-size", world_size_, "With --rank: how many ranks there are");
}

RankFlags RankOptions::flags() const {
    RankFlags flags;
    if (world_size_)
        flags.world_size = in_range("--world-size", *world_size_, 1, kMostRanks);
    if (rank_) flags.rank = in_range("--rank", *rank_, 0, kMostRanks - 1);
    if (!processes_ && (rank_ || world_size_))
        reject(rank_ ? "--rank" : "--world-size", rank_ ? *rank_ : *world_size_,
               "needs --processes");
    return flags;
}

int RankOptions::ranks() const {
    const RankFlags me = flags();
    if (spawn_ && processes_)
        reject("--spawn", *spawn_, "must be left out with --processes");
    if (!spawn_ && !processes_) return in_range("--ranks", *ranks_, 1, kMostRanks);
    const int processes =
        spawn_ ? in_range("--spawn", *spawn_, 1, kMostRanks)
               : in_range("--processes", launched_ranks(me), 1, kMostRanks);
    if (ranks_ && *ranks_ != processes)
        reject(
            "--ranks", *ranks_,
            fmt::format("must be left out, or {}: the number of processes", processes));
    return processes;
}

void RankOptions::let_one_note() const {
    if (spawns()) print_notes(false);
    if (!is_process()) return;
    try {
        const RankFlags me = flags();
        const auto identity = distributed::identify_rank(
            me.rank, me.world_size, [](const char* name) { return std::getenv(name); });
        print_notes(!identity || identity->rank == 0);
    } catch (const InputError&) {
        // Said where the ranks are counted
    }
}

void require_no_rank_flags(const LayerOptions& layer) {
    const MoEConfig config = layer.choose().config;
    const auto require_one = [](const char* field, std::int64_t size) {
        if (size > 1) reject(field, size, "needs --ranks");
    };
    require_one(kParallelFields[0], config.tensor_model_parallel_size);
    require_one(kParallelFields[1], config.context_parallel_size);
    require_one(kParallelFields[2], config.expert_model_parallel_size);
    require_one(kParallelFields[3], config.expert_tensor_parallel_size.value_or(1));
    for (const char* type : {"all", "flex"})
        if (config.moe_token_dispatcher_type == type)
            reject("moe_token_dispatcher_type", type, "needs --ranks");
}

RankConfigs choose_rank_configs(const LayerOptions& layer, int ranks) {
    const LayerOptions::Chosen chosen = choose_over_ranks(layer, ranks, {});
    RankConfigs result;
    result.sizes = require_grid(chosen.config, ranks);
    const bool all = chosen.config.moe_token_dispatcher_type == "all" ||
                     !chosen.given.contains("moe_token_dispatcher_type");
    if (!all) {
        result.configs = {chosen.config};
        result.configs[0].finalize();
        return result;
    }
    for (const char* name : {"allgather", "alltoall", "flex"}) {
        MoEConfig config = chosen.config.with_dispatcher(name);
        try {
            config.finalize();
            result.configs.push_back(config);
        } catch (const InputError& error) {
            result.left_out.push_back(fmt::format("{}: {}", name, error.what()));
        }
    }
    return result;
}

RankConfigs choose_rank_config(const LayerOptions& layer, int ranks,
                               const std::function<void(LayerOptions::Chosen&)>& adjust) {
    const LayerOptions::Chosen chosen = choose_over_ranks(layer, ranks, adjust);
    RankConfigs result;
    result.sizes = require_grid(chosen.config, ranks);
    std::vector<std::string> types = {chosen.config.moe_token_dispatcher_type};
    if (!chosen.given.contains("moe_token_dispatcher_type"))
        types.insert(types.end(), {"alltoall", "flex", "allgather"});
    for (const std::string& type : types) {
        // All that was asked for stays: flex is for whoever sizes its heap
        MoEConfig config = chosen.config;
        config.moe_token_dispatcher_type = type;
        try {
            config.finalize();
            result.configs = {config};
            return result;
        } catch (const InputError& error) {
            result.left_out.push_back(error.what());
        }
    }
    throw InputError(result.left_out[0]);
}

RankSizes choose_rank_sizes(const LayerOptions& layer,
                            const distributed::ParallelSizes& sizes) {
    const std::int64_t shards = std::int64_t(sizes.tensor) * sizes.context;
    const std::int64_t replicas = sizes.data();
    std::int64_t S = layer.seq_length(), B = layer.micro_batch_size();
    const std::int64_t tokens = S * B;
    if (!layer.micro_batch_size_given() && B % replicas != 0) {
        B = replicas;
        if (!layer.seq_length_given()) S = tokens / B;
    }
    if (!layer.seq_length_given()) S = std::max(S - S % shards, shards);
    if (B % replicas != 0)
        reject(
            "--micro-batch-size", B,
            fmt::format("must be divisible by the {} data-parallel replicas", replicas));
    if (S % shards != 0)
        reject("--seq-length", S,
               fmt::format("must be divisible by the {} tensor x context parallel ranks "
                           "of a replica",
                           shards));
    return {S, B, shards};
}

}  // namespace moe
