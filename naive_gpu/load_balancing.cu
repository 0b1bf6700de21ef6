// load_balancing.cu: auxiliary losses, z-loss, expert bias.

#include "naive_gpu/load_balancing.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/transfer.h"
#include "distributed/process_groups.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "naive_gpu/linear.h"
#include "naive_gpu/scores.h"

namespace moe::naive {
namespace {

using distributed::Communicator;

/// (B, E) or (E) on the host, where the few numbers behind the losses are put together.
using Values = std::vector<double>;

double sum(const Values& values) {
    return std::accumulate(values.begin(), values.end(), 0.0);
}

/// One thread per token and choice.
__global__ void count_assignments_kernel(double* counts, const std::int64_t* chosen,
                                         TokenGrid grid, std::int64_t count,
                                         std::int64_t E, std::int64_t K) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / K;
    if (!grid.is_padding(t))
        atomicAdd(&counts[t % grid.micro_batch * E + chosen[i]], 1.0);
}

/// Number of tokens per sequence and expert by the losses' own top-K. @return (B, E)
Values count_assignments(const Tensor& scores, const TokenGrid& grid, std::int64_t topk) {
    const Tensor chosen = top_k<float>(scores, topk);
    Tensor counts = gpu::device_zeros<double>({grid.micro_batch, scores.dim(1)});
    gpu::launch("count_assignments_kernel", count_assignments_kernel,
                gpu::one_thread_per(chosen.numel()), gpu::device_data<double>(counts),
                gpu::device_data<std::int64_t>(chosen), grid, chosen.numel(),
                scores.dim(1), topk);
    return gpu::to_host<double>(counts);
}

/// One thread per sequence and expert, so that every sum has one order.
__global__ void sum_scores_kernel(double* sums, const float* scores, TokenGrid grid,
                                  std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= grid.micro_batch * E) return;
    const std::int64_t b = i / E, e = i % E;
    double sum = 0.0;
    for (std::int64_t s = 0; s < grid.seq_len; ++s) {
        const std::int64_t t = s * grid.micro_batch + b;
        if (!grid.is_padding(t)) sum += double(scores[t * E + e]);
    }
    sums[i] = sum;
}

/// Sum of the scores of the valid tokens of each sequence. @return (B, E)
Values sum_scores(const Tensor& scores, const TokenGrid& grid) {
    Tensor sums = gpu::device_empty<double>({grid.micro_batch, scores.dim(1)});
    gpu::launch("sum_scores_kernel", sum_scores_kernel, gpu::one_thread_per(sums.numel()),
                gpu::device_data<double>(sums), gpu::device_data<float>(scores), grid,
                scores.dim(1));
    return gpu::to_host<double>(sums);
}

/// The sum of everybody's counts. Source: moe_utils.py,
/// get_tokens_per_expert_and_token_count.
Values reduce_counts(Communicator& group, Values counts) {
    group.all_reduce({counts.data(), DType::f64, {std::int64_t(counts.size())}});
    return counts;
}

/// The softmax or normalised scores of every token over all experts.
void compute_aux_scores(AuxiliaryLossesSaved& saved, const Tensor& logits,
                        const MoEConfig& config) {
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    saved.raw_scores = gpu::device_empty<float>(logits.shape());
    saved.scores = saved.raw_scores;
    compute_scores(saved.raw_scores, function, transfer(logits, kScorePlacement));
    if (function == ScoreFunction::softmax) return;
    saved.scores = saved.raw_scores.clone();
    normalize(saved.scores);
}

/// One thread per token; the square is that of a valid token, 0 for padding.
template <typename Scalar>
__global__ void log_sum_exp_kernel(Scalar* log_sum_exp, double* squares,
                                   const Scalar* logits, TokenGrid grid, std::int64_t T,
                                   std::int64_t E) {
    const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (t >= T) return;
    const Scalar* x = logits + t * E;
    Scalar largest = x[0], total = 0;
    for (std::int64_t e = 1; e < E; ++e) largest = x[e] > largest ? x[e] : largest;
    for (std::int64_t e = 0; e < E; ++e) total += exp(x[e] - largest);
    const Scalar lse = largest + log(total);
    log_sum_exp[t] = lse;
    squares[t] = grid.is_padding(t) ? 0.0 : double(lse) * double(lse);
}

/// Fills log_sum_exp (T). @return the sum of its squares over the valid tokens
template <typename Scalar>
double sum_of_squares(Tensor& log_sum_exp, const Tensor& logits, const TokenGrid& grid) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    log_sum_exp = gpu::device_empty<Scalar>({T});
    Tensor squares = gpu::device_empty<double>({T});
    gpu::launch("log_sum_exp_kernel", log_sum_exp_kernel<Scalar>, gpu::one_thread_per(T),
                gpu::device_data<Scalar>(log_sum_exp), gpu::device_data<double>(squares),
                gpu::device_data<Scalar>(logits), grid, T, E);
    return sum(gpu::to_host<double>(squares));
}

