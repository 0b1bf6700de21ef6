// run.cpp: the layer over ranks. What one rank makes of the same is in whole.cpp.

#include "cli/ranks/run.h"

#include <cstring>

#include "cli/compare/given.h"
#include "cli/ranks/asked.h"
#include "cli/ranks/losses.h"
#include "cli/ranks/processes.h"
#include "core/error.h"
#include "core/moe_layer.h"
#include "core/recompute.h"
#include "core/transfer.h"
#include "distributed/communicators/thread_communicator.h"
#include "distributed/peer_memory/flagged_heap.h"
#include "distributed/process_groups.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

using distributed::ParallelSizes;
using distributed::RankGenerator;

// Ranks share a few cores; only one that is really stuck is this late.
constexpr std::chrono::minutes kDeadline{10};

Tensor on_host(const TensorView& view) {
    return transfer(view, {MemorySpace::host, view.dtype});
}

std::int64_t row_bytes(const Tensor& tensor) {
    std::int64_t bytes = std::int64_t(size_of(tensor.dtype()));
    for (std::size_t axis = 1; axis < tensor.shape().size(); ++axis)
        bytes *= tensor.shape()[axis];
    return bytes;
}

/// Keeps everything that a rank shows.
class RankObserver : public Observer {
  public:
    RankObserver(RankRecord& record, distributed::OpLedger& ledger,
                 std::function<void(Step)> on_step)
        : record_(record), ledger_(ledger), on_step_(std::move(on_step)) {
        ledger_.reset_sent();  // making the groups is not the layer's work
    }
    void on_value(Step step, const std::string& name, const TensorView& view) override {
        TensorMap& values = record_.values[step];
        if (values.empty()) on_step_(step);
        values[name] = on_host(view);
    }
    /// A step's exchanges lie within its stretches of time.
    void on_time(const Steps& steps, double) override {
        for (const auto& [operation, bytes_by_peer] : ledger_.sent())
            for (const auto& [peer, bytes] : bytes_by_peer)
                record_.sent[steps.first][peer] += bytes;
        ledger_.reset_sent();
    }
    void on_host_wait(Step step, const std::string&) override {
        record_.host_waits += is_backward(step) ? 0 : 1;
    }

  private:
    RankRecord& record_;
    distributed::OpLedger& ledger_;
    std::function<void(Step)> on_step_;
};

/// The layer on one rank of `world`.
RankStep run_rank(const RankJob& job, const RankTokens& tokens,
                  distributed::Communicator& world) {
    const auto& mine = tokens.of_rank[world.rank()];
    const Shape shape = {tokens.seq_len, tokens.micro_batch, job.config.hidden_size};
    const auto groups = distributed::make_process_groups(world, job.config);
    MoELayer layer(job.config, job.spec,
                   distributed::shard_parameters(job.config, job.parameters, *groups),
                   groups);
    const bool speaks = world.rank() == 0;
    RankStep step;
    for (const RankInput& input : job.micro_batches()) {
        RankRecord& record = step.micro_batches.emplace_back(run_layer(
            layer, input.take(mine), shape, job.context(), world.ledger(),
            speaks ? job.on_step : [](Step) {}));
        // ⑥ drops the same rows each time that it runs
        record.dropped_rows = groups->flagged_heap->take_dropped_rows() /
                              (recomputes(job.config, "moe") ? 2 : 1);
        add_to_main_grads(step.main_grads, record.gradients);
    }
    if (job.training) step.updated = buffers_after(layer);
    if (job.counts_asked) {
        RankJob bare = job;
        bare.config = without_losses(job.config);
        step.micro_batches[0].asked = count_asked(bare, tokens, groups);
    }
    return step;
}

}  // namespace

RankTokens split_tokens(const ParallelSizes& sizes, std::int64_t seq_len,
                        std::int64_t micro_batch) {
    const std::int64_t shards = std::int64_t(sizes.tensor) * sizes.context;
    MOE_CHECK(seq_len % shards == 0 && micro_batch % sizes.data() == 0);
    const RankGenerator grid = RankGenerator::dense(sizes);
    RankTokens tokens{seq_len / shards, micro_batch / sizes.data(), {}};
    for (int rank = 0; rank < sizes.world; ++rank) {
        const std::int64_t part =
            std::int64_t(grid.key(rank, "cp")) * sizes.tensor + grid.key(rank, "tp");
        const std::int64_t first_s = part * tokens.seq_len;
        const std::int64_t first_b = grid.key(rank, "dp") * tokens.micro_batch;
        auto& mine = tokens.of_rank.emplace_back();
        for (std::int64_t s = 0; s < tokens.seq_len; ++s)
            for (std::int64_t b = 0; b < tokens.micro_batch; ++b)
                mine.push_back((first_s + s) * micro_batch + first_b + b);
    }
    return tokens;
}

