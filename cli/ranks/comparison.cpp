// rank_comparison.cpp: run the layer over ranks and hold it against the whole.

#include "cli/ranks/comparison.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cli/compare/closeness.h"
#include "cli/compare/given.h"
#include "cli/ranks/asked.h"
#include "cli/ranks/losses.h"
#include "core/parameters.h"
#include "core/rng.h"
#include "core/transfer.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

using distributed::RankGenerator;

/// Tensors of equal inner shape one after another along axis 0, as f64.
Tensor concatenate(const std::vector<Tensor>& parts) {
    Shape shape = parts.at(0).shape();
    std::vector<double> values;
    shape.at(0) = 0;
    for (const Tensor& part : parts) {
        shape[0] += part.dim(0);
        const std::vector<double> more = to_doubles(part);
        values.insert(values.end(), more.begin(), more.end());
    }
    return Tensor::from(shape, values);
}

Tensor sum_of(const std::vector<RankRecord>& records, const std::vector<int>& ranks,
              const std::string& name) {
    const Tensor& first = records[ranks.at(0)].gradients.at(name);
    const Tensor sum = Tensor::zeros(first.shape(), DType::f64);
    for (const int rank : ranks) {
        const std::vector<double> terms = to_doubles(records[rank].gradients.at(name));
        for (std::size_t i = 0; i < terms.size(); ++i)
            sum.view().data<double>()[i] += terms[i];
    }
    return sum;
}

/// Groups of ranks that hold the same shard of a parameter: their gradients add up.
std::vector<std::vector<int>> holders(const distributed::ParallelSizes& sizes,
                                      const std::string& parameter) {
    if (parameter.starts_with("experts."))
        return RankGenerator::experts(sizes).get_ranks("dp");
    return RankGenerator::dense(sizes).get_ranks(
        parameter.starts_with("shared_experts.linear") ? "dp-cp" : "tp-dp-cp");
}

/// Holds what ranks made against what is expected, value by value.
class Judge {
  public:
    Judge(RankColumn& column, const RankComparisonRequest& request,
          const RankTokens& tokens, const WholeRecord& whole)
        : column_(column), request_(request), tokens_(tokens), whole_(whole) {}

    void judge(const MoEConfig& config, const std::vector<RankRecord>& records) {
        const auto join = [&](const auto& get) {
            std::vector<Tensor> parts;
            for (const RankRecord& record : records) parts.push_back(get(record));
            return join_rows(parts, tokens_);
        };
        const auto after_dropping = [&](const char* name) {
            return join([name](const RankRecord& r) {
                return r.values.at(Step::token_dropping).at(name);
            });
        };
        compare(Step::token_dropping, "routing_map", after_dropping("routing_map"),
                whole_.routing_map);
        compare(Step::token_dropping, "probs", after_dropping("probs"), whole_.probs);
        std::vector<Tensor> counts;
        for (const RankRecord& record : records)
            counts.push_back(record.values.at(Step::dispatch)
                                 .at("tokens_per_expert")
                                 .reshaped({1, config.num_local_experts()}));
        compare(Step::dispatch, "tokens_per_expert", concatenate(counts),
                rows_per_expert(config, request_.sizes, tokens_, whole_.routing_map),
                true);
        compare(Step::combine, "output",
                join([](const RankRecord& r) { return r.output; }), whole_.output);
        judge_losses(config, records, join);
        // The last part of the sum
        compare(Step::shared_experts_backward, "d_hidden_states",
                join([](const RankRecord& r) { return r.d_hidden; }), whole_.d_hidden);
        judge_parameters(config, records);
    }

