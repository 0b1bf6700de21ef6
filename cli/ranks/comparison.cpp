// rank_comparison.cpp: run the layer over ranks and hold it against the whole.

#include "cli/ranks/comparison.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <span>

#include "cli/compare/closeness.h"
#include "cli/compare/given.h"
#include "cli/ranks/asked.h"
#include "cli/ranks/judge.h"
#include "cli/ranks/losses.h"
#include "core/parameters.h"
#include "core/recompute.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

using distributed::RankGenerator;

/// Who sent whom how many bytes in the first micro-batch, what the ranks asked of their
/// devices, and what they dropped.
void count_traffic(RankColumn& column, const std::vector<RankStep>& steps) {
    const std::size_t W = steps.size();
    std::vector<RankRecord> records;
    for (const RankStep& step : steps) records.push_back(step.micro_batches[0]);
    for (const Step step : kExchangeSteps)
        column.sent[step] = Links(W, std::vector<std::int64_t>(W, 0));
    for (std::size_t from = 0; from < W; ++from) {
        column.host_waits = std::max(column.host_waits, records[from].host_waits);
        column.dropped_rows.push_back(0);
        for (const RankRecord& record : steps[from].micro_batches)
            column.dropped_rows.back() += record.dropped_rows;
        for (const auto count : kCountsAsked)
            column.asked.*count =
                std::max(column.asked.*count, records[from].asked.counts.*count);
        for (const auto& [step, bytes_by_peer] : records[from].sent) {
            Links& links = column.sent[step];
            links.resize(W, std::vector<std::int64_t>(W, 0));
            for (const auto& [to, bytes] : bytes_by_peer) links[from][to] += bytes;
        }
    }
}

std::vector<std::vector<gpu::LogEntry>> logs_of(const std::vector<RankStep>& steps) {
    std::vector<std::vector<gpu::LogEntry>> logs;
    for (const RankStep& step : steps) logs.push_back(step.micro_batches[0].asked.log);
    return logs;
}

/// The bytes of ⑥ must be those of the rows that the routing map asks for.
void judge_bytes(RankColumn& column, const MoEConfig& config,
                 const distributed::ParallelSizes& sizes, const Links& rows, bool dense) {
    const Links expected = exchanged_bytes(config, sizes, rows, Step::dispatch,
                                           sending_of(column.spec.dispatcher, dense));
    const Links sent = column.sent_in({Step::dispatch});
    const int runs = recomputes(config, "moe") ? 2 : 1;
    for (int from = 0; from < sizes.world; ++from)
        for (int to = 0; to < sizes.world; ++to)
            if (const std::int64_t asked = runs * expected[from][to];
                sent[from][to] != asked && column.bytes_detail.empty())
                column.bytes_detail = fmt::format(
                    "rank {} sent rank {} {} bytes in ⑥, the routing map asks for {}",
                    from, to, sent[from][to], asked);
    column.ok = column.ok && column.bytes_detail.empty();
}

/// How often Megatron's own dispatcher makes the host wait in a forward. Source:
/// token_dispatcher.py, MoEAllGatherTokenDispatcher.dispatch_postprocess (counts to the
/// CPU), MoEAlltoAllTokenDispatcher._maybe_update_cuda_sync_point; DeepEP's dispatch.
std::int64_t megatron_host_waits(const MoEConfig& config) {
    return config.moe_token_dispatcher_type == "alltoall" &&
                   config.moe_pad_expert_input_to_capacity
               ? 0
               : 1;
}

std::function<void(Step)> say_step(const RankComparisonRequest& request,
                                   const std::string& what) {
    return [&request, what](Step step) {
        request.progress(fmt::format("{}, {} {}", what, circled(step), title(step)));
    };
}

/// The layer on one rank by the router's precision: what ranks are held against.
using Wholes = std::map<DType, WholeStep>;

