// routing.cu: from logits to the chosen experts, their weights and the sums of the
// losses.

#include "optimized_gpu/routing.h"

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/choice.h"
#include "optimized_gpu/token_range.h"

namespace moe::optimized {
namespace {

struct RoutePointers {
    const float* logits;
    const float* expert_bias;          // or null
    const std::uint8_t* padding_mask;  // or null
    float* weights;
    int* ids;
    bool has_precomputed_ids;
    int* tokens_per_expert;
    unsigned long long* local_tokens_per_expert;  // or null
    int* non_finite;
    int *assignments, *num_valid;             // with losses
    float *partial_scores, *partial_squares;  // with losses

    __device__ bool is_padding(std::int64_t t) const {
        return padding_mask != nullptr && padding_mask[t] != 0;
    }
};

/// A block's own counts and sums. TUTORIAL: 256 threads that count in shared memory and
/// then add one number per expert make a few global atomics out of many.
template <int N, bool kLosses>
struct RouteSmem {
    static constexpr int kExperts = N * kLanes;
    int tokens[kExperts], valid_tokens[kExperts];
    int assignments[kLosses ? kExperts : 1];
    float scores[kLosses ? kWarps : 1][kLosses ? kExperts : 1];
    float squares[kWarps];
    int num_valid[kWarps];
};

/// Σ over the warp's tokens.
template <int N>
struct WarpSums {
    float scores[N] = {};
    float squares = 0.0f;
    int num_valid = 0;
};

/// The K chosen of a token: lane k < K has the k-th.
struct ChosenExpert {
    int id;
    float weight;
};

/// ③ for one token, x its logits, s the scores of all experts (of a softmax after top-k
/// they are not looked at). @param logits  (E), where x came from
/// @param given_ids  (K), chosen by somebody else; or null
template <int N>
__device__ ChosenExpert route_token(const float (&x)[N], const float (&s)[N],
                                    const SoftmaxSums& softmax_of_row,
                                    const float* logits, const float* expert_bias,
                                    const int* given_ids, const RoutingRule& rule,
                                    int lane) {
    const int E = rule.num_experts;
    const bool post_softmax = rule.is_post_softmax();
    if (given_ids != nullptr) {
        const int id = lane < rule.topk ? given_ids[lane] : -1;
        float value = 0.0f;
        if (id >= 0)
            value = post_softmax ? logits[id]
                                 : score_of(rule.function, logits[id], softmax_of_row);
        // The first need not be the largest
        const float largest = warp_max(id >= 0 ? value : -INFINITY);
        const float weight = rule.scaling_factor * weight_of(value, largest, rule, lane);
        return {id, rule.rounded(weight)};
    }
    const bool has_bias = expert_bias != nullptr && !post_softmax;
    unsigned keys[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        const float bias = has_bias && e < E ? expert_bias[e] : 0.0f;  // bias
        keys[j] = key_of(post_softmax ? x[j] : s[j] + bias);
    }
    const Choice chosen = choose_experts(keys, rule, lane);
    // A bias moves the choice, not the weight. TUTORIAL: the score lies in a register of
    // some lane, but which one is known only now, and registers have no addresses. So its
    // logit is read again, from L1, and gives the same score.
    float value = lane < rule.topk ? value_of(chosen.key) : 0.0f;
    if (has_bias && lane < rule.topk) {
        const float logit = logits[chosen.index];
        value = score_of(rule.function, logit, softmax_of_row);
    }
    const float largest = __shfl_sync(kAllLanes, value, 0);
    const float weight = rule.scaling_factor * weight_of(value, largest, rule, lane);
    return {chosen.index, rule.rounded(weight)};
}

/// ⑤ for one valid token: adds its scores to the warp's sums, and its choices by them to
/// the block's.
template <int N>
__device__ void add_losses(WarpSums<N>& sums, int* assignments, float (&s)[N],
                           float log_sum_exp, const RoutingRule& rule, int lane) {
    const bool softmax = rule.function == ScoreFunction::softmax;
    const float normalizer = softmax ? 1.0f : normalizer_of(s);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        s[j] /= normalizer;
        sums.scores[j] += s[j];
    }
    sums.squares += log_sum_exp * log_sum_exp;
    ++sums.num_valid;
    // Not the choice of the routing, even where groups and bias are off: scores that
    // rounding made equal are a tie, and their logits are not.
    unsigned keys[N];
    keys_of(keys, s);
    const int id =
        top_k(keys, slots_below(rule.num_experts, lane), rule.topk, lane).index;
    if (lane < rule.topk) atomicAdd(&assignments[id], 1);
}

/// True in all lanes when all logits of a token are finite.
template <int N>
__device__ bool all_finite(const float (&x)[N], int E, int lane) {
    bool finite = true;
#pragma unroll
    for (int j = 0; j < N; ++j)
        finite = finite && (j * kLanes + lane >= E || isfinite(x[j]));
    return __all_sync(kAllLanes, finite);
}

/// The block's counts and sums, from shared to global memory.
template <int N, bool kLosses>
__device__ void flush(const RoutePointers& to, const RouteSmem<N, kLosses>& smem, int E) {
    const std::int64_t block = std::int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        // Integers: the order in which blocks add does not show
        if (smem.tokens[e] != 0) atomicAdd(&to.tokens_per_expert[e], smem.tokens[e]);
        if (to.local_tokens_per_expert != nullptr && smem.valid_tokens[e] != 0)
            atomicAdd(&to.local_tokens_per_expert[e],
                      static_cast<unsigned long long>(smem.valid_tokens[e]));
        if constexpr (kLosses) {
            if (smem.assignments[e] != 0)
                atomicAdd(&to.assignments[std::int64_t(blockIdx.y) * E + e],
                          smem.assignments[e]);
            // Floats: in one order, and not by atomics
            float sum = 0.0f;
            for (int warp = 0; warp < kWarps; ++warp) sum += smem.scores[warp][e];
            to.partial_scores[block * E + e] = sum;
        }
    }
    if constexpr (kLosses) {
        if (threadIdx.x != 0) return;
        float squares = 0.0f;
        int num_valid = 0;
        for (int warp = 0; warp < kWarps; ++warp) {
            squares += smem.squares[warp];
            num_valid += smem.num_valid[warp];
        }
        to.partial_squares[block] = squares;
        if (num_valid != 0) atomicAdd(to.num_valid, num_valid);
    }
}

