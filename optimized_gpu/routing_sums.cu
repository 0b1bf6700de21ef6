// routing_sums.cu: the sums of all blocks, added up in one order.

#include "optimized_gpu/routing_sums.h"

#include <algorithm>

#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/warp_row.h"

namespace moe::optimized {

TokenRange make_token_range(std::int64_t num_tokens, std::int64_t populations) {
    constexpr std::int64_t kBusyWarps = 8192;  // 62 for each of 132 multiprocessors
    const auto rounds = std::clamp<std::int64_t>(num_tokens / kBusyWarps, 1, 16);
    return {num_tokens, int(populations), int(rounds)};
}

namespace {

struct SumPointers {
    const float *partial_scores, *partial_squares;
    double *score_sums, *square_sums;
};

constexpr int kSegments = 32;

struct SumSmem {
    double segments[kSegments][kLanes + 1];
};

/// Σ of what the blocks of population blockIdx.y left behind. A block sums 32 columns,
/// experts and after them the squares; thread (c, i) the i-th segment of column c.
__global__ void __launch_bounds__(kLanes* kSegments)
    sum_partials_kernel(SumPointers of, int num_blocks, int E) {
    const int column = int(blockIdx.x) * kLanes + int(threadIdx.x);
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

}  // namespace

void sum_partials(LossStatistics& losses, std::int64_t num_blocks, cudaStream_t stream) {
    const std::int64_t P = losses.score_sums.dim(0), E = losses.score_sums.dim(1);
    const SumPointers pointers = {
        gpu::device_data<float>(losses.partial_scores),
        gpu::device_data<float>(losses.partial_squares),
        gpu::device_data<double>(losses.score_sums),
        gpu::device_data<double>(losses.square_sums),
    };
    const unsigned columns = unsigned((E + 1 + kLanes - 1) / kLanes);
    gpu::launch(
        "sum_partials_kernel", sum_partials_kernel,
        {dim3(columns, unsigned(P)), dim3(kLanes, kSegments), sizeof(SumSmem), stream},
        pointers, int(num_blocks), int(E));
}

}  // namespace moe::optimized
