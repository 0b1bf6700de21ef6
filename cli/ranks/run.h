/// @file
/// One run of the layer over ranks, watched: every rank's values, gradients, host waits
/// and what it sent to whom.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <vector>

#include "core/components.h"
#include "core/config.h"
#include "core/micro_batches.h"
#include "core/module_spec.h"
#include "core/steps.h"
#include "core/tensor.h"
#include "distributed/communicators/communicator.h"
#include "distributed/rank_generator.h"
#include "gpu/device_log.h"
#include "gpu/thread_counters.h"

namespace moe {

class MoELayer;

/// Which tokens each rank has: its replica's sequences, of these its part by context
/// rank, and of that its shard by tensor rank (sequence parallelism).
struct RankTokens {
    std::int64_t seq_len = 0, micro_batch = 0;       ///< S and B of one rank
    std::vector<std::vector<std::int64_t>> of_rank;  ///< [W][S B], numbers t = s B + b
    std::int64_t per_rank() const { return seq_len * micro_batch; }
};
/// @param seq_len, micro_batch  S and B of all ranks together; must be divisible
RankTokens split_tokens(const distributed::ParallelSizes& sizes, std::int64_t seq_len,
                        std::int64_t micro_batch);

/// Rows of a host tensor (T, …), in the order of `tokens`.
Tensor take_rows(const Tensor& whole, const std::vector<std::int64_t>& tokens);

/// The inverse over all ranks: (T, …) from every rank's rows.
Tensor join_rows(const std::vector<Tensor>& parts, const RankTokens& tokens);

/// What a rank asks of its device in one forward and backward.
struct Asked {
    gpu::ThreadCounters counts;
    std::vector<gpu::LogEntry> log;
};

/// What one rank did in a micro-batch.
struct RankRecord {
    std::map<Step, TensorMap> values;  ///< on the host
    Tensor output;                     ///< (T, H) of this rank, on the host, as below
    Tensor d_hidden;                   ///< (T, H)
    TensorMap gradients;               ///< of its shards
    TensorMap losses;  ///< () f64 each, before their coefficients: the rank's own values
    /// Bytes sent to each other rank during each step.
    std::map<Step, std::map<int, std::int64_t>> sent;
    std::int64_t host_waits = 0;  ///< of the forward, as the dispatcher names them
    Asked asked;                  ///< if the job counts_asked
    /// Of this rank's experts, over moe_expert_rank_capacity_factor.
    std::int64_t dropped_rows = 0;
    bool dense = true;  ///< the dispatcher got maps of all experts, not K choices
};

/// What one rank did in an optimizer step.
struct RankStep {
    std::vector<RankRecord> micro_batches;
    TensorMap main_grads;  ///< of its shards, see core/micro_batches.h
    TensorMap updated;     ///< expert_bias_updated, qb_beta_updated; in training
};

/// What the ranks are given in a micro-batch.
struct RankInput {
    Tensor hidden;   ///< (T, H) fp32, all tokens
    Tensor doutput;  ///< (T, H) fp32
    /// (T) i64, with moe_router_hash_vocab_size; and (T, K) i64, experts to replay, or
    /// undefined.
    Tensor token_ids = {}, target_topk_idx = {};

    /// Of these tokens alone.
    RankInput take(const std::vector<std::int64_t>& tokens) const;
};

/// A layer and its input, that of the first micro-batch.
struct RankJob : RankInput {
    MoEConfig config;
    ModuleSpec spec;
    TensorMap parameters;                       ///< of the whole layer
    std::vector<RankInput> more_micro_batches;  ///< in the same optimizer step
    bool training = true;                       ///< or an evaluation
    /// Called where a step of rank 0, or of the whole layer, has its first value.
    std::function<void(Step)> on_step = [](Step) {};
    /// Also count what a rank asks of its device: count_asked().
    bool counts_asked = false;
    /// When this process is one rank of several; null: ranks are threads of this one.
    distributed::Communicator* world = nullptr;

    std::vector<RankInput> micro_batches() const;  ///< all of them
    /// Of one forward and backward, watched by nobody yet.
    RunContext context() const;
};

/// An optimizer step on every rank. @return by world rank
std::vector<RankStep> run_step_on_ranks(const RankJob& job, const RankTokens& tokens);

/// Its first micro-batch.
std::vector<RankRecord> run_on_ranks(const RankJob& job, const RankTokens& tokens);

/// Ends the step: what the layer's buffers are then, on the host. Collective.
TensorMap buffers_after(MoELayer& layer);

/// Every rank's shards of tensors that are named and shaped like the whole layer's
/// parameters. @return by world rank
std::vector<TensorMap> shard_for_ranks(const MoEConfig& config, int ranks,
                                       const TensorMap& whole);

/// Forward and backward of a layer on (T, H) inputs, watched.
/// @param shape    (S, B, H)
/// @param context  without an observer
/// @param ledger   of what the rank sends
/// @param on_step  as RankJob's
RankRecord run_layer(MoELayer& layer, const RankInput& input, const Shape& shape,
                     RunContext context, distributed::OpLedger& ledger,
                     const std::function<void(Step)>& on_step);

/// What one rank would do with all experts and the same tokens, in a micro-batch.
struct WholeRecord {
    Tensor output, d_hidden;    ///< (T, H)
    Tensor probs, routing_map;  ///< (T, E)
    Tensor topk_idx;            ///< (T, K) i64, before dropping
    Tensor logits, aux_scores;  ///< (T, E), that losses look at; aux_scores if they do
    Tensor d_logits_losses;     ///< (T, E): the losses' gradient
    TensorMap gradients;        ///< f64, summed over all tokens
    /// By name, before their coefficients: one of each replica, or, of the global loss
    /// and where there is but one, of all.
    std::map<std::string, std::vector<double>> losses;
    bool global_loss_apart = false;  ///< computed by itself, and added to all of that
    int runs = 1;                    ///< of how many parts of the tokens
};

/// The same of an optimizer step.
struct WholeStep {
    std::vector<WholeRecord> micro_batches;
    TensorMap main_grads;  ///< f64
    TensorMap updated;     ///< as RankStep's
};

/// Capacity and sinkhorn look at all tokens of a rank at once: then each rank's tokens
/// run by themselves. Of replicas that have losses or quantiles of their own each runs by
/// itself. The gradients are added. Not every job's losses can be had: why_no_losses().
WholeStep run_whole_step(const RankJob& job, const RankTokens& tokens);

/// Its first micro-batch.
WholeRecord run_whole(const RankJob& job, const RankTokens& tokens);

}  // namespace moe
