// unfused_routing.cu: routing and the sums of the losses, one small kernel after another.

#include "optimized_gpu/unfused_routing.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/choice.h"
#include "optimized_gpu/load_balancing.h"
#include "optimized_gpu/token_range.h"

namespace moe::optimized {
namespace {

__device__ bool is_padding(const std::uint8_t* padding_mask, std::int64_t t) {
    return padding_mask != nullptr && padding_mask[t] != 0;
}

/// One thread per logit.
__global__ void check_logits_kernel(int* non_finite, const float* logits,
                                    std::int64_t num_tokens, int E) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i < num_tokens * E && !isfinite(logits[i]))
        atomicMax(non_finite, int(num_tokens - i / E));
}

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    scores_kernel(float* scores, const float* logits, RoutingRule rule,
                  std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float x[N], s[N];
    load_row(x, logits + t * E, E, lane);
    compute_scores(s, rule.function, x,
                   rule.is_pre_softmax() ? softmax_sums(x) : SoftmaxSums());
    store_row(scores + t * E, s, E, lane);
}

/// One warp per token. @param values  (T, E) scores or logits
template <int N>
__global__ void __launch_bounds__(kThreads)
    topk_kernel(int* ids, const float* values, const float* expert_bias, RoutingRule rule,
                std::int64_t num_tokens) {
    const int E = rule.num_experts, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float row[N];
    load_row(row, values + t * E, E, lane);
    if (expert_bias != nullptr) {
#pragma unroll
        for (int j = 0; j < N; ++j)
            if (j * kLanes + lane < E) row[j] += expert_bias[j * kLanes + lane];
    }
    unsigned keys[N];
    keys_of(keys, row);
    const int id = choose_experts(keys, rule, lane).index;
    if (lane < rule.topk) ids[t * rule.topk + lane] = id;
}

/// One warp per token, a lane for each of its choices. @param values  as above
__global__ void __launch_bounds__(kThreads)
    weights_kernel(float* weights, const float* values, const int* ids, RoutingRule rule,
                   std::int64_t num_tokens) {
    const int E = rule.num_experts, K = rule.topk, lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    const float value = lane < K ? values[t * E + ids[t * K + lane]] : 0.0f;
    // The first is the largest, unless somebody else chose
    const float largest = warp_max(lane < K ? value : -INFINITY);
    const float weight = rule.scaling_factor * weight_of(value, largest, rule, lane);
    if (lane < K) weights[t * K + lane] = rule.rounded(weight);
}

/// One thread per choice; token t belongs to population t mod P.
/// @param padding_mask  (T), whose tokens do not count; or null @param counts  (P, E)
template <typename Count>
__global__ void count_experts_kernel(Count* counts, const int* ids,
                                     const std::uint8_t* padding_mask, std::int64_t count,
                                     int K, int E, int populations) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count || is_padding(padding_mask, i / K)) return;
    atomicAdd(&counts[i / K % populations * E + ids[i]], Count(1));
}

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    log_sum_exp_kernel(float* log_sum_exps, const float* logits, int E,
                       std::int64_t num_tokens) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float x[N];
    load_row(x, logits + t * E, E, lane);
    const float log_sum_exp = softmax_sums(x).log_sum_exp();
    if (lane == 0) log_sum_exps[t] = log_sum_exp;
}

struct SumPointers {
    float *partial_scores, *partial_squares;
    int* num_valid;
    const float *loss_scores, *log_sum_exps;
    const std::uint8_t* padding_mask;  // or null
};

/// The blocks of route(), a thread for each expert's scores, and one for the squares.
/// Sums are in route()'s order, of each warp's tokens and then of the warps: the same
/// bits.
__global__ void __launch_bounds__(kThreads)
    sum_tokens_kernel(SumPointers to, TokenRange range, int E) {
    const std::int64_t block = std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    for (int column = int(threadIdx.x); column <= E; column += kThreads) {
        float sum = 0.0f;
        int num_valid = 0;
        for (int warp = 0; warp < kWarps; ++warp) {
            float of_warp = 0.0f;
            for (int round = 0; round < range.rounds; ++round) {
                const std::int64_t t = range.token(round, warp);
                if (t >= range.num_tokens) break;
                if (is_padding(to.padding_mask, t)) continue;
                const float lse = to.log_sum_exps[t];
                of_warp += column < E ? to.loss_scores[t * E + column] : lse * lse;
                ++num_valid;
            }
            sum += of_warp;
        }
        if (column < E) {
            to.partial_scores[block * E + column] = sum;
        } else {
            to.partial_squares[block] = sum;
            if (num_valid != 0) atomicAdd(to.num_valid, num_valid);
        }
    }
}

unsigned blocks_of(std::int64_t num_tokens) {
    return unsigned((num_tokens + kWarps - 1) / kWarps);
}

/// The K best experts of each token by values (T, E), and how often each is one.
void choose(Tensor& ids, const Tensor& values, const Tensor& expert_bias,
            const RoutingRule& rule, cudaStream_t stream) {
    const std::int64_t T = values.dim(0);
    with_slots(rule.num_experts, [&](auto slots) {
        gpu::launch("topk_kernel", topk_kernel<decltype(slots)::value>,
                    {dim3(blocks_of(T)), dim3(kThreads), 0, stream},
                    gpu::device_data<int>(ids), gpu::device_data<float>(values),
                    gpu::device_data<float>(expert_bias), rule, T);
    });
}