  private:
    /// What each rank has of a loss, what that is together, of a replica or of all, and
    /// the gradient that the losses give each logit.
    template <typename Join>
    void judge_losses(const MoEConfig& config, const std::vector<RankRecord>& records,
                      const Join& join) {
        const RankGenerator grid = RankGenerator::dense(request_.sizes);
        for (const auto& [name, of_whole] : whole_.losses) {
            const bool of_all = name.starts_with("global");
            std::vector<double> got, sums(of_whole.size());
            for (std::size_t rank = 0; rank < records.size(); ++rank) {
                got.push_back(to_doubles(records[rank].losses.at(name))[0]);
                sums[of_all ? 0 : grid.key(int(rank), "dp")] +=
                    name == "z_loss" ? got.back() / grid.group_size("tp-cp") : got.back();
            }
            std::vector<double> expected =
                losses_by_rank(name, whole_, config, tokens_, request_.sizes);
            got.insert(got.end(), sums.begin(), sums.end());
            expected.insert(expected.end(), of_whole.begin(), of_whole.end());
            const Shape shape = {std::int64_t(got.size())};
            compare(Step::auxiliary_losses, name, Tensor::from(shape, got),
                    Tensor::from(shape, expected));
        }
        if (!whole_.losses.empty())
            compare(Step::auxiliary_losses_backward, "d_logits_losses",
                    join([](const RankRecord& r) {
                        return r.values.at(Step::auxiliary_losses_backward)
                            .at("d_logits_losses");
                    }),
                    whole_.d_logits_losses);
    }

    void judge_parameters(const MoEConfig& config,
                          const std::vector<RankRecord>& records) {
        const std::vector<TensorMap> expected =
            shard_for_ranks(config, request_.sizes.world, whole_.gradients);
        for (const auto& [name, gradient] : whole_.gradients) {
            std::vector<Tensor> sums, shards;
            for (const std::vector<int>& ranks : holders(request_.sizes, name)) {
                sums.push_back(sum_of(records, ranks, name));
                shards.push_back(expected[ranks[0]].at(name));
            }
            compare(step_of_gradient(name), "d_" + name, concatenate(sums),
                    concatenate(shards));
        }
    }

    void compare(Step step, const std::string& name, const Tensor& got,
                 const Tensor& expected, bool integers = false) {
        RankValue value;
        value.name = name;
        value.step = step;
        value.exact = integers || !is_floating(expected.dtype());
        if (!value.exact)
            value.bound =
                tier_bound(request_.configs[0], dtype_of(name), is_backward(step));
        const Closeness closeness = measure_closeness(
            got, expected, noise_of(name, request_.configs[0], tokens_.per_rank()));
        value.error = closeness.error;
        if (!closeness.within(value.bound))
            value.detail = describe_worst(closeness, got, expected);
        column_.ok = column_.ok && value.ok();
        column_.values.push_back(value);
    }

    /// By which a value is judged: losses' scores are fp32 in every tier, and where the
    /// global loss was added to the others, their gradients were rounded apart.
    DType dtype_of(const std::string& name) const {
        const bool of_losses = name == "d_logits_losses" || name == "d_hidden_states" ||
                               name.starts_with("d_router.");
        const DType coarsest = column_.spec.coarsest_dtype();
        return whole_.global_loss_apart && of_losses && coarsest == DType::f64
                   ? DType::f32
                   : coarsest;
    }

    RankColumn& column_;
    const RankComparisonRequest& request_;
    const RankTokens& tokens_;
    const WholeRecord& whole_;
};

