// load_balancing.cu: auxiliary losses, z-loss, expert bias.

#include "optimized_gpu/load_balancing.h"

#include <algorithm>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/scores.h"

namespace moe::optimized {

LossRule make_loss_rule(const MoEConfig& config, std::int64_t micro_batch) {
    LossRule rule;
    rule.num_experts = int(config.num_experts());
    rule.topk = int(config.moe_router_topk);
    rule.num_sequences = int(std::max<std::int64_t>(micro_batch, 1));
    rule.aux_loss_coeff = config.aux_loss_coeff("aux_loss");
    rule.seq_aux_loss_coeff = config.aux_loss_coeff("seq_aux_loss");
    rule.global_aux_loss_coeff = config.aux_loss_coeff("global_aux_loss");
    rule.has_z_loss = config.moe_z_loss_coeff.has_value();
    rule.z_loss_coeff = config.moe_z_loss_coeff.value_or(0.0);
    rule.per_token = config.calculate_per_token_loss;
    return rule;
}

//! [auxiliary_losses]
namespace {

struct LossPointers {
    const int *assignments, *num_valid;
    const double *score_sums, *square_sums;
    double* global_counts;  // or null
    double* values;
    float *dscores, *z_scale;  // each null without its losses
};

/// What the losses add up over experts or populations; all are linear in the scores.
struct LossSums {
    double squares, aux, seq_aux, global_aux;
};

struct LossSmem {
    LossSums sums[kWarps];
};

/// E / (K N²), where every one of the N tokens was counted K times; 0 without tokens.
__device__ double per_square(const LossRule& rule, double num_tokens) {
    return num_tokens > 0.0 ? rule.num_experts / (rule.topk * num_tokens * num_tokens)
                            : 0.0;
}

/// The load-balancing losses of one expert: adds to `sums`, and writes its column of
/// dscores. A loss is linear in the scores, so its gradient is its factor, the same for
/// every token of a population; counts have no gradient.
/// @param micro_batches  how many global_counts has, with this one
__device__ void add_expert(LossSums& sums, const LossPointers& of, const LossRule& rule,
                           int populations, int expert, double micro_batches) {
    const int E = rule.num_experts, B = rule.num_sequences;
    const double valid = *of.num_valid, attach = rule.per_token ? valid : 1.0;
    double count = 0.0, score_sum = 0.0;
    for (int b = 0; b < populations; ++b) {
        count += of.assignments[b * E + expert];
        score_sum += of.score_sums[b * E + expert];
    }
    const double aux = per_square(rule, valid) * count;
    double global_aux = 0.0;
    if (of.global_counts != nullptr) {
        const double counts = of.global_counts[expert] += count;
        global_aux = per_square(rule, valid) / micro_batches * counts;
    }
    sums.aux += aux * score_sum;
    sums.global_aux += global_aux * score_sum;
    const double of_all =
        rule.aux_loss_coeff * aux + rule.global_aux_loss_coeff * global_aux;
    for (int b = 0; b < populations; ++b) {
        const int i = b * E + expert;
        const double seq_aux = per_square(rule, valid / B) / B * of.assignments[i];
        sums.seq_aux += seq_aux * of.score_sums[i];
        of.dscores[i] = float(attach * (of_all + rule.seq_aux_loss_coeff * seq_aux));
    }
}

/// Losses that there are, in the order of their names.
__device__ void store_losses(const LossPointers& to, const LossRule& rule,
                             const LossSums& sums) {
    const double valid = *to.num_valid, count = valid > 1.0 ? valid : 1.0;
    double* value = to.values;
    if (rule.has_z_loss) {
        const double attach = rule.per_token ? valid : 1.0;
        *to.z_scale = float(rule.z_loss_coeff * attach / count);
        *value++ = sums.squares / count;
    }
    if (rule.aux_loss_coeff > 0.0) *value++ = sums.aux;
    if (rule.seq_aux_loss_coeff > 0.0) *value++ = sums.seq_aux;
    if (rule.global_aux_loss_coeff > 0.0) *value++ = sums.global_aux;
}

/// One block: a thread has every 256th expert, and all its populations.
__global__ void __launch_bounds__(kThreads)
    auxiliary_losses_kernel(LossPointers of, LossRule rule, int populations) {
    const int E = rule.num_experts, thread = int(threadIdx.x);
    double micro_batches = 1.0;
    if (of.global_counts != nullptr) micro_batches += of.global_counts[E];
    LossSums mine = {};
    for (int b = thread; b < populations; b += kThreads)
        mine.squares += of.square_sums[b];
    if (of.dscores != nullptr)
        for (int e = thread; e < E; e += kThreads)
            add_expert(mine, of, rule, populations, e, micro_batches);

    auto& smem = gpu::shared_memory<LossSmem>();
    mine = {warp_sum(mine.squares), warp_sum(mine.aux), warp_sum(mine.seq_aux),
            warp_sum(mine.global_aux)};
    if (lane_index() == 0) smem.sums[warp_index()] = mine;
    __syncthreads();
    if (thread != 0) return;
    for (int warp = 1; warp < kWarps; ++warp) {
        mine.squares += smem.sums[warp].squares;
        mine.aux += smem.sums[warp].aux;
        mine.seq_aux += smem.sums[warp].seq_aux;
        mine.global_aux += smem.sums[warp].global_aux;
    }
    store_losses(of, rule, mine);
    if (of.global_counts != nullptr) of.global_counts[E] = micro_batches;
}

/// In the order in which store_losses() stores.
std::vector<std::string> names_of(const LossRule& rule) {
    std::vector<std::string> names;
    if (rule.has_z_loss) names.push_back("z_loss");
    if (rule.aux_loss_coeff > 0.0) names.push_back("load_balancing_loss");
    if (rule.seq_aux_loss_coeff > 0.0) names.push_back("seq_load_balancing_loss");
    if (rule.global_aux_loss_coeff > 0.0) names.push_back("global_load_balancing_loss");
    return names;
}

}  // namespace

AuxiliaryLosses auxiliary_losses(const LossStatistics& statistics, Tensor& global_counts,
                                 const LossRule& rule, cudaStream_t stream) {
    AuxiliaryLosses losses;
    losses.names = names_of(rule);
    if (losses.names.empty()) return losses;
    const std::int64_t E = rule.num_experts, P = statistics.score_sums.dim(0);
    const bool has_global = rule.global_aux_loss_coeff > 0.0;
    MOE_CHECK_EQ(statistics.score_sums.dim(1), E);
    MOE_CHECK(rule.seq_aux_loss_coeff == 0.0 || P == rule.num_sequences);
    MOE_CHECK(!has_global || global_counts.numel() == E + 1);

    losses.values = gpu::device_empty<double>({std::int64_t(losses.names.size())});
    if (rule.has_balancing()) losses.dscores = gpu::device_empty<float>({P, E});
    if (rule.has_z_loss) losses.z_scale = gpu::device_empty<float>({1});
    const LossPointers pointers = {
        gpu::device_data<int>(statistics.assignments),
        gpu::device_data<int>(statistics.num_valid),
        gpu::device_data<double>(statistics.score_sums),
        gpu::device_data<double>(statistics.square_sums),
        has_global ? gpu::device_data<double>(global_counts) : nullptr,
        gpu::device_data<double>(losses.values),
        gpu::device_data<float>(losses.dscores),
        gpu::device_data<float>(losses.z_scale),
    };
    gpu::launch("auxiliary_losses_kernel", auxiliary_losses_kernel,
                {dim3(1), dim3(kThreads), sizeof(LossSmem), stream}, pointers, rule,
                int(P));
    return losses;
}
//! [auxiliary_losses]

namespace {

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    aux_scores_kernel(float* scores, const float* logits, RoutingRule rule,
                      std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    const bool softmax = rule.function == ScoreFunction::softmax;
    float x[N], s[N];
    load_row(x, logits + t * E, E, lane);
    compute_scores(s, rule.function, x, softmax ? softmax_sums(x) : SoftmaxSums());
    const float normalizer = softmax ? 1.0f : normalizer_of(s);
#pragma unroll
    for (int j = 0; j < N; ++j) s[j] /= normalizer;
    store_row(scores + t * E, s, E, lane);
}

}  // namespace

Tensor compute_aux_scores(const Tensor& logits, const RoutingRule& rule,
                          cudaStream_t stream) {
    const std::int64_t T = logits.dim(0), E = rule.num_experts;
    MOE_CHECK_EQ(logits.dim(1), E);
    Tensor scores = gpu::device_empty<float>({T, E});
    const unsigned blocks = unsigned((T + kWarps - 1) / kWarps);
    with_slots(E, [&](auto slots) {
        gpu::launch("aux_scores_kernel", aux_scores_kernel<decltype(slots)::value>,
                    {dim3(blocks), dim3(kThreads), 0, stream},
                    gpu::device_data<float>(scores), gpu::device_data<float>(logits),
                    rule, T);
    });
    return scores;
}

//! [get_updated_expert_bias]
namespace {

/// One block. Each warp adds up all the counts for itself: they are integers, so that the
/// order does not show, and a sum of its own needs no barrier.
__global__ void __launch_bounds__(kThreads)
    get_updated_expert_bias_kernel(float* updated, const float* expert_bias,
                                   const std::int64_t* tokens_per_expert,
                                   float update_rate, int E) {
    std::int64_t total = 0;
    for (int e = lane_index(); e < E; e += kLanes) total += tokens_per_expert[e];
    const float mean = float(warp_sum(total)) / float(E);
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        const float missing = mean - float(tokens_per_expert[e]);
        const float sign = missing > 0.0f ? 1.0f : missing < 0.0f ? -1.0f : 0.0f;
        updated[e] = expert_bias[e] + update_rate * sign;
    }
}

}  // namespace

Tensor get_updated_expert_bias(const Tensor& expert_bias, const Tensor& tokens_per_expert,
                               double update_rate, cudaStream_t stream) {
    const std::int64_t E = expert_bias.numel();
    MOE_CHECK_EQ(tokens_per_expert.numel(), E);
    Tensor updated = gpu::device_empty<float>({E});
    gpu::launch("get_updated_expert_bias_kernel", get_updated_expert_bias_kernel,
                {dim3(1), dim3(kThreads), 0, stream}, gpu::device_data<float>(updated),
                gpu::device_data<float>(expert_bias),
                gpu::device_data<std::int64_t>(tokens_per_expert),
                static_cast<float>(update_rate), int(E));
    return updated;
}
//! [get_updated_expert_bias]

void reset_counts(Tensor& counts, cudaStream_t stream) {
    MOE_CHECK(counts.space() == MemorySpace::device);
    gpu::check(cudaMemsetAsync(counts.view().bytes, 0, counts.size_bytes(), stream),
               "cudaMemsetAsync");
}

}  // namespace moe::optimized