/// The factor by which an attached loss grows when losses are summed over tokens instead
/// of averaged over micro-batches. Source: router.py,
/// TopKRouter.attach_and_log_load_balancing_loss.
double attach_factor(const MoEConfig& config, double tokens, const Communicator& tp_cp) {
    return config.calculate_per_token_loss ? tokens * tp_cp.size() : 1.0;
}

}  // namespace

TokenGrid make_token_grid(std::int64_t seq_len, std::int64_t micro_batch,
                          const Tensor& padding_mask) {
    TokenGrid grid{seq_len, micro_batch, nullptr, seq_len * micro_batch};
    if (!padding_mask.defined()) return grid;
    grid.padding_mask = gpu::device_data<std::uint8_t>(padding_mask);
    for (std::uint8_t padding : gpu::to_host<std::uint8_t>(padding_mask))
        grid.num_valid -= padding != 0;
    return grid;
}

//! [auxiliary_losses_forward]
template <typename Scalar>
AuxiliaryLossesSaved auxiliary_losses_forward(Losses& losses, GlobalTokenCounts& global,
                                              const Tensor& logits, const TokenGrid& grid,
                                              const MoEConfig& config,
                                              const distributed::ProcessGroups& groups,
                                              const RunContext& context) {
    AuxiliaryLossesSaved saved;
    const std::int64_t B = grid.micro_batch, E = config.num_experts();
    const double K = config.moe_router_topk;
    const double valid = grid.num_valid;

    // ⑤ z-loss: keeps the logits small
    if (config.moe_z_loss_coeff) {
        const double count = std::max(1.0, valid);
        losses["z_loss"] =
            sum_of_squares<Scalar>(saved.log_sum_exp, logits, grid) / count;
        saved.z_scale = *config.moe_z_loss_coeff / groups.tp_cp->size() *
                        attach_factor(config, valid, *groups.tp_cp) / count;
    }

    // ⑤ load-balancing losses: only where a coefficient asks for them
    const double aux = config.aux_loss_coeff("aux_loss");
    const double seq_aux = config.aux_loss_coeff("seq_aux_loss");
    const double global_aux = config.aux_loss_coeff("global_aux_loss");
    if (aux <= 0.0 && seq_aux <= 0.0 && global_aux <= 0.0) return saved;

    compute_aux_scores(saved, logits, config);
    context.value(Step::auxiliary_losses, "aux_scores", saved.scores);
    const Values counts = count_assignments(saved.scores, grid, config.moe_router_topk);
    const Values sums = sum_scores(saved.scores, grid);
    Values batch_counts(E);
    for (std::int64_t i = 0; i < B * E; ++i) batch_counts[i % E] += counts[i];

    // The loss is linear in the scores, so its gradient is its factor: the same for every
    // token of a sequence. Counts n have no gradient; (E) are those of every sequence,
    // (B, E) each sequence's own.
    Values dscores(B * E);
    // TUTORIAL: Megatron multiplies by the rank's own tokens. With a padding mask it
    // takes them from counts over which the group's sum was written, so they are the
    // group's. Source: moe_utils.py, get_tokens_per_expert_and_token_count; mappings.py,
    // _reduce.
    const auto attach_loss = [&](const std::string& name, double coeff, double scale,
                                 const Values& n, double group_count) {
        const double tokens = grid.padding_mask ? group_count / K : valid;
        const double attach = attach_factor(config, tokens, *groups.tp_cp);
        losses[name] = 0.0;
        for (std::int64_t i = 0; i < B * E; ++i) {
            const double factor = scale * n[i % n.size()];
            losses[name] += factor * sums[i];
            dscores[i] += coeff * attach * factor;
        }
    };
    // E / (K N²), where every one of the N tokens was counted K times. n_e and N of an
    // empty population are 0; its loss is 0 as well.
    const auto per_square = [&](double count) {
        const double tokens = count / K;
        return tokens > 0.0 ? double(E) / (K * tokens * tokens) : 0.0;
    };

    if (aux > 0.0) {
        const Values n = reduce_counts(*groups.tp_cp, batch_counts);
        attach_loss("load_balancing_loss", aux, per_square(sum(n)), n, sum(n));
    }
    if (seq_aux > 0.0) {
        const Values n = reduce_counts(*groups.tp_cp, counts);
        const double num_sequences = std::max<double>(B, 1);
        attach_loss("seq_load_balancing_loss", seq_aux,
                    per_square(sum(n) / num_sequences) / num_sequences, n, sum(n));
    }
    if (global_aux > 0.0) {
        const Values n = reduce_counts(*groups.tp_dp_cp, batch_counts);
        global.tokens_per_expert.resize(E, 0.0);
        for (std::int64_t e = 0; e < E; ++e) global.tokens_per_expert[e] += n[e];
        ++global.num_steps;
        attach_loss("global_load_balancing_loss", global_aux,
                    per_square(sum(n)) / global.num_steps, global.tokens_per_expert,
                    sum(n));
    }
    saved.dscores = gpu::to_device(std::vector<float>(dscores.begin(), dscores.end()))
                        .reshaped({B, E});
    return saved;
}
//! [auxiliary_losses_forward]