const WholeStep& whole_for(Wholes& wholes, const RankComparisonRequest& request,
                           RankJob job, const ModuleSpec& spec,
                           const RankTokens& tokens) {
    job.spec = exact_spec(spec);
    const DType router = job.spec.router.dtype;
    if (!wholes.contains(router)) {
        job.on_step = say_step(request, router == DType::bf16
                                            ? "one rank with everything, router of bf16"
                                            : "one rank with everything");
        wholes[router] = run_whole_step(job, tokens);
    }
    return wholes.at(router);
}

DispatcherOutcome run_dispatcher(const RankComparisonRequest& request, RankJob job,
                                 const RankTokens& tokens, Wholes& wholes) {
    DispatcherOutcome outcome;
    const WholeRecord& whole = wholes.at(DType::f64).micro_batches[0];
    outcome.config = job.config;
    outcome.rows = dispatched_rows(job.config, request.sizes, tokens, whole.routing_map);
    outcome.rows_per_token = double(total(outcome.rows)) /
                             double(std::max<std::int64_t>(1, whole.routing_map.dim(0)));
    outcome.balanced_rows_per_token = balanced_rows_per_token(job.config);
    outcome.megatron_host_waits = megatron_host_waits(job.config);
    for (const ModuleSpec& spec : request.columns) {
        RankColumn column;
        column.label = to_string(spec);
        column.spec = spec;
        column.spec.raise_router_dtype(job.config);
        column.emulated = column.spec.is_emulated();
        const int W = request.sizes.world;
        const std::string what = fmt::format("{} over {} rank{}: {}", outcome.name(), W,
                                             W == 1 ? "" : "s", column.label);
        request.progress(what);
        const WholeStep& mine = whole_for(wholes, request, job, column.spec, tokens);
        job.on_step = say_step(request, what);
        job.spec = spec;
        job.counts_asked = spec.uses_device();
        const std::vector<RankStep> steps = run_step_on_ranks(job, tokens);
        judge_values(column, request, tokens, mine, job.config, steps);
        count_traffic(column, steps);
        column.schedule = schedule(logs_of(steps));
        judge_bytes(column, outcome.config, request.sizes,
                    dispatched_rows(job.config, request.sizes, tokens,
                                    mine.micro_batches[0].routing_map),
                    steps[0].micro_batches[0].dense);
        outcome.ok = outcome.ok && column.ok;
        outcome.columns.push_back(column);
    }
    return outcome;
}

}  // namespace

std::optional<Step> RankColumn::first_deviation() const {
    std::optional<Step> first;
    const auto note = [&first](Step step) {
        first = std::min(first.value_or(step), step);
    };
    for (const RankValue& value : values)
        if (!value.ok()) note(value.step);
    if (!bytes_detail.empty()) note(Step::dispatch);
    return first;
}

Links RankColumn::sent_in(const std::vector<Step>& steps) const {
    const std::size_t W = sent.at(Step::dispatch).size();
    Links sum(W, std::vector<std::int64_t>(W, 0));
    for (const Step step : steps)
        if (const auto found = sent.find(step); found != sent.end())
            for (std::size_t from = 0; from < W; ++from)
                for (std::size_t to = 0; to < W; ++to)
                    sum[from][to] += found->second[from][to];
    return sum;
}

std::int64_t RankComparison::rows_of(int rank) const {
    const std::int64_t L = rows_per_expert.dim(1);
    const auto* first = rows_per_expert.data<std::int64_t>() + rank * L;
    return std::accumulate(first, first + L, std::int64_t{0});
}

double RankComparison::overload_factor() const {
    std::int64_t most = 0, all = 0;
    for (int rank = 0; rank < sizes.world; ++rank) {
        most = std::max(most, rows_of(rank));
        all += rows_of(rank);
    }
    return all == 0 ? 0.0 : double(most) * sizes.world / double(all);
}

std::string RankComparison::ranks_in_words() const {
    const int W = sizes.world;
    return backend == "threads"
               ? fmt::format("{} thread{} of one process", W, W == 1 ? "" : "s")
               : fmt::format("{} process{} over {}", W, W == 1 ? "" : "es", backend);
}

