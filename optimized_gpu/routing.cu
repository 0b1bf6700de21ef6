// routing.cu: from logits to the chosen experts, their weights and the sums of the
// losses.

#include "optimized_gpu/routing.h"

#include <algorithm>
#include <limits>

#include "core/transfer.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"

namespace moe::optimized {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpSize;

/// Which tokens a block routes: `rounds` times one for each of its warps, all of
/// population blockIdx.y.
struct TokenRange {
    std::int64_t num_tokens;
    int populations, rounds;

    __host__ __device__ std::int64_t per_population() const {
        return num_tokens / populations;
    }
    std::int64_t num_blocks() const {
        const int per_block = rounds * kWarps;
        return (per_population() + per_block - 1) / per_block;
    }
    /// The warp's token of a round; num_tokens past the end.
    __device__ std::int64_t token(int round, int warp) const {
        const std::int64_t s =
            (std::int64_t(blockIdx.x) * rounds + round) * kWarps + warp;
        return s < per_population() ? s * populations + blockIdx.y : num_tokens;
    }
};

/// The least work per block that still leaves no multiprocessor idle, from T alone: how
/// many blocks there are decides in which order scores are summed, and every GPU shall
/// get the same bits.
TokenRange make_token_range(std::int64_t num_tokens, std::int64_t populations) {
    constexpr std::int64_t kBusyWarps = 8192;  // 62 for each of 132 multiprocessors
    const auto rounds = std::clamp<std::int64_t>(num_tokens / kBusyWarps, 1, 16);
    return {num_tokens, int(populations), int(rounds)};
}

struct RoutePointers {
    const float* logits;
    const float* expert_bias;          // or null
    const std::uint8_t* padding_mask;  // or null
    float* weights;
    int* ids;
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
    static constexpr int kExperts = N * kWarpSize;
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

/// The weight of the chosen, from its logit (softmax after top-k) or score, 0 in lanes
/// past K.
__device__ float weight_of(float value, const RoutingRule& rule, int lane) {
    if (rule.is_post_softmax()) {
        const float largest = __shfl_sync(kWholeWarp, value, 0);
        const float e = lane < rule.topk ? expf(value - largest) : 0.0f;
        return e / warp_sum(e);
    }
    return rule.normalizes() ? value / (warp_sum(value) + kNormalizeEpsilon) : value;
}

/// ③ for one token, x its logits, s the scores of all experts (of a softmax after top-k
/// they are not looked at). @param logits  (E), where x came from
template <int N>
__device__ ChosenExpert route_token(const float (&x)[N], const float (&s)[N],
                                    const SoftmaxSums& softmax_of_row,
                                    const float* logits, const float* expert_bias,
                                    const RoutingRule& rule, int lane) {
    const int E = rule.num_experts, K = rule.topk;
    const bool post_softmax = rule.is_post_softmax();
    const bool has_bias = expert_bias != nullptr && !post_softmax;
    unsigned keys[N];
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kWarpSize + lane;
        const float bias = has_bias && e < E ? expert_bias[e] : 0.0f;  // bias
        keys[j] = key_of(post_softmax ? x[j] : s[j] + bias);
    }
    const unsigned open = rule.num_groups == 0
                              ? slots_below(E, lane)
                              : open_groups(keys, E, rule.num_groups, rule.group_topk,
                                            K / rule.group_topk, lane);
    const Choice chosen = top_k(keys, open, K, lane);
    // A bias moves the choice, not the weight. TUTORIAL: the score lies in a register of
    // some lane, but which one is known only now, and registers have no addresses. So its
    // logit is read again, from L1, and gives the same score.
    float value = lane < K ? value_of(chosen.key) : 0.0f;
    if (has_bias && lane < K) {
        const float logit = logits[chosen.index];
        value = score_of(rule.function, logit, softmax_of_row);
    }
    return {chosen.index, rule.scaling_factor * weight_of(value, rule, lane)};
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
        finite = finite && (j * kWarpSize + lane >= E || isfinite(x[j]));
    return __all_sync(kWholeWarp, finite);
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
    const int E = rule.num_experts, K = rule.topk, lane = lane_of_thread();
    const int warp = int(threadIdx.x) / kWarpSize;
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

