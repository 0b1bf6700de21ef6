// quantile_balancing.cu: a choice by logits less a number for each expert, and the
// numbers that would have balanced it.

#include "optimized_gpu/quantile_balancing.h"

#include "distributed/quantile_balancing.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

//! [choose_by_quantiles]
namespace {

/// One warp per token.
template <int N>
__global__ void __launch_bounds__(kThreads)
    choose_by_quantiles_kernel(int* ids, float* margins, const float* logits,
                               const float* beta, std::int64_t num_tokens, int E, int K) {
    const int lane = lane_index();
    const std::int64_t t = std::int64_t(blockIdx.x) * kWarps + warp_index();
    if (t >= num_tokens) return;
    float x[N];
    unsigned keys[N];
    load_row(x, logits + t * E, E, lane);
#pragma unroll
    for (int j = 0; j < N; ++j) {
        const int e = j * kLanes + lane;
        keys[j] = key_of(e < E ? x[j] - beta[e] : 0.0f);
    }
    // K experts, and the first that has to stand back
    unsigned open = slots_below(E, lane);
    Choice next = {};
    for (int k = 0; k <= K; ++k) {
        next = largest(keys, open, lane);
        open &= ~slot_of(next.index, lane);
        if (lane == 0 && k < K) ids[t * K + k] = next.index;
    }
    if (margins == nullptr) return;
    const float alpha = value_of(next.key);
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] -= alpha;
    store_row(margins + t * E, x, E, lane);
}

}  // namespace

void choose_by_quantiles(Tensor& ids, Tensor& margins, const Tensor& logits,
                         const Tensor& beta, cudaStream_t stream) {
    const std::int64_t T = logits.dim(0), E = logits.dim(1), K = ids.dim(1);
    MOE_CHECK_EQ(ids.dim(0), T);
    MOE_CHECK_EQ(beta.numel(), E);
    MOE_CHECK(K < E);
    MOE_CHECK(!margins.defined() || margins.shape() == logits.shape());
    with_slots(E, [&](auto slots) {
        gpu::launch(
            "choose_by_quantiles_kernel",
            choose_by_quantiles_kernel<decltype(slots)::value>,
            {dim3(unsigned((T + kWarps - 1) / kWarps)), dim3(kThreads), 0, stream},
            gpu::device_data<int>(ids), gpu::device_data<float>(margins),
            gpu::device_data<float>(logits), gpu::device_data<float>(beta), T, int(E),
            int(K));
    });
}
//! [choose_by_quantiles]

//! [margin_quantiles]
namespace {

/// A block's experts, one for each warp, and the values of a digit.
constexpr int kColumns = kWarps, kDigitBits = 8, kDigits = 1 << kDigitBits;
static_assert(kDigits % kLanes == 0 && kThreads % kColumns == 0);

struct QuantilesSmem {
    int counts[kColumns][kDigits];  // of the next digit
    unsigned prefix[kColumns];      // the digits that are known
    int rank[kColumns];             // how many of this prefix are larger
};

/// Finds the next digit of a column: the one of the value that `rank` others are larger
/// than. A warp; its lanes have eight digits each, the largest first.
__device__ void narrow(QuantilesSmem& s, int column) {
    constexpr int kEach = kDigits / kLanes;
    const int lane = lane_index(), rank = s.rank[column];
    const int* counts = s.counts[column];
    int mine = 0;
    for (int i = 0; i < kEach; ++i) mine += counts[kDigits - 1 - lane * kEach - i];
    int larger = warp_sum_before(mine);
    __syncwarp();  // all have read the rank that one of them replaces
    if (rank < larger || rank >= larger + mine) return;
    for (int i = 0; i < kEach; ++i) {  // one lane of the warp
        const int digit = kDigits - 1 - lane * kEach - i;
        if (rank < larger + counts[digit]) {
            s.prefix[column] = s.prefix[column] << kDigitBits | unsigned(digit);
            s.rank[column] = rank - larger;
            return;
        }
        larger += counts[digit];
    }
}

/// A block for eight neighbours among the experts. TUTORIAL: the value is found digit by
/// digit, the highest of four first: count how often each of 256 comes, take the one in
/// which the rank falls, and go on among those that have it. That reads every margin four
/// times, where sorting would also write them. Eight experts at a time, because a row's
/// margins of eight experts are 32 bytes: what memory hands out at least.
__global__ void __launch_bounds__(kThreads)
    margin_quantiles_kernel(float* quantiles, float* sums, const float* margins,
                            int share, std::int64_t M, int E) {
    constexpr int kRows = kThreads / kColumns;
    auto& s = gpu::shared_memory<QuantilesSmem>();
    const int thread = int(threadIdx.x), column = thread % kColumns;
    const int e = int(blockIdx.x) * kColumns + column;
    if (thread < kColumns) {
        s.prefix[thread] = 0;
        s.rank[thread] = share;
    }
    for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
        for (int i = thread; i < kColumns * kDigits; i += kThreads)
            s.counts[i / kDigits][i % kDigits] = 0;
        __syncthreads();
        const unsigned prefix = s.prefix[column];
        if (e < E)
            for (std::int64_t t = thread / kColumns; t < M; t += kRows) {
                // Wider than a key, which a shift by 32 would leave as it is
                const std::uint64_t key = key_of(margins[t * E + e]);
                if (key >> shift >> kDigitBits == prefix)
                    atomicAdd(&s.counts[column][key >> shift & (kDigits - 1)], 1);
            }
        __syncthreads();
        narrow(s, warp_index());
        __syncthreads();
    }
    if (thread < kColumns && e < E) {
        const float quantile = value_of(s.prefix[column]);
        quantiles[e] = quantile;
        sums[e] += quantile;
    }
    if (blockIdx.x == 0 && thread == 0) sums[E] += 1.0f;
}

}  // namespace