//! [auxiliary_losses_backward]
namespace {

/// One thread per token and expert: d lse² / dx = 2 lse softmax(x).
template <typename Scalar>
__global__ void z_loss_backward_kernel(Scalar* dlogits, const Scalar* logits,
                                       const Scalar* log_sum_exp, Scalar scale,
                                       TokenGrid grid, std::int64_t count,
                                       std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || grid.is_padding(i / E)) return;
    const Scalar lse = log_sum_exp[i / E];
    dlogits[i] = scale * lse * exp(logits[i] - lse);
}

/// One thread per token and expert: its sequence's gradient, none for padding.
__global__ void spread_dscores_kernel(float* ds, const float* dscores, float scale,
                                      TokenGrid grid, std::int64_t count,
                                      std::int64_t E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const std::int64_t t = i / E, e = i % E;
    ds[i] = grid.is_padding(t) ? 0.0f : scale * dscores[t % grid.micro_batch * E + e];
}

}  // namespace

template <typename Scalar>
Tensor auxiliary_losses_backward(const AuxiliaryLossesSaved& saved, const Tensor& logits,
                                 const TokenGrid& grid, const MoEConfig& config,
                                 double main_loss_backward_scale) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    Tensor dlogits = gpu::device_zeros<Scalar>({T, E});

    // ⑯ z-loss
    if (saved.log_sum_exp.defined()) {
        const auto scale =
            static_cast<Scalar>(2.0 * saved.z_scale * main_loss_backward_scale);
        gpu::launch("z_loss_backward_kernel", z_loss_backward_kernel<Scalar>,
                    gpu::one_thread_per(T * E), gpu::device_data<Scalar>(dlogits),
                    gpu::device_data<Scalar>(logits),
                    gpu::device_data<Scalar>(saved.log_sum_exp), scale, grid, T * E, E);
    }

    // ⑯ load-balancing losses: back through the scores, in fp32 like them
    if (!saved.dscores.defined()) return dlogits;
    const ScoreFunction function = parse_score_function(config.moe_router_score_function);
    const auto scale = static_cast<float>(main_loss_backward_scale);
    Tensor ds = gpu::device_empty<float>({T, E}), dx = gpu::device_empty<float>({T, E});
    gpu::launch("spread_dscores_kernel", spread_dscores_kernel,
                gpu::one_thread_per(T * E), gpu::device_data<float>(ds),
                gpu::device_data<float>(saved.dscores), scale, grid, T * E, E);
    if (function != ScoreFunction::softmax) normalize_backward(ds, saved.raw_scores);
    compute_scores_backward(dx, function, transfer(logits, kScorePlacement),
                            saved.raw_scores, ds);
    add_to<Scalar>(dlogits, transfer(dx, {MemorySpace::device, dtype_of<Scalar>}));
    return dlogits;
}
//! [auxiliary_losses_backward]

namespace {

/// One thread per expert.
__global__ void get_updated_expert_bias_kernel(float* updated, const float* expert_bias,
                                               const std::int64_t* tokens_per_expert,
                                               float update_rate, std::int64_t E) {
    const std::int64_t e = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (e >= E) return;
    std::int64_t total = 0;
    for (std::int64_t j = 0; j < E; ++j) total += tokens_per_expert[j];
    const float missing = float(total) / float(E) - float(tokens_per_expert[e]);
    const float sign = missing > 0.0f ? 1.0f : missing < 0.0f ? -1.0f : 0.0f;
    updated[e] = expert_bias[e] + update_rate * sign;
}

}  // namespace

Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate) {
    const std::int64_t E = expert_bias.dim(0);
    Tensor updated = gpu::device_empty<float>({E});
    gpu::launch("get_updated_expert_bias_kernel", get_updated_expert_bias_kernel,
                gpu::one_thread_per(E), gpu::device_data<float>(updated),
                gpu::device_data<float>(expert_bias),
                gpu::device_data<std::int64_t>(tokens_per_expert),
                static_cast<float>(update_rate), E);
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

}  // namespace moe::naive
