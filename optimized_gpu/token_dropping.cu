// token_dropping.cu: each expert finds the last token that it has room for.

#include "optimized_gpu/token_dropping.h"

#include <algorithm>
#include <climits>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/multihot.h"
#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

//! [token_dropping]
namespace {

using Preference = unsigned long long;

/// A key for value and token, all different: the larger, the sooner the token is taken.
__device__ Preference preference(float value, int token) {
    return Preference(key_of(value)) << 32 | (0xffffffffu - unsigned(token));
}

/// The routed tokens' values; one thread per choice.
__global__ void enter_values_kernel(float* values, const int* ids, const float* weights,
                                    std::int64_t count, int K, std::int64_t num_tokens,
                                    int E, bool by_probs) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int e = ids[i];
    if (e >= E) __trap();  // rather than a row behind the last
    if (e >= 0) values[e * num_tokens + i / K] = by_probs ? weights[i] : 1.0f;
}

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;

struct SelectSmem {
    int counts[kDigits];
    int sums[kWarps];
    int digit, wanted;
};

/// How often each digit follows the digits `found` among an expert's preferences.
__device__ void count_digits(SelectSmem& s, const float* values, int num_tokens,
                             Preference found, int shift) {
    s.counts[threadIdx.x] = 0;
    __syncthreads();
    const int first = warp_index() * kLanes;
    for (std::int64_t step = first; step < num_tokens; step += kThreads) {
        const std::int64_t t = step + lane_index();
        int digit = -1;
        if (t < num_tokens) {
            const Preference own = preference(values[t], int(t)) >> shift;
            if (own >> kDigitBits == found) digit = int(own % kDigits);
        }
        // TUTORIAL: most tokens were not routed here and have the same value; lanes that
        // add to one place take turns. So lanes with the same digit find each other, and
        // one adds for all.
        const unsigned same = __match_any_sync(kAllLanes, digit);
        if (digit >= 0 && (same & lanes_before()) == 0)
            atomicAdd(&s.counts[digit], __popc(same));
    }
    __syncthreads();
}

/// The digit of number `wanted` in falling order, and which one it is of those with that
/// digit. A thread for each digit, the highest first.
__device__ void pick_digit(SelectSmem& s, int wanted) {
    const int digit = kDigits - 1 - int(threadIdx.x), count = s.counts[digit];
    int better = warp_sum_before(count);
    if (lane_index() == kLanes - 1) s.sums[warp_index()] = better + count;
    __syncthreads();
    for (int w = 0; w < warp_index(); ++w) better += s.sums[w];
    if (better < wanted && wanted <= better + count) {
        s.digit = digit;
        s.wanted = wanted - better;
    }
    __syncthreads();
}

/// A block for each expert: its preference number `capacity`, found digit by digit, 256
/// possible ones at a time. Source: radix select, as in PyTorch's topk.
__global__ void __launch_bounds__(kThreads)
    select_last_kernel(Preference* last, const float* values, int num_tokens,
                       int capacity) {
    static_assert(kThreads == kDigits);
    auto& s = gpu::shared_memory<SelectSmem>();
    values += std::int64_t(blockIdx.x) * num_tokens;
    Preference found = 0;
    int wanted = capacity;
    for (int shift = 64 - kDigitBits; shift >= 0; shift -= kDigitBits) {
        // Of few tokens the upper digits are all the same.
        if (shift < 32 && (num_tokens - 1) >> shift == 0) {
            found = found << kDigitBits | (kDigits - 1);
            continue;
        }
        count_digits(s, values, num_tokens, found, shift);
        pick_digit(s, wanted);
        found = found << kDigitBits | Preference(s.digit);
        wanted = s.wanted;
    }
    // Without any room not even the best one stays; no number has this key.
    if (threadIdx.x == 0) last[blockIdx.x] = capacity > 0 ? found : ~Preference(0);
}

/// One thread per choice.
__global__ void drop_tokens_kernel(int* kept_ids, const int* ids, const float* weights,
                                   const Preference* last, std::int64_t count, int K,
                                   bool by_probs) {
    const std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const int e = ids[i];
    const float value = by_probs ? weights[i] : 1.0f;
    kept_ids[i] = e >= 0 && preference(value, int(i / K)) >= last[e] ? e : -1;
}

struct PadSmem {
    bool is_kept[kLanes][kLanes + 1];  // expert, token; a column more, so that lanes of
                                       // one token find different banks
};