void add_margin_quantiles(Tensor& quantiles, Tensor& sums, const Tensor& margins,
                          std::int64_t topk, cudaStream_t stream) {
    const std::int64_t M = margins.dim(0), E = margins.dim(1);
    MOE_CHECK_EQ(quantiles.numel(), E);
    MOE_CHECK_EQ(sums.numel(), E + 1);
    const std::int64_t share = distributed::even_share(M, topk, E);
    if (M == 0) return;
    gpu::launch("margin_quantiles_kernel", margin_quantiles_kernel,
                {dim3(unsigned((E + kColumns - 1) / kColumns)), dim3(kThreads),
                 sizeof(QuantilesSmem), stream},
                gpu::device_data<float>(quantiles), gpu::device_data<float>(sums),
                gpu::device_data<float>(margins), int(share), M, int(E));
}
//! [margin_quantiles]

namespace {

/// One thread per expert.
__global__ void mean_quantiles_kernel(float* mean, const float* sums, int E) {
    const int e = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (e < E) mean[e] = sums[e] / fmaxf(sums[E], 1.0f);
}

/// One warp, which goes over the experts twice.
__global__ void __launch_bounds__(kLanes)
    get_updated_qb_beta_kernel(float* updated, const float* beta, const float* sum,
                               float count, float old_part, float new_part, int E) {
    const auto moved = [&](int e) {
        return old_part * beta[e] + new_part * (sum[e] / count);
    };
    float total = 0.0f;
    for (int e = lane_index(); e < E; e += kLanes) total += moved(e);
    const float mean = warp_sum(total) / float(E);
    for (int e = lane_index(); e < E; e += kLanes) updated[e] = moved(e) - mean;
}

}  // namespace

Tensor mean_quantiles(const Tensor& sums, cudaStream_t stream) {
    const std::int64_t E = sums.numel() - 1;
    Tensor mean = gpu::device_empty<float>({E});
    gpu::launch("mean_quantiles_kernel", mean_quantiles_kernel,
                gpu::one_thread_per(E, stream), gpu::device_data<float>(mean),
                gpu::device_data<float>(sums), int(E));
    return mean;
}

Tensor get_updated_qb_beta(const Tensor& beta, const Tensor& sum, std::int64_t count,
                           double ema, cudaStream_t stream) {
    const std::int64_t E = beta.numel();
    MOE_CHECK_EQ(sum.numel(), E);
    Tensor updated = gpu::device_empty<float>({E});
    gpu::launch("get_updated_qb_beta_kernel", get_updated_qb_beta_kernel,
                {dim3(1), dim3(kLanes), 0, stream}, gpu::device_data<float>(updated),
                gpu::device_data<float>(beta), gpu::device_data<float>(sum), float(count),
                float(ema), float(1.0 - ema), int(E));
    return updated;
}

}  // namespace moe::optimized
