// judge.cpp: the ranks' values against the whole's.

#include "cli/ranks/judge.h"

#include <span>

#include "cli/compare/closeness.h"
#include "cli/ranks/losses.h"
#include "core/transfer.h"

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

/// @param gradients  of every rank
Tensor sum_of(const std::vector<TensorMap>& gradients, const std::vector<int>& ranks,
              const std::string& name) {
    const Tensor& first = gradients[ranks.at(0)].at(name);
    const Tensor sum = Tensor::zeros(first.shape(), DType::f64);
    for (const int rank : ranks) {
        const std::vector<double> terms = to_doubles(gradients[rank].at(name));
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
          const RankTokens& tokens, const WholeStep& whole)
        : column_(column), request_(request), tokens_(tokens), step_(whole) {}

    void judge(const MoEConfig& config, const std::vector<RankStep>& steps) {
        const std::size_t count = step_.micro_batches.size();
        for (std::size_t i = 0; i < count; ++i) {
            std::vector<RankRecord> records;
            for (const RankStep& step : steps) records.push_back(step.micro_batches[i]);
            if (count > 1) where_ = fmt::format("micro-batch {}: ", i);
            judge_micro_batch(config, records, i);
        }
        where_.clear();
        std::vector<TensorMap> sums;
        for (const RankStep& step : steps) sums.push_back(step.main_grads);
        if (count > 1) judge_parameters(config, "main_grad of ", sums, step_.main_grads);
        for (const auto& [name, expected] : step_.updated)
            judge_buffer(name, steps, expected);
    }

  private:
    void judge_micro_batch(const MoEConfig& config,
                           const std::vector<RankRecord>& records,
                           std::size_t micro_batch) {
        const WholeRecord& whole = step_.micro_batches[micro_batch];
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
                whole.routing_map);
        compare(Step::token_dropping, "probs", after_dropping("probs"), whole.probs);
        std::vector<Tensor> counts;
        for (const RankRecord& record : records)
            counts.push_back(record.values.at(Step::dispatch)
                                 .at("tokens_per_expert")
                                 .reshaped({1, config.num_local_experts()}));
        compare(Step::dispatch, "tokens_per_expert", concatenate(counts),
                rows_per_expert(config, request_.sizes, tokens_, whole.routing_map),
                true);
        compare(Step::combine, "output",
                join([](const RankRecord& r) { return r.output; }), whole.output);
        judge_losses(config, records, micro_batch, join);
        // The last part of the sum
        compare(Step::shared_experts_backward, "d_hidden_states",
                join([](const RankRecord& r) { return r.d_hidden; }), whole.d_hidden);
        std::vector<TensorMap> gradients;
        for (const RankRecord& record : records) gradients.push_back(record.gradients);
        judge_parameters(config, "d_", gradients, whole.gradients);
    }

    /// What each rank has of a loss, what that is together, of a replica or of all, and
    /// the gradient that the losses give each logit.
    template <typename Join>
    void judge_losses(const MoEConfig& config, const std::vector<RankRecord>& records,
                      std::size_t micro_batch, const Join& join) {
        const RankGenerator grid = RankGenerator::dense(request_.sizes);
        const WholeRecord& whole = step_.micro_batches[micro_batch];
        for (const auto& [name, of_whole] : whole.losses) {
            const bool of_all = name.starts_with("global");
            std::vector<double> got, sums(of_whole.size());
            for (std::size_t rank = 0; rank < records.size(); ++rank) {
                got.push_back(to_doubles(records[rank].losses.at(name))[0]);
                sums[of_all ? 0 : grid.key(int(rank), "dp")] +=
                    name == "z_loss" ? got.back() / grid.group_size("tp-cp") : got.back();
            }
            std::vector<double> expected = losses_by_rank(
                name, std::span(step_.micro_batches).first(micro_batch + 1), config,
                tokens_, request_.sizes);
            got.insert(got.end(), sums.begin(), sums.end());
            expected.insert(expected.end(), of_whole.begin(), of_whole.end());
            const Shape shape = {std::int64_t(got.size())};
            compare(Step::auxiliary_losses, name, Tensor::from(shape, got),
                    Tensor::from(shape, expected));
        }
        if (!whole.losses.empty())
            compare(Step::auxiliary_losses_backward, "d_logits_losses",
                    join([](const RankRecord& r) {
                        return r.values.at(Step::auxiliary_losses_backward)
                            .at("d_logits_losses");
                    }),
                    whole.d_logits_losses);
    }

    /// @param what  begins the names
    /// @param got   of every rank
    void judge_parameters(const MoEConfig& config, const char* what,
                          const std::vector<TensorMap>& got, const TensorMap& whole) {
        const std::vector<TensorMap> expected =
            shard_for_ranks(config, request_.sizes.world, whole);
        for (const auto& [name, gradient] : whole) {
            std::vector<Tensor> sums, shards;
            for (const std::vector<int>& ranks : holders(request_.sizes, name)) {
                sums.push_back(sum_of(got, ranks, name));
                shards.push_back(expected[ranks[0]].at(name));
            }
            compare(step_of_gradient(name), what + name, concatenate(sums),
                    concatenate(shards));
        }
    }

    /// All ranks have the same.
    void judge_buffer(const std::string& name, const std::vector<RankStep>& steps,
                      const Tensor& expected) {
        std::vector<Tensor> got;
        for (const RankStep& step : steps)
            got.push_back(step.updated.at(name).reshaped({1, expected.numel()}));
        const std::vector<Tensor> wanted(got.size(),
                                         expected.reshaped({1, expected.numel()}));
        compare(Step::routing, name, concatenate(got), concatenate(wanted));
    }

    void compare(Step step, const std::string& name, const Tensor& got,
                 const Tensor& expected, bool integers = false) {
        RankValue value;
        value.name = where_ + name;
        value.step = step;
        value.exact = integers || !is_floating(expected.dtype());
        if (!value.exact)
            value.bound =
                tier_bound(request_.configs[0], dtype_of(name), is_backward(step),
                           tokens_.per_rank() * request_.sizes.world);
        const Closeness closeness = measure_closeness(
            got, expected, noise_of(name, request_.configs[0], tokens_.per_rank()));
        value.error = closeness.error;
        if (!closeness.within(value.bound))
            value.detail = describe_worst(closeness, got, expected);
        column_.ok = column_.ok && value.ok();
        column_.values.push_back(value);
    }

    /// By which a value is judged: losses' scores are fp32 in every tier, and where the
    /// global loss was added to the others, their gradients were rounded apart. Quantiles
    /// are fp32, and added up in another order.
    DType dtype_of(const std::string& name) const {
        const bool of_losses = name == "d_logits_losses" || name == "d_hidden_states" ||
                               name.starts_with("d_router.") ||
                               name.starts_with("main_grad of router.");
        const DType coarsest = column_.spec.coarsest_dtype();
        const bool apart = step_.micro_batches[0].global_loss_apart && of_losses;
        return coarsest == DType::f64 && (apart || name == "qb_beta_updated") ? DType::f32
                                                                              : coarsest;
    }

    RankColumn& column_;
    const RankComparisonRequest& request_;
    const RankTokens& tokens_;
    const WholeStep& step_;
    std::string where_;  // begins the names of values
};

}  // namespace

void judge_values(RankColumn& column, const RankComparisonRequest& request,
                  const RankTokens& tokens, const WholeStep& whole,
                  const MoEConfig& config, const std::vector<RankStep>& steps) {
    Judge(column, request, tokens, whole).judge(config, steps);
}

}  // namespace moe