template <typename Count>
void count(Count* counts, const Tensor& ids, const Tensor& padding_mask,
           const RoutingRule& rule, std::int64_t populations, cudaStream_t stream) {
    gpu::launch("count_experts_kernel", count_experts_kernel<Count>,
                gpu::one_thread_per(ids.numel(), stream), counts,
                gpu::device_data<int>(ids), gpu::device_data<std::uint8_t>(padding_mask),
                ids.numel(), rule.topk, rule.num_experts, int(populations));
}

Tensor compute_scores_of_all(const Tensor& logits, const RoutingRule& rule,
                             cudaStream_t stream) {
    Tensor scores = gpu::device_empty<float>(logits.shape());
    with_slots(rule.num_experts, [&](auto slots) {
        gpu::launch("scores_kernel", scores_kernel<decltype(slots)::value>,
                    {dim3(blocks_of(logits.dim(0))), dim3(kThreads), 0, stream},
                    gpu::device_data<float>(scores), gpu::device_data<float>(logits),
                    rule, logits.dim(0));
    });
    return scores;
}

/// ⑤ what the losses sum up.
void sum_losses(LossStatistics& losses, UnfusedRouting& made,
                const RoutingOperands& operands, const RoutingRule& rule,
                cudaStream_t stream) {
    const std::int64_t T = operands.logits.dim(0), P = losses.assignments.dim(0);
    const int E = rule.num_experts;
    made.loss_scores = compute_aux_scores(operands.logits, rule, stream);
    made.loss_ids = gpu::device_empty<int>({T, rule.topk});
    RoutingRule plain = rule;
    plain.num_groups = 0;
    choose(made.loss_ids, made.loss_scores, {}, plain, stream);
    count(gpu::device_data<int>(losses.assignments), made.loss_ids, operands.padding_mask,
          rule, P, stream);
    made.log_sum_exps = gpu::device_empty<float>({T});
    with_slots(E, [&](auto slots) {
        gpu::launch("log_sum_exp_kernel", log_sum_exp_kernel<decltype(slots)::value>,
                    {dim3(blocks_of(T)), dim3(kThreads), 0, stream},
                    gpu::device_data<float>(made.log_sum_exps),
                    gpu::device_data<float>(operands.logits), E, T);
    });
    const TokenRange range = make_token_range(T, P);
    gpu::launch(
        "sum_tokens_kernel", sum_tokens_kernel,
        {dim3(unsigned(range.num_blocks()), unsigned(P)), dim3(kThreads), 0, stream},
        SumPointers{gpu::device_data<float>(losses.partial_scores),
                    gpu::device_data<float>(losses.partial_squares),
                    gpu::device_data<int>(losses.num_valid),
                    gpu::device_data<float>(made.loss_scores),
                    gpu::device_data<float>(made.log_sum_exps),
                    gpu::device_data<std::uint8_t>(operands.padding_mask)},
        range, E);
}

}  // namespace

//! [route_unfused]
UnfusedRouting route_unfused(RoutedTokens& routed, const RoutingOperands& operands,
                             const RoutingRule& rule, cudaStream_t stream) {
    const Tensor& logits = operands.logits;
    const std::int64_t T = logits.dim(0);
    MOE_CHECK_EQ(logits.dim(1), rule.num_experts);
    MOE_CHECK_EQ(routed.ids.dim(0), T);
    MOE_CHECK_EQ(routed.ids.dim(1), rule.topk);
    UnfusedRouting made;
    gpu::check(cudaMemsetAsync(gpu::device_data<int>(routed.counters), 0,
                               routed.counters.size_bytes(), stream),
               "cudaMemsetAsync");
    gpu::launch("check_logits_kernel", check_logits_kernel,
                gpu::one_thread_per(logits.numel(), stream),
                gpu::device_data<int>(routed.non_finite), gpu::device_data<float>(logits),
                T, rule.num_experts);

    // ③ scores, K experts by them, their weights, and how many tokens each expert gets
    const bool post_softmax = rule.is_post_softmax();
    if (!post_softmax) made.scores = compute_scores_of_all(logits, rule, stream);
    const Tensor& values = post_softmax ? logits : made.scores;
    if (!operands.has_precomputed_ids)
        choose(routed.ids, values, post_softmax ? Tensor() : operands.expert_bias, rule,
               stream);
    gpu::launch("weights_kernel", weights_kernel,
                {dim3(blocks_of(T)), dim3(kThreads), 0, stream},
                gpu::device_data<float>(routed.weights), gpu::device_data<float>(values),
                gpu::device_data<int>(routed.ids), rule, T);
    count(gpu::device_data<int>(routed.tokens_per_expert), routed.ids, {}, rule, 1,
          stream);
    if (Tensor counts = operands.local_tokens_per_expert; counts.defined())
        count(gpu::device_counts(counts), routed.ids, operands.padding_mask, rule, 1,
              stream);

    if (routed.losses.assignments.defined())
        sum_losses(routed.losses, made, operands, rule, stream);
    return made;
}
//! [route_unfused]

}  // namespace moe::optimized