std::string RankComparison::whole_in_words() const {
    if (whole_runs == 1) return "all tokens and all experts";
    return depends_on_rank(config())
               ? "all experts and takes each rank's tokens in turn (capacity and "
                 "sinkhorn "
                 "look at a rank's tokens together)"
               : "all experts and takes each replica's tokens in turn (losses and "
                 "quantiles look at them together)";
}

RankComparison run_rank_comparison(const RankComparisonRequest& request) {
    RankComparison result;
    result.model = request.model;
    result.text_name = request.text.name;
    result.seq_len = request.text.seq_len;
    result.micro_batch = request.text.micro_batch;
    result.sizes = request.sizes;
    result.left_out = request.left_out;
    result.tokens = split_tokens(request.sizes, result.seq_len, result.micro_batch);
    result.training = request.training;
    result.micro_batches = 1 + std::int64_t(request.more_text.size());
    const std::string why =
        request.training ? why_no_losses(request.configs.at(0), request.sizes) : "";
    if (!why.empty()) result.losses_left_out = losses_of(request.configs[0]) + ": " + why;
    const auto comparable = [&](const MoEConfig& config) {
        return why.empty() && request.training ? config : without_losses(config);
    };

    request.progress("drawing weights");
    RankJob job;
    job.world = request.world;
    result.backend = request.world != nullptr ? request.world->backend() : "threads";
    job.config = comparable(request.configs[0]);
    job.parameters = request.parameters;
    if (job.parameters.empty())
        job.parameters =
            random_parameters(distributed::single_rank_config(job.config), request.seed);
    const Shape flat = {result.num_tokens(), job.config.hidden_size};
    job.training = request.training;
    const auto input = [&](const TextTokens& text, std::int64_t micro_batch) {
        const Tensor hidden = embed_text(text, job.config.hidden_size, request.seed);
        RankInput given{hidden.reshaped(flat),
                        random_gradient(flat, request.seed, micro_batch),
                        text_ids(job.config, text)};
        if (!request.target_topk_idx.empty())
            given.target_topk_idx = join_rows(request.target_topk_idx, result.tokens);
        return given;
    };
    static_cast<RankInput&>(job) = input(request.text, 0);
    for (const TextTokens& text : request.more_text)
        job.more_micro_batches.push_back(
            input(text, 1 + std::int64_t(job.more_micro_batches.size())));
    Wholes wholes;
    const WholeRecord& whole =
        whole_for(wholes, request, job,
                  ModuleSpec::uniform({"reference_cpu", DType::f64}), result.tokens)
            .micro_batches[0];
    result.whole_runs = whole.runs;
    result.topk_idx = whole.topk_idx;
    result.probs = whole.probs;
    result.rows_per_expert =
        rows_per_expert(job.config, request.sizes, result.tokens, whole.routing_map);
    result.hit = counted_hit(job.config, whole.routing_map);
    result.balanced_hit = balanced_hit(job.config);

    for (const MoEConfig& config : request.configs) {
        job.config = comparable(config);
        result.dispatchers.push_back(run_dispatcher(request, job, result.tokens, wholes));
        result.ok = result.ok && result.dispatchers.back().ok;
    }
    return result;
}

std::vector<std::string> DispatcherOutcome::dropped_in_words() const {
    std::vector<std::string> lines;
    for (const RankColumn& column : columns)
        for (std::size_t rank = 0; rank < column.dropped_rows.size(); ++rank)
            if (const std::int64_t rows = column.dropped_rows[rank]; rows > 0)
                lines.push_back(fmt::format(
                    "{} {}: rank {} dropped {} rows for which its experts had no room, "
                    "moe_expert_rank_capacity_factor = {}",
                    name(), column.label, rank, rows,
                    *config.moe_expert_rank_capacity_factor));
    return lines;
}

}  // namespace moe