/// Blocks that a multiprocessor should hold. TUTORIAL: its 65536 registers are shared out
/// to them, so this bounds a thread to 64, 128 or 255; without a bound ptxas sets itself
/// a tighter one, and spills.
constexpr int blocks_at_a_time(int slots) {
    return slots <= 4 ? 4 : slots <= 8 ? 2 : 1;
}

//! [route_kernel]
/// One warp per token.
template <int N, bool kLosses>
__global__ void __launch_bounds__(kThreads, blocks_at_a_time(N))
    route_kernel(RoutePointers to, RoutingRule rule, TokenRange range) {
    const int E = rule.num_experts, K = rule.topk, lane = lane_index();
    const int warp = int(threadIdx.x) / kLanes;
    auto& smem = gpu::shared_memory<RouteSmem<N, kLosses>>();
    for (int e = int(threadIdx.x); e < E; e += kThreads) {
        smem.tokens[e] = smem.valid_tokens[e] = 0;
        if constexpr (kLosses) smem.assignments[e] = 0;
    }
    __syncthreads();

    WarpSums<N> sums;
    for (int round = 0; round < range.rounds; ++round) {
        const std::int64_t t = range.token(round, warp);
        if (t >= range.num_tokens) break;
        float x[N], s[N] = {};
        load_row(x, to.logits + t * E, E, lane);
        if (!all_finite(x, E, lane) && lane == 0)
            atomicMax(to.non_finite, int(range.num_tokens - t));

        SoftmaxSums softmax_of_row = {};
        if (kLosses || rule.is_pre_softmax()) softmax_of_row = softmax_sums(x);
        if (kLosses || !rule.is_post_softmax())
            compute_scores(s, rule.function, x, softmax_of_row);

        const ChosenExpert chosen =
            route_token(x, s, softmax_of_row, to.logits + t * E, to.expert_bias,
                        to.has_precomputed_ids ? to.ids + t * K : nullptr, rule, lane);
        const bool padding = to.is_padding(t);
        if (lane < K) {
            to.weights[t * K + lane] = chosen.weight;
            to.ids[t * K + lane] = chosen.id;
            atomicAdd(&smem.tokens[chosen.id], 1);
            if (to.local_tokens_per_expert != nullptr && !padding)
                atomicAdd(&smem.valid_tokens[chosen.id], 1);
        }
        if constexpr (kLosses)
            if (!padding)
                add_losses(sums, smem.assignments, s, softmax_of_row.log_sum_exp(), rule,
                           lane);
    }
    if constexpr (kLosses) {
        store_row(smem.scores[warp], sums.scores, E, lane);
        if (lane == 0) {
            smem.squares[warp] = sums.squares;
            smem.num_valid[warp] = sums.num_valid;
        }
    }
    __syncthreads();
    flush(to, smem, E);
}
//! [route_kernel]

}  // namespace