/// A block for 32 tokens and 32 experts, of which the values lie as rows of tokens, and
/// the result as rows of experts. Map and probs hold the routed tokens already.
__global__ void __launch_bounds__(kThreads)
    pad_to_capacity_kernel(std::uint8_t* map, float* probs, const float* values,
                           const Preference* last, std::int64_t num_tokens, int E) {
    auto& s = gpu::shared_memory<PadSmem>();
    const int lane = lane_index(), warp = warp_index();
    const std::int64_t first_token = std::int64_t(blockIdx.x) * kLanes;
    const int first_expert = int(blockIdx.y) * kLanes;
    for (int i = warp; i < kLanes; i += kWarps) {
        const std::int64_t t = first_token + lane;
        const int e = first_expert + i;
        if (t < num_tokens && e < E)
            s.is_kept[i][lane] =
                preference(values[e * num_tokens + t], int(t)) >= last[e];
    }
    __syncthreads();
    for (int i = warp; i < kLanes; i += kWarps) {
        const std::int64_t t = first_token + i;
        const int e = first_expert + lane;
        if (t >= num_tokens || e >= E) continue;
        const bool is_kept = s.is_kept[lane][i];
        if (is_kept == (map[t * E + e] != 0)) continue;
        map[t * E + e] = is_kept ? 1 : 0;
        if (!is_kept) probs[t * E + e] = 0.0f;  // a filler's is 0
    }
}

/// Whom each expert takes last.
TokenPreferences find_last_tokens(const Tensor& ids, const Tensor& weights,
                                  int num_experts, std::int64_t capacity, bool by_probs,
                                  cudaStream_t stream) {
    const std::int64_t T = ids.dim(0), K = ids.dim(1), E = num_experts;
    MOE_CHECK(weights.shape() == ids.shape());
    MOE_CHECK(T <= INT_MAX);
    TokenPreferences found{gpu::device_empty<float>({E, T}),
                           gpu::device_empty<std::int64_t>({E})};
    if (T == 0) return found;
    float* const values = gpu::device_data<float>(found.values);
    gpu::check(cudaMemsetAsync(values, 0, found.values.size_bytes(), stream),
               "cudaMemsetAsync");
    gpu::launch("enter_values_kernel", enter_values_kernel,
                gpu::one_thread_per(T * K, stream), values, gpu::device_data<int>(ids),
                gpu::device_data<float>(weights), T * K, int(K), T, num_experts,
                by_probs);
    gpu::launch("select_last_kernel", select_last_kernel,
                {num_experts, kThreads, sizeof(SelectSmem), stream},
                gpu::device_counts(found.last), values, int(T),
                int(std::clamp<std::int64_t>(capacity, 0, T)));
    return found;
}

}  // namespace

std::int64_t capacity_of_experts(const MoEConfig& config, std::int64_t num_tokens) {
    const std::int64_t capacity = get_capacity(config, num_tokens);
    if (config.moe_pad_expert_input_to_capacity && capacity > num_tokens)
        reject(
            "moe_expert_capacity_factor", *config.moe_expert_capacity_factor,
            fmt::format("with moe_pad_expert_input_to_capacity the capacity ({}) must be "
                        "at most the number of tokens ({})",
                        capacity, num_tokens));
    return capacity;
}

KeptTokens drop_tokens(const Tensor& ids, const Tensor& weights, int num_experts,
                       std::int64_t capacity, bool by_probs, cudaStream_t stream) {
    KeptTokens kept{
        gpu::device_empty<int>(ids.shape()),
        find_last_tokens(ids, weights, num_experts, capacity, by_probs, stream)};
    gpu::launch("drop_tokens_kernel", drop_tokens_kernel,
                gpu::one_thread_per(ids.numel(), stream), gpu::device_data<int>(kept.ids),
                gpu::device_data<int>(ids), gpu::device_data<float>(weights),
                gpu::device_counts(kept.preferences.last), ids.numel(), int(ids.dim(1)),
                by_probs);
    return kept;
}

PaddedTokens pad_to_capacity(const Tensor& ids, const Tensor& weights, int num_experts,
                             std::int64_t capacity, bool by_probs, cudaStream_t stream) {
    const std::int64_t T = ids.dim(0);
    MOE_CHECK(capacity <= T);
    const Multihot routed = indices_to_multihot(ids, weights, num_experts, stream);
    PaddedTokens padded{
        routed.map, routed.probs,
        find_last_tokens(ids, weights, num_experts, capacity, by_probs, stream)};
    gpu::launch("pad_to_capacity_kernel", pad_to_capacity_kernel,
                {dim3(unsigned((T + kLanes - 1) / kLanes),
                      unsigned((num_experts + kLanes - 1) / kLanes)),
                 kThreads, sizeof(PadSmem), stream},
                gpu::device_data<std::uint8_t>(padded.map),
                gpu::device_data<float>(padded.probs),
                gpu::device_data<float>(padded.preferences.values),
                gpu::device_counts(padded.preferences.last), T, num_experts);
    return padded;
}
//! [token_dropping]

}  // namespace moe::optimized