/// Who sent whom how many bytes, what the ranks asked of their devices, and what they
/// dropped.
void count_traffic(RankColumn& column, const std::vector<RankRecord>& records) {
    const std::size_t W = records.size();
    for (const Step step : kExchangeSteps)
        column.sent[step] = Links(W, std::vector<std::int64_t>(W, 0));
    for (std::size_t from = 0; from < W; ++from) {
        column.host_waits = std::max(column.host_waits, records[from].host_waits);
        column.dropped_rows.push_back(records[from].dropped_rows);
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

std::vector<std::vector<gpu::LogEntry>> logs_of(const std::vector<RankRecord>& records) {
    std::vector<std::vector<gpu::LogEntry>> logs;
    for (const RankRecord& record : records) logs.push_back(record.asked.log);
    return logs;
}

/// The bytes of ⑥ must be those of the rows that the routing map asks for.
void judge_bytes(RankColumn& column, const MoEConfig& config,
                 const distributed::ParallelSizes& sizes, const Links& rows, bool dense) {
    const Links expected = exchanged_bytes(config, sizes, rows, Step::dispatch,
                                           sending_of(column.spec.dispatcher, dense));
    const Links sent = column.sent_in({Step::dispatch});
    for (int from = 0; from < sizes.world; ++from)
        for (int to = 0; to < sizes.world; ++to)
            if (sent[from][to] != expected[from][to] && column.bytes_detail.empty())
                column.bytes_detail = fmt::format(
                    "rank {} sent rank {} {} bytes in ⑥, the routing map asks for {}",
                    from, to, sent[from][to], expected[from][to]);
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
using Wholes = std::map<DType, WholeRecord>;

const WholeRecord& whole_for(Wholes& wholes, const RankComparisonRequest& request,
                             RankJob job, const ModuleSpec& spec,
                             const RankTokens& tokens) {
    job.spec = exact_spec(spec);
    const DType router = job.spec.router.dtype;
    if (!wholes.contains(router)) {
        job.on_step = say_step(request, router == DType::bf16
                                            ? "one rank with everything, router of bf16"
                                            : "one rank with everything");
        wholes[router] = run_whole(job, tokens);
    }
    return wholes.at(router);
}

DispatcherOutcome run_dispatcher(const RankComparisonRequest& request, RankJob job,
                                 const RankTokens& tokens, Wholes& wholes) {
    DispatcherOutcome outcome;
    const WholeRecord& whole = wholes.at(DType::f64);
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
        const std::string what = fmt::format("{} over {} ranks: {}", outcome.name(),
                                             request.sizes.world, column.label);
        request.progress(what);
        const WholeRecord& mine = whole_for(wholes, request, job, column.spec, tokens);
        job.on_step = say_step(request, what);
        job.spec = spec;
        job.counts_asked = spec.uses_device();
        const std::vector<RankRecord> records = run_on_ranks(job, tokens);
        Judge(column, request, tokens, mine).judge(job.config, records);
        count_traffic(column, records);
        column.schedule = schedule(logs_of(records));
        judge_bytes(column, outcome.config, request.sizes,
                    dispatched_rows(job.config, request.sizes, tokens, mine.routing_map),
                    records[0].dense);
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
    return backend == "threads" ? "threads of one process" : "processes over " + backend;
}

std::string RankComparison::whole_in_words() const {
    if (whole_runs == 1) return "all tokens and all experts";
    return depends_on_rank(config())
               ? "all experts and takes each rank's tokens in turn (capacity and "
                 "sinkhorn "
                 "look at a rank's tokens together)"
               : "all experts and takes each replica's tokens in turn (losses look at "
                 "them together)";
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
    const std::string why = why_no_losses(request.configs.at(0), request.sizes);
    if (!why.empty()) result.losses_left_out = losses_of(request.configs[0]) + ": " + why;
    const auto comparable = [&](const MoEConfig& config) {
        return why.empty() ? config : without_losses(config);
    };

    request.progress("drawing weights");
    RankJob job;
    job.world = request.world;
    result.backend = request.world != nullptr ? request.world->backend() : "threads";
    job.config = comparable(request.configs[0]);
    job.parameters =
        random_parameters(distributed::single_rank_config(job.config), request.seed);
    const Shape flat = {result.num_tokens(), job.config.hidden_size};
    job.hidden =
        embed_text(request.text, job.config.hidden_size, request.seed).reshaped(flat);
    job.doutput = random_gradient(flat, request.seed);
    job.token_ids = text_ids(job.config, request.text);
    if (!request.target_topk_idx.empty())
        job.target_topk_idx = join_rows(request.target_topk_idx, result.tokens);
    Wholes wholes;
    const WholeRecord& whole =
        whole_for(wholes, request, job,
                  ModuleSpec::uniform({"reference_cpu", DType::f64}), result.tokens);
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
