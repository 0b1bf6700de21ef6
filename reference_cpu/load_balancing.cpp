// load_balancing.cpp: auxiliary losses, z-loss, expert bias.

#include "reference_cpu/load_balancing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "reference_cpu/eigen.h"
#include "reference_cpu/rows.h"
#include "reference_cpu/scores.h"

namespace moe::cpu {
namespace {

using distributed::Communicator;

/// Number of tokens per sequence and expert by the losses' own top-K. @return (B, E)
Matrix<double> count_assignments(const Tensor& scores, const TokenGrid& grid,
                                 std::int64_t topk) {
    Matrix<double> counts = Matrix<double>::Zero(grid.micro_batch, scores.dim(1));
    for (std::int64_t t = 0; t < grid.num_tokens(); ++t) {
        if (grid.is_padding(t)) continue;
        for (std::int64_t e : top_k(row_of<float>(scores, t), topk))
            counts(t % grid.micro_batch, e) += 1.0;
    }
    return counts;
}

/// Sum of the scores of the valid tokens of each sequence. @return (B, E)
Matrix<double> sum_scores(const Tensor& scores, const TokenGrid& grid) {
    Matrix<double> sums = Matrix<double>::Zero(grid.micro_batch, scores.dim(1));
    for (std::int64_t t = 0; t < grid.num_tokens(); ++t)
        if (!grid.is_padding(t))
            sums.row(t % grid.micro_batch) +=
                as_matrix<float>(scores).row(t).template cast<double>();
    return sums;
}

/// The sum of everybody's counts. Source: moe_utils.py,
/// get_tokens_per_expert_and_token_count.
Matrix<double> reduce_counts(Communicator& group, Matrix<double> counts) {
    group.all_reduce({counts.data(), DType::f64, {counts.rows(), counts.cols()}});
    return counts;
}

/// The softmax or normalised scores of every token over all experts.
template <typename Scalar>
void compute_aux_scores(AuxiliaryLossesSaved& saved, const Tensor& logits,
                        const MoEConfig& config) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    const Tensor x = transfer(logits, {MemorySpace::host, DType::f32});
    saved.raw_scores = Tensor::empty({T, E}, DType::f32);
    saved.scores = saved.raw_scores;
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < T; ++t)
        compute_scores(row_of<float>(saved.raw_scores, t), function, row_of<float>(x, t));
    if (function == ScoreFunction::softmax) return;
    saved.scores = saved.raw_scores.clone();
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < T; ++t) normalize(row_of<float>(saved.scores, t));
}

/// The factor by which an attached loss grows when losses are summed over tokens instead
/// of averaged over micro-batches. Source: router.py,
/// TopKRouter.attach_and_log_load_balancing_loss.
double attach_factor(const MoEConfig& config, double tokens, const Communicator& tp_cp) {
    return config.calculate_per_token_loss ? tokens * tp_cp.size() : 1.0;
}

}  // namespace

std::int64_t TokenGrid::num_valid() const {
    std::int64_t count = 0;
    for (std::int64_t t = 0; t < num_tokens(); ++t) count += !is_padding(t);
    return count;
}

//! [auxiliary_losses_forward]
template <typename Scalar>
AuxiliaryLossesSaved auxiliary_losses_forward(Losses& losses, GlobalTokenCounts& global,
                                              const Tensor& logits, const TokenGrid& grid,
                                              const MoEConfig& config,
                                              const distributed::ProcessGroups& groups,
                                              const RunContext& context) {
    AuxiliaryLossesSaved saved;
    const std::int64_t T = grid.num_tokens(), B = grid.micro_batch;
    const double E = config.num_experts(), K = config.moe_router_topk;
    const double valid = grid.num_valid();

    // ⑤ z-loss: keeps the logits small
    if (config.moe_z_loss_coeff) {
        saved.log_sum_exp = Tensor::empty({T}, dtype_of<Scalar>);
        double sum_of_squares = 0.0;
        for (std::int64_t t = 0; t < T; ++t) {
            const auto x = as_matrix<Scalar>(logits).row(t).array();
            const Scalar largest = x.maxCoeff();
            const Scalar lse = largest + std::log((x - largest).exp().sum());
            saved.log_sum_exp.data<Scalar>()[t] = lse;
            if (!grid.is_padding(t)) sum_of_squares += double(lse) * double(lse);
        }
        const double count = std::max(1.0, valid);
        losses["z_loss"] = sum_of_squares / count;
        saved.z_scale = *config.moe_z_loss_coeff / groups.tp_cp->size() *
                        attach_factor(config, valid, *groups.tp_cp) / count;
    }

    // ⑤ load-balancing losses: only where a coefficient asks for them
    const double aux = config.aux_loss_coeff("aux_loss");
    const double seq_aux = config.aux_loss_coeff("seq_aux_loss");
    const double global_aux = config.aux_loss_coeff("global_aux_loss");
    if (aux <= 0.0 && seq_aux <= 0.0 && global_aux <= 0.0) return saved;

    compute_aux_scores<Scalar>(saved, logits, config);
    context.value(Step::auxiliary_losses, "aux_scores", saved.scores);
    const Matrix<double> counts =
        count_assignments(saved.scores, grid, config.moe_router_topk);
    const Matrix<double> sums = sum_scores(saved.scores, grid);
    Matrix<double> dscores = Matrix<double>::Zero(B, config.num_experts());

    // The loss is linear in the scores, so its gradient is its factor: the same for every
    // token of a sequence. Counts have no gradient.
    // TUTORIAL: Megatron multiplies by the rank's own tokens. With a padding mask it
    // takes them from counts over which the group's sum was written, so they are the
    // group's. Source: moe_utils.py, get_tokens_per_expert_and_token_count; mappings.py,
    // _reduce.
    const auto attach_loss = [&](const std::string& name, double coeff,
                                 const Matrix<double>& factor, double group_count) {
        const double tokens = grid.padding_mask ? group_count / K : double(T);
        losses[name] = factor.cwiseProduct(sums).sum();
        dscores += coeff * attach_factor(config, tokens, *groups.tp_cp) * factor;
    };
    const auto all_sequences = [&](const Matrix<double>& factor) {
        return Matrix<double>(factor.replicate(B, 1));
    };
    // E / (K N²), where every one of the N tokens was counted K times. n_e and N of an
    // empty population are 0; its loss is 0 as well.
    const auto per_square = [&](double count) {
        const double tokens = count / K;
        return tokens > 0.0 ? E / (K * tokens * tokens) : 0.0;
    };

    const Matrix<double> batch_counts = counts.colwise().sum();  // (1, E)
    if (aux > 0.0) {
        const Matrix<double> n = reduce_counts(*groups.tp_cp, batch_counts);
        attach_loss("load_balancing_loss", aux, all_sequences(per_square(n.sum()) * n),
                    n.sum());
    }
    if (seq_aux > 0.0) {
        const Matrix<double> n = reduce_counts(*groups.tp_cp, counts);
        const double num_sequences = std::max<double>(B, 1);
        attach_loss("seq_load_balancing_loss", seq_aux,
                    per_square(n.sum() / num_sequences) / num_sequences * n, n.sum());
    }
    if (global_aux > 0.0) {
        const Matrix<double> n = reduce_counts(*groups.tp_dp_cp, batch_counts);
        global.tokens_per_expert.resize(config.num_experts(), 0.0);
        Eigen::Map<Matrix<double>> total(global.tokens_per_expert.data(), 1,
                                         config.num_experts());
        total += n;
        ++global.num_steps;
        attach_loss("global_load_balancing_loss", global_aux,
                    all_sequences(per_square(n.sum()) / global.num_steps * total),
                    n.sum());
    }
    saved.dscores = Tensor::empty({B, config.num_experts()}, DType::f32);
    as_matrix<float>(saved.dscores) = dscores.template cast<float>();
    return saved;
}
//! [auxiliary_losses_forward]

