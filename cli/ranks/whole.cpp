// whole.cpp: the layer on one rank that has all experts and everybody's tokens.

#include <algorithm>
#include <numeric>

#include "cli/ranks/losses.h"
#include "cli/ranks/run.h"
#include "core/error.h"
#include "core/moe_layer.h"
#include "core/transfer.h"
#include "distributed/sharding.h"

namespace moe {
namespace {

using distributed::ParallelSizes;

/// In f64, whatever the sum was in.
void add(Tensor& sum, const Tensor& term) {
    sum = sum.defined() ? Tensor::from(term.shape(), to_doubles(sum))
                        : Tensor::zeros(term.shape(), DType::f64);
    const std::vector<double> terms = to_doubles(term);
    for (std::size_t i = 0; i < terms.size(); ++i) sum.data<double>()[i] += terms[i];
}

/// S and B of all ranks together.
RankTokens all_tokens(const RankTokens& tokens, const ParallelSizes& sizes) {
    const std::int64_t S = tokens.seq_len * sizes.tensor * sizes.context;
    RankTokens all{S, tokens.micro_batch * sizes.data(), {{}}};
    all.of_rank[0].resize(all.per_rank());
    std::iota(all.of_rank[0].begin(), all.of_rank[0].end(), 0);
    return all;
}

/// The logits that the losses see.
const Tensor& logits_of(const RankRecord& record) {
    const TensorMap& gating = record.values.at(Step::gating);
    const auto random = gating.find("random_logits");
    return random == gating.end() ? gating.at("logits") : random->second;
}

/// What the load-balancing losses see; undefined without one.
Tensor aux_scores_of(const RankRecord& record) {
    const auto values = record.values.find(Step::auxiliary_losses);
    if (values == record.values.end()) return {};
    const auto scores = values->second.find("aux_scores");
    return scores == values->second.end() ? Tensor() : scores->second;
}

/// The tokens that have to run together.
RankTokens split_runs(const RankJob& job, const RankTokens& tokens,
                      const ParallelSizes& sizes) {
    if (depends_on_rank(job.config)) return tokens;
    const RankTokens all = all_tokens(tokens, sizes);
    if (sizes.data() == 1 || !has_losses_of_replica(job.config) ||
        job.config.has_random_logits() || job.config.moe_input_jitter_eps)
        return all;  // random numbers know their tokens by the place among all
    return split_tokens({.world = sizes.data()}, all.seq_len, all.micro_batch);
}

/// The global loss looks at all replicas, and with calculate_per_token_loss weighs the
/// tokens of one. Nothing else has a gradient in this run.
/// @param all  tokens of all ranks
void add_global_loss(WholeRecord& whole, const RankJob& job, const RankTokens& all,
                     MoEConfig config, double coeff) {
    config = without_losses(config);
    const auto& types = config.moe_router_load_balancing_type;
    const auto at = std::find(types.begin(), types.end(), "global_aux_loss");
    config.moe_aux_loss_coeff[at - types.begin()] = coeff;
    config.moe_expert_capacity_factor.reset();
    config.moe_pad_expert_input_to_capacity = false;
    MoELayer layer(config, job.spec, job.parameters);
    distributed::OpLedger silent;
    const RankRecord record =
        run_layer(layer, job.hidden, Tensor::zeros(job.doutput.shape(), DType::f32),
                  {all.seq_len, all.micro_batch, config.hidden_size},
                  context_of(job, all.of_rank[0], all.seq_len, all.micro_batch), silent,
                  [](Step) {});
    const std::string name = "global_load_balancing_loss";
    whole.losses[name] = to_doubles(record.losses.at(name));
    whole.aux_scores = aux_scores_of(record);
    add(whole.d_hidden, record.d_hidden);
    add(whole.d_logits_losses,
        record.values.at(Step::auxiliary_losses_backward).at("d_logits_losses"));
    for (const auto& [parameter, gradient] : record.gradients)
        add(whole.gradients[parameter], gradient);
    whole.global_loss_apart = true;
}

}  // namespace

WholeRecord run_whole(const RankJob& job, const RankTokens& tokens) {
    MoEConfig config = distributed::single_rank_config(job.config);
    if (config.has_random_logits() && depends_on_rank(config))
        reject("moe_router_force_load_balancing, moe_router_force_biased",
               "random logits",
               "must be left out over ranks with a capacity or sinkhorn");
    if (config.moe_input_jitter_eps && depends_on_rank(config))
        reject("moe_input_jitter_eps", *config.moe_input_jitter_eps,
               "must be left out over ranks with a capacity or sinkhorn");
    const ParallelSizes sizes =
        distributed::parallel_sizes(job.config, int(tokens.of_rank.size()));
    const double global = config.aux_loss_coeff("global_aux_loss");
    const bool apart = global != 0.0 && sizes.data() > 1;
    const MoEConfig with_global = config;
    if (apart)
        for (std::size_t i = 0; i < config.moe_aux_loss_coeff.size(); ++i)
            if (config.moe_router_load_balancing_type[i] == "global_aux_loss")
                config.moe_aux_loss_coeff[i] = 0.0;

    const RankTokens runs = split_runs(job, tokens, sizes);
    const Shape shape = {runs.seq_len, runs.micro_batch, config.hidden_size};
    WholeRecord whole;
    whole.runs = int(runs.of_rank.size());
    std::vector<Tensor> outputs, d_hidden, probs, maps, chosen, logits, scores, d_logits;
    {
        MoELayer layer(config, job.spec, job.parameters);
        for (const auto& mine : runs.of_rank) {
            distributed::OpLedger silent;
            const RankRecord record = run_layer(
                layer, take_rows(job.hidden, mine), take_rows(job.doutput, mine), shape,
                context_of(job, mine, runs.seq_len, runs.micro_batch), silent,
                job.on_step);
            const TensorMap& dropped = record.values.at(Step::token_dropping);
            outputs.push_back(record.output);
            d_hidden.push_back(record.d_hidden);
            probs.push_back(dropped.at("probs"));
            maps.push_back(dropped.at("routing_map"));
            chosen.push_back(record.values.at(Step::routing).at("topk_idx"));
            logits.push_back(logits_of(record));
            if (const Tensor seen = aux_scores_of(record); seen.defined())
                scores.push_back(seen);
            d_logits.push_back(
                record.values.at(Step::auxiliary_losses_backward).at("d_logits_losses"));
            for (const auto& [name, loss] : record.losses)
                whole.losses[name].push_back(to_doubles(loss)[0]);
            for (const auto& [name, gradient] : record.gradients)
                add(whole.gradients[name], gradient);
        }
    }
    whole.output = join_rows(outputs, runs);
    whole.d_hidden = join_rows(d_hidden, runs);
    whole.probs = join_rows(probs, runs);
    whole.routing_map = join_rows(maps, runs);
    whole.topk_idx = join_rows(chosen, runs);
    whole.logits = join_rows(logits, runs);
    if (!scores.empty()) whole.aux_scores = join_rows(scores, runs);
    whole.d_logits_losses = join_rows(d_logits, runs);
    if (apart) {
        const int weight = config.calculate_per_token_loss ? sizes.data() : 1;
        add_global_loss(whole, job, all_tokens(tokens, sizes), with_global,
                        global / weight);
    }
    return whole;
}

}  // namespace moe
