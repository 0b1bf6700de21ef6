// whole.cpp: the layer on one rank that has all experts and everybody's tokens.

#include <algorithm>
#include <numeric>
#include <optional>

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

/// Random numbers know their tokens by the place among all.
bool draws_by_token(const MoEConfig& config) {
    return config.has_random_logits() || config.moe_input_jitter_eps.has_value();
}

/// The tokens that have to run together.
RankTokens split_runs(const RankJob& job, const RankTokens& tokens,
                      const ParallelSizes& sizes) {
    if (depends_on_rank(job.config)) return tokens;
    const RankTokens all = all_tokens(tokens, sizes);
    const bool by_replica = has_losses_of_replica(job.config) ||
                            (job.config.is_quantile_balancing() && job.training);
    if (sizes.data() == 1 || !by_replica || draws_by_token(job.config)) return all;
    return split_tokens({.world = sizes.data()}, all.seq_len, all.micro_batch);
}

/// The global loss of all replicas, in a layer that has no other and keeps its counts
/// over the micro-batches.
class GlobalLoss {
  public:
    /// @param config  with that coefficient; calculate_per_token_loss weighs the tokens
    /// of
    ///                one replica
    GlobalLoss(const RankJob& job, const MoEConfig& config, const ParallelSizes& sizes)
        : config_(alone(config, sizes)), layer_(config_, job.spec, job.parameters) {}

    /// Nothing else has a gradient in this run.
    /// @param all  tokens of all ranks
    void add_to(WholeRecord& whole, const RankJob& job, const RankInput& input,
                const RankTokens& all) {
        distributed::OpLedger silent;
        const RankRecord record =
            run_layer(layer_, without_gradient(input),
                      {all.seq_len, all.micro_batch, config_.hidden_size}, job.context(),
                      silent, [](Step) {});
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

  private:
    static RankInput without_gradient(RankInput input) {
        input.doutput = Tensor::zeros(input.doutput.shape(), DType::f32);
        return input;
    }
    static MoEConfig alone(const MoEConfig& with_global, const ParallelSizes& sizes) {
        MoEConfig config = without_losses(with_global);
        const auto& types = config.moe_router_load_balancing_type;
        const auto at = std::find(types.begin(), types.end(), "global_aux_loss");
        config.moe_aux_loss_coeff[at - types.begin()] =
            with_global.aux_loss_coeff("global_aux_loss") /
            (config.calculate_per_token_loss ? sizes.data() : 1);
        config.moe_expert_capacity_factor.reset();
        config.moe_pad_expert_input_to_capacity = false;
        return config;
    }

    MoEConfig config_;
    MoELayer layer_;
};

/// One micro-batch, in as many runs as it takes.
WholeRecord run_micro_batch(MoELayer& layer, const RankJob& job, const RankInput& input,
                            const RankTokens& runs) {
    const Shape shape = {runs.seq_len, runs.micro_batch, layer.config().hidden_size};
    WholeRecord whole;
    whole.runs = int(runs.of_rank.size());
    std::vector<Tensor> outputs, d_hidden, probs, maps, chosen, logits, scores, d_logits;
    for (const auto& mine : runs.of_rank) {
        distributed::OpLedger silent;
        const RankRecord record =
            run_layer(layer, input.take(mine), shape, job.context(), silent, job.on_step);
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
    whole.output = join_rows(outputs, runs);
    whole.d_hidden = join_rows(d_hidden, runs);
    whole.probs = join_rows(probs, runs);
    whole.routing_map = join_rows(maps, runs);
    whole.topk_idx = join_rows(chosen, runs);
    whole.logits = join_rows(logits, runs);
    if (!scores.empty()) whole.aux_scores = join_rows(scores, runs);
    whole.d_logits_losses = join_rows(d_logits, runs);
    return whole;
}

}  // namespace

WholeStep run_whole_step(const RankJob& job, const RankTokens& tokens) {
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
    std::optional<GlobalLoss> global_loss;
    if (config.aux_loss_coeff("global_aux_loss") != 0.0 && sizes.data() > 1) {
        if (job.training) global_loss.emplace(job, config, sizes);
        for (std::size_t i = 0; i < config.moe_aux_loss_coeff.size(); ++i)
            if (config.moe_router_load_balancing_type[i] == "global_aux_loss")
                config.moe_aux_loss_coeff[i] = 0.0;
    }

    const RankTokens runs = split_runs(job, tokens, sizes);
    WholeStep step;
    MoELayer layer(config, job.spec, job.parameters);
    for (const RankInput& input : job.micro_batches()) {
        WholeRecord whole = run_micro_batch(layer, job, input, runs);
        if (global_loss)
            global_loss->add_to(whole, job, input, all_tokens(tokens, sizes));
        for (const auto& [name, gradient] : whole.gradients)
            add(step.main_grads[name], gradient);
        step.micro_batches.push_back(std::move(whole));
    }
    if (job.training) step.updated = buffers_after(layer);
    // Quantiles of all replicas together are not the mean of theirs
    if (sizes.data() > 1 && draws_by_token(config)) step.updated.erase("qb_beta_updated");
    return step;
}

WholeRecord run_whole(const RankJob& job, const RankTokens& tokens) {
    return std::move(run_whole_step(job, tokens).micro_batches[0]);
}

}  // namespace moe