//! [auxiliary_losses_backward]
template <typename Scalar>
Tensor auxiliary_losses_backward(const AuxiliaryLossesSaved& saved, const Tensor& logits,
                                 const TokenGrid& grid, const MoEConfig& config,
                                 double main_loss_backward_scale) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    Tensor result = Tensor::zeros({T, E}, dtype_of<Scalar>);
    auto dlogits = as_matrix<Scalar>(result);

    // ⑯ z-loss: d lse² / dx = 2 lse softmax(x)
    if (saved.log_sum_exp.defined()) {
        const auto scale =
            static_cast<Scalar>(2.0 * saved.z_scale * main_loss_backward_scale);
        const Scalar* lse = saved.log_sum_exp.data<Scalar>();
        for (std::int64_t t = 0; t < T; ++t) {
            if (grid.is_padding(t)) continue;
            const auto x = as_matrix<Scalar>(logits).row(t).array();
            dlogits.row(t) = scale * lse[t] * (x - lse[t]).exp();
        }
    }

    // ⑯ load-balancing losses: back through the scores, in fp32 like them
    if (!saved.dscores.defined()) return result;
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    const auto scale = static_cast<float>(main_loss_backward_scale);
    const Tensor x = transfer(logits, {MemorySpace::host, DType::f32});
#pragma omp parallel for schedule(static)
    for (std::int64_t t = 0; t < T; ++t) {
        if (grid.is_padding(t)) continue;
        const auto dscores = row_of<float>(saved.dscores, t % grid.micro_batch);
        std::vector<float> ds(dscores.begin(), dscores.end()), dx(E);
        for (float& value : ds) value *= scale;
        const auto raw = row_of<float>(saved.raw_scores, t);
        if (function != ScoreFunction::softmax) normalize_backward(ds, raw);
        compute_scores_backward(dx, function, row_of<float>(x, t), raw, ds);
        for (std::int64_t e = 0; e < E; ++e) dlogits(t, e) += dx[e];
    }
    return result;
}
//! [auxiliary_losses_backward]

Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate) {
    const std::int64_t E = expert_bias.dim(0);
    const auto* count = tokens_per_expert.data<std::int64_t>();
    const std::int64_t total = std::accumulate(count, count + E, std::int64_t{0});
    const float mean = float(total) / float(E);
    Tensor updated = expert_bias.clone();
    for (std::int64_t e = 0; e < E; ++e) {
        const float missing = mean - float(count[e]);
        const float sign = missing > 0.0f ? 1.0f : missing < 0.0f ? -1.0f : 0.0f;
        updated.data<float>()[e] += static_cast<float>(update_rate) * sign;
    }
    return updated;
}

#define INSTANTIATE(Scalar)                                                             \
    template AuxiliaryLossesSaved auxiliary_losses_forward<Scalar>(                     \
        Losses&, GlobalTokenCounts&, const Tensor&, const TokenGrid&, const MoEConfig&, \
        const distributed::ProcessGroups&, const RunContext&);                          \
    template Tensor auxiliary_losses_backward<Scalar>(const AuxiliaryLossesSaved&,      \
                                                      const Tensor&, const TokenGrid&,  \
                                                      const MoEConfig&, double);
INSTANTIATE(float)
INSTANTIATE(double)
#undef INSTANTIATE

}  // namespace moe::cpu