        const bool softmax = rule.function == ScoreFunction::softmax;
        SoftmaxSums softmax_of_row = {};
        if (kLosses || (softmax && rule.pre_softmax)) softmax_of_row = softmax_sums(x);
        if (kLosses || !rule.is_post_softmax())
            compute_scores(s, rule.function, x, softmax_of_row);

        const ChosenExpert chosen = route_token(x, s, softmax_of_row, to.logits + t * E,
                                                to.expert_bias, rule, lane);
        const bool padding = to.is_padding(t);
        if (lane < K) {
            to.weights[t * K + lane] = chosen.weight;
            to.ids[t * K + lane] = chosen.id;
            atomicAdd(&smem.tokens[chosen.id], 1);
            if (!padding) atomicAdd(&smem.valid_tokens[chosen.id], 1);
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

struct SumPointers {
    const float *partial_scores, *partial_squares;
    double *score_sums, *square_sums;
};

constexpr int kSegments = 32;

struct SumSmem {
    double segments[kSegments][kWarpSize + 1];
};

/// Σ of what the blocks of population blockIdx.y left behind. A block sums 32 columns,
/// experts and after them the squares; thread (c, i) the i-th segment of column c.
__global__ void __launch_bounds__(kWarpSize* kSegments)
    sum_partials_kernel(SumPointers of, int num_blocks, int E) {
    const int column = int(blockIdx.x) * kWarpSize + int(threadIdx.x);
    const int segment = int(threadIdx.y);
    const std::int64_t population = blockIdx.y, first = population * num_blocks;
    auto& smem = gpu::shared_memory<SumSmem>();
    const int length = (num_blocks + kSegments - 1) / kSegments;
    const int end = min((segment + 1) * length, num_blocks);
    double sum = 0.0;
    for (int block = segment * length; block < end; ++block)
        if (column < E)
            sum += double(of.partial_scores[(first + block) * E + column]);
        else if (column == E)
            sum += double(of.partial_squares[first + block]);
    smem.segments[segment][threadIdx.x] = sum;
    __syncthreads();
    if (segment != 0 || column > E) return;
    for (int i = 1; i < kSegments; ++i) sum += smem.segments[i][threadIdx.x];
    if (column < E)
        of.score_sums[population * E + column] = sum;
    else
        of.square_sums[population] = sum;
}

/// `count` of the i32 sums that one memset clears.
Tensor part_of(const Tensor& counters, std::int64_t first, Shape shape) {
    int* data = gpu::device_data<int>(const_cast<Tensor&>(counters)) + first;
    return Tensor::borrow({data, DType::i32, std::move(shape), MemorySpace::device});
}

}  // namespace

RoutingRule make_routing_rule(const MoEConfig& config) {
    if (config.is_sinkhorn())
        reject("moe_router_load_balancing_type", "sinkhorn",
               "optimized_gpu has none; naive_gpu has");
    if (config.moe_router_dtype == "fp64")
        reject("moe_router_dtype", "fp64",
               "optimized_gpu routes in fp32; naive_gpu routes in fp64");
    if (config.num_experts() > kMostExperts)
        reject("num_moe_experts", config.num_experts(),
               fmt::format("at most {} in optimized_gpu; naive_gpu takes more",
                           kMostExperts));
    if (config.moe_router_topk > kMostChoices)
        reject("moe_router_topk", config.moe_router_topk,
               fmt::format("at most {} in optimized_gpu; naive_gpu takes more",
                           kMostChoices));
    const std::string& name = config.moe_router_score_function;
    RoutingRule rule;
    rule.num_experts = int(config.num_experts());
    rule.topk = int(config.moe_router_topk);
    rule.function = name == "softmax"   ? ScoreFunction::softmax
                    : name == "sigmoid" ? ScoreFunction::sigmoid
                                        : ScoreFunction::sqrtsoftplus;
    MOE_CHECK(rule.function != ScoreFunction::sqrtsoftplus || name == "sqrtsoftplus");
    rule.pre_softmax = config.moe_router_pre_softmax;
    if (config.moe_router_group_topk) {
        rule.num_groups = int(*config.moe_router_num_groups);
        rule.group_topk = int(*config.moe_router_group_topk);
    }
    const double factor = config.moe_router_topk_scaling_factor.value_or(0.0);
    if (factor != 0.0) rule.scaling_factor = static_cast<float>(factor);
    return rule;
}

std::int64_t count_populations(const MoEConfig& config, std::int64_t micro_batch) {
    if (config.aux_loss_coeff("seq_aux_loss") > 0.0)
        return std::max<std::int64_t>(micro_batch, 1);
    return config.moe_z_loss_coeff || config.aux_loss_coeff("aux_loss") > 0.0 ||
           config.aux_loss_coeff("global_aux_loss") > 0.0;
}

RoutedTokens make_routed_tokens(const RoutingRule& rule, std::int64_t num_tokens,
                                std::int64_t populations) {
    const std::int64_t T = num_tokens, E = rule.num_experts, P = populations;
    MOE_CHECK(T <= std::numeric_limits<int>::max());
    RoutedTokens routed;
    routed.weights = gpu::device_empty<float>({T, rule.topk});
    routed.ids = gpu::device_empty<int>({T, rule.topk});
    routed.counters = gpu::device_empty<int>({E + 2 + P * E});
    routed.tokens_per_expert = part_of(routed.counters, 0, {E});
    routed.non_finite = part_of(routed.counters, E, {1});
    if (P == 0) return routed;
    MOE_CHECK_EQ(T % P, 0);
    const std::int64_t blocks = P * make_token_range(T, P).num_blocks();
    LossStatistics& losses = routed.losses;
    losses.num_valid = part_of(routed.counters, E + 1, {1});
    losses.assignments = part_of(routed.counters, E + 2, {P, E});
    losses.score_sums = gpu::device_empty<double>({P, E});
    losses.square_sums = gpu::device_empty<double>({P});
    losses.partial_scores = gpu::device_empty<float>({blocks, E});
    losses.partial_squares = gpu::device_empty<float>({blocks});
    return routed;
}

//! [route]
void route(RoutedTokens& routed, const RoutingOperands& operands, const RoutingRule& rule,
           cudaStream_t stream) {
    const std::int64_t T = operands.logits.dim(0), E = rule.num_experts;
    LossStatistics& losses = routed.losses;
    const bool has_losses = losses.score_sums.defined();
    const std::int64_t P = has_losses ? losses.score_sums.dim(0) : 1;
    MOE_CHECK_EQ(operands.logits.dim(1), E);
    MOE_CHECK_EQ(routed.ids.dim(0), T);
    Tensor local_tokens = operands.local_tokens_per_expert;
    const RoutePointers to = {
        gpu::device_data<float>(operands.logits),
        gpu::device_data<float>(operands.expert_bias),
        gpu::device_data<std::uint8_t>(operands.padding_mask),
        gpu::device_data<float>(routed.weights),
        gpu::device_data<int>(routed.ids),
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
    if (!has_losses) return;
    const SumPointers sums = {
        to.partial_scores,
        to.partial_squares,
        gpu::device_data<double>(losses.score_sums),
        gpu::device_data<double>(losses.square_sums),
    };
    const unsigned columns = unsigned((E + 1 + kWarpSize - 1) / kWarpSize);
    gpu::launch(
        "sum_partials_kernel", sum_partials_kernel,
        {dim3(columns, unsigned(P)), dim3(kWarpSize, kSegments), sizeof(SumSmem), stream},
        sums, int(blocks), int(E));
}
//! [route]

void require_finite(const RoutedTokens& routed, const Tensor& logits) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1);
    const int from_end =
        *transfer(routed.non_finite, {MemorySpace::host, DType::i32}).data<int>();
    if (from_end == 0) return;
    const std::int64_t t = T - from_end;
    const std::vector<double> x = to_doubles(logits);
    for (std::int64_t e = 0; e < E; ++e)
        if (!std::isfinite(x[t * E + e]))
            reject(fmt::format("logits[token {}, expert {}]", t, e), x[t * E + e],
                   "every router logit must be finite in fp32, as scores are");
}

}  // namespace moe::optimized