//! [route]
void route(RoutedTokens& routed, const RoutingOperands& operands, const RoutingRule& rule,
           cudaStream_t stream) {
    const std::int64_t T = operands.logits.dim(0), E = rule.num_experts;
    LossStatistics& losses = routed.losses;
    const bool has_losses = losses.assignments.defined();
    const std::int64_t P = has_losses ? losses.assignments.dim(0) : 1;
    MOE_CHECK_EQ(operands.logits.dim(1), E);
    MOE_CHECK_EQ(routed.ids.dim(0), T);
    MOE_CHECK_EQ(routed.ids.dim(1), rule.topk);
    MOE_CHECK(!operands.expert_bias.defined() || operands.expert_bias.numel() == E);
    MOE_CHECK(!operands.padding_mask.defined() || operands.padding_mask.numel() == T);
    Tensor local_tokens = operands.local_tokens_per_expert;
    const RoutePointers to = {
        gpu::device_data<float>(operands.logits),
        gpu::device_data<float>(operands.expert_bias),
        gpu::device_data<std::uint8_t>(operands.padding_mask),
        gpu::device_data<float>(routed.weights),
        gpu::device_data<int>(routed.ids),
        operands.has_precomputed_ids,
        gpu::device_data<int>(routed.tokens_per_expert),
        gpu::device_counts(local_tokens),
        gpu::device_data<int>(routed.non_finite),
        gpu::device_data<int>(losses.assignments),
        gpu::device_data<int>(losses.num_valid),
        gpu::device_data<float>(losses.partial_scores),
        gpu::device_data<float>(losses.partial_squares),
    };
    gpu::check(cudaMemsetAsync(gpu::device_data<int>(routed.counters), 0,
                               routed.counters.size_bytes(), stream),
               "cudaMemsetAsync");

    const TokenRange range = make_token_range(T, P);
    const unsigned blocks = unsigned(range.num_blocks());
    with_slots(E, [&](auto slots) {
        constexpr int N = decltype(slots)::value;
        const auto start = [&](auto kernel, std::size_t smem) {
            gpu::launch("route_kernel", kernel,
                        {dim3(blocks, unsigned(P)), dim3(kThreads), smem, stream}, to,
                        rule, range);
        };
        if (has_losses)
            start(route_kernel<N, true>, sizeof(RouteSmem<N, true>));
        else
            start(route_kernel<N, false>, sizeof(RouteSmem<N, false>));
    });
}
//! [route]

}  // namespace moe::optimized
