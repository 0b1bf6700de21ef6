// bias.cu: the gradient of a bias.

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/bf16_vector.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/grouped_gemm/launch.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// The sums of a lane's columns.
template <int N>
struct alignas(4 * N) ColumnSums {
    float values[N];
};

template <int N>
struct BiasSmem {
    ColumnSums<N> parts[kWarps][kLanes];
};

template <typename Y>
struct BiasProblem {
    Y* dbias;
    const bf16* dy;
    const float* row_scale;
    const int *row_ids, *offsets;
    int out;
};

/// The lane's columns of every eighth row of the group.
template <int N, typename Y>
__device__ ColumnSums<N> sum_rows(const BiasProblem<Y>& p, int group, int vector) {
    ColumnSums<N> sums = {};
#pragma unroll 4
    for (int row = p.offsets[group] + warp_index(); row < p.offsets[group + 1];
         row += kWarps) {
        const int id = p.row_ids == nullptr ? row : p.row_ids[row];
        if (id < 0) continue;
        const float scale = p.row_scale == nullptr ? 1.0f : p.row_scale[row];
        const Bf16Vector<N> dy = vectors_of<N>(p.dy, id, p.out)[vector];
        for (int i = 0; i < N; ++i) sums.values[i] += scale * dy[i];
    }
    return sums;
}

// TUTORIAL: a lane has two columns, not the eight that it could read at once: 128 bytes a
// warp are whole sectors either way, and four times as many blocks find work.
/// One block for N columns a lane of one group; each warp has its share of the rows, and
/// the first adds up what they found.
template <int N, typename Y>
__global__ void __launch_bounds__(kThreads) bias_gradient_kernel(const BiasProblem<Y> p) {
    auto& s = gpu::shared_memory<BiasSmem<N>>();
    const int group = int(blockIdx.y), lane = lane_index();
    const int vector = int(blockIdx.x) * kLanes + lane;
    if (vector * N < p.out) s.parts[warp_index()][lane] = sum_rows<N>(p, group, vector);
    __syncthreads();
    if (warp_index() > 0 || vector * N >= p.out) return;
    ColumnSums<N> sums = {};
    for (int warp = 0; warp < kWarps; ++warp) {
        const ColumnSums<N> part = s.parts[warp][lane];
        for (int i = 0; i < N; ++i) sums.values[i] += part.values[i];
    }
    struct alignas(N * sizeof(Y)) Result {
        Y values[N];
    } result;
    for (int i = 0; i < N; ++i) result.values[i] = gpu::narrow<Y>(sums.values[i]);
    reinterpret_cast<Result*>(p.dbias + std::int64_t(group) * p.out)[vector] = result;
}

template <int N, typename Y>
void launch_bias_gradient(const BiasProblem<Y>& problem, std::int64_t groups,
                          cudaStream_t stream) {
    constexpr int kColumns = N * kLanes;
    gpu::launch("bias_gradient_kernel", bias_gradient_kernel<N, Y>,
                {dim3((problem.out + kColumns - 1) / kColumns, unsigned(groups)),
                 kThreads, sizeof(BiasSmem<N>), stream},
                problem);
}

template <typename Y>
Tensor backward_bias(const Tensor& dy, const Tensor& row_scale, const Tensor& row_ids,
                     const RowGroups& groups, cudaStream_t stream) {
    const std::int64_t out = dy.dim(1);
    Tensor dbias = gpu::device_empty<Y>({groups.num_groups(), out});
    const BiasProblem<Y> problem = {gpu::device_data<Y>(dbias),
                                    gpu::device_data<bf16>(dy),
                                    gpu::device_data<float>(row_scale),
                                    gpu::device_data<std::int32_t>(row_ids),
                                    gpu::device_data<std::int32_t>(groups.offsets),
                                    int(out)};
    if ((out | begin_of(problem.dy)) % 2 == 0)
        launch_bias_gradient<2>(problem, groups.num_groups(), stream);
    else
        launch_bias_gradient<1>(problem, groups.num_groups(), stream);
    return dbias;
}

}  // namespace

Tensor linear_backward_bias(const Tensor& dy, const Tensor& row_scale,
                            const Tensor& row_ids, const RowGroups& groups, DType dtype,
                            cudaStream_t stream) {
    if (row_scale.defined()) MOE_CHECK_EQ(row_scale.numel(), num_rows_of(dy, row_ids));
    if (dtype == DType::bf16)
        return backward_bias<bf16>(dy, row_scale, row_ids, groups, stream);
    MOE_CHECK(dtype == DType::f32);
    return backward_bias<float>(dy, row_scale, row_ids, groups, stream);
}

}  // namespace moe::optimized