Tensor take_rows(const Tensor& whole, const std::vector<std::int64_t>& tokens) {
    Shape shape = whole.shape();
    shape.at(0) = std::int64_t(tokens.size());
    const Tensor part = Tensor::empty(shape, whole.dtype());
    const std::int64_t bytes = row_bytes(whole);
    auto* to = static_cast<std::byte*>(part.view().bytes);
    const auto* from = static_cast<const std::byte*>(whole.view().bytes);
    if (bytes > 0)
        for (std::size_t row = 0; row < tokens.size(); ++row)
            std::memcpy(to + std::int64_t(row) * bytes, from + tokens[row] * bytes,
                        bytes);
    return part;
}

Tensor join_rows(const std::vector<Tensor>& parts, const RankTokens& tokens) {
    Shape shape = parts.at(0).shape();
    shape.at(0) = 0;
    for (const Tensor& part : parts) shape[0] += part.dim(0);
    const Tensor whole = Tensor::empty(shape, parts[0].dtype());
    const std::int64_t bytes = row_bytes(whole);
    auto* to = static_cast<std::byte*>(whole.view().bytes);
    for (std::size_t rank = 0; rank < parts.size(); ++rank) {
        const auto* from = static_cast<const std::byte*>(parts[rank].view().bytes);
        for (std::size_t row = 0; row < tokens.of_rank[rank].size(); ++row)
            if (bytes > 0)
                std::memcpy(to + tokens.of_rank[rank][row] * bytes,
                            from + std::int64_t(row) * bytes, bytes);
    }
    return whole;
}

RankInput RankInput::take(const std::vector<std::int64_t>& tokens) const {
    const auto rows = [&](const Tensor& all) {
        return all.defined() ? take_rows(all, tokens) : Tensor();
    };
    return {rows(hidden), rows(doutput), rows(token_ids), rows(target_topk_idx)};
}

TensorMap buffers_after(MoELayer& layer) {
    const UpdatedBuffers updated = finish_optimizer_step(layer);
    TensorMap buffers;
    if (updated.expert_bias.defined())
        buffers["expert_bias_updated"] = on_host(updated.expert_bias);
    if (updated.qb_beta.defined()) buffers["qb_beta_updated"] = on_host(updated.qb_beta);
    return buffers;
}

std::vector<RankInput> RankJob::micro_batches() const {
    std::vector<RankInput> all = {*this};
    all.insert(all.end(), more_micro_batches.begin(), more_micro_batches.end());
    return all;
}

RunContext RankJob::context() const {
    return {.training = training,
            .main_loss_backward_scale = main_loss_backward_scale(
                config, 1 + std::int64_t(more_micro_batches.size()))};
}

RankRecord run_layer(MoELayer& layer, const RankInput& input, const Shape& shape,
                     RunContext context, distributed::OpLedger& ledger,
                     const std::function<void(Step)>& on_step) {
    const Tensor &hidden = input.hidden, &doutput = input.doutput;
    context.token_ids = by_sequence(input.token_ids, shape[0], shape[1]);
    context.target_topk_idx = input.target_topk_idx;
    RankRecord record;
    RankObserver observer(record, ledger, on_step);
    context.observer = &observer;
    auto forward = layer.forward(hidden.reshaped(shape), {}, context);
    for (const auto& [name, loss] : forward.losses.read())
        record.losses[name] = Tensor::from<double>({}, {loss});
    auto gradients = layer.backward(doutput.reshaped(shape), forward.saved, context);
    record.dense = forward.saved.dense;
    record.output = on_host(forward.output).reshaped(hidden.shape());
    record.d_hidden = on_host(gradients.hidden_states).reshaped(hidden.shape());
    for (const auto& [name, gradient] : gradients.parameters)
        record.gradients[name] = on_host(gradient);
    return record;
}

std::vector<RankStep> run_step_on_ranks(const RankJob& job, const RankTokens& tokens) {
    if (job.world != nullptr)
        return gather_steps(*job.world, run_rank(job, tokens, *job.world));
    std::vector<RankStep> steps(tokens.of_rank.size());
    distributed::run_ranks(
        int(steps.size()),
        [&](distributed::Communicator& world) {
            steps[world.rank()] = run_rank(job, tokens, world);
        },
        kDeadline);
    return steps;
}

std::vector<RankRecord> run_on_ranks(const RankJob& job, const RankTokens& tokens) {
    std::vector<RankRecord> first;
    for (RankStep& step : run_step_on_ranks(job, tokens))
        first.push_back(std::move(step.micro_batches[0]));
    return first;
}

std::vector<TensorMap> shard_for_ranks(const MoEConfig& config, int ranks,
                                       const TensorMap& whole) {
    std::vector<TensorMap> shards(ranks);
    distributed::run_ranks(ranks, [&](distributed::Communicator& world) {
        const auto groups = distributed::make_process_groups(world, config);
        shards[world.rank()] = distributed::shard_parameters(config, whole, *groups);
    });
    return shards;
}

}  // namespace moe
