// rows.cu: rows scaled, and their inner products.

#include "optimized_gpu/rows.h"

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/bf16_vector.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// What every kernel here reads.
struct Rows {
    const bf16* x;
    const int *row_ids, *offsets;
    int groups, width;

    /// Where row r of x lies; negative: nowhere, it is zeros.
    __device__ int id(int row) const { return row_ids == nullptr ? row : row_ids[row]; }
    __device__ bool contain(int row) const {
        return row >= offsets[0] && row < offsets[groups];
    }
};

__device__ inline int row_of_warp() {
    return int(blockIdx.x) * kWarps + warp_index();
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(bf16* scaled, const Rows rows, const float* scale) {
    const int row = row_of_warp();
    if (!rows.contain(row)) return;
    const int id = rows.id(row);
    const float factor = scale[row];
    for (int i = lane_index(); i < rows.width / N; i += kLanes) {
        Bf16Vector<N> values = {};
        if (id >= 0) {
            values = vectors_of<N>(rows.x, id, rows.width)[i];
            for (int k = 0; k < N; ++k)
                values.values[k] = __float2bfloat16_rn(factor * values[k]);
        }
        vectors_of<N>(scaled, row, rows.width)[i] = values;
    }
}

template <int N>
__global__ void __launch_bounds__(kThreads)
    row_dots_kernel(float* dots, const Rows rows, const bf16* y) {
    const int row = row_of_warp();
    if (!rows.contain(row)) return;
    const int id = rows.id(row);
    const float sum = id < 0 ? 0.0f
                             : dot(vectors_of<N>(rows.x, id, rows.width),
                                   vectors_of<N>(y, row, rows.width), rows.width);
    if (lane_index() == 0) dots[row] = sum;
}

/// The n-th warp has the n-th row of all groups.
template <int N>
__global__ void __launch_bounds__(kThreads)
    add_bias_dots_kernel(float* dp, const Rows rows, const bf16* bias) {
    const GroupTile found = find_tile(rows.offsets, rows.groups, row_of_warp(), 1);
    if (found.group < 0) return;
    const int row = found.first_row + found.tile, id = rows.id(row);
    if (id < 0) return;
    const float sum = dot(vectors_of<N>(rows.x, id, rows.width),
                          vectors_of<N>(bias, found.group, rows.width), rows.width);
    if (lane_index() == 0) dp[row] += sum;
}

Rows make_rows(const Tensor& x, const Tensor& row_ids, const RowGroups& groups) {
    return {gpu::device_data<bf16>(x), gpu::device_data<std::int32_t>(row_ids),
            gpu::device_data<std::int32_t>(groups.offsets), int(groups.num_groups()),
            int(x.dim(1))};
}

gpu::LaunchConfig one_warp_per(std::int64_t rows, cudaStream_t stream) {
    return {dim3(unsigned((rows + kWarps - 1) / kWarps)), kThreads, 0, stream};
}

}  // namespace

Tensor scale_rows(const Tensor& x, const Tensor& scale, const Tensor& row_ids,
                  const RowGroups& groups, cudaStream_t stream) {
    const std::int64_t R = num_rows_of(x, row_ids), H = x.dim(1);
    MOE_CHECK_EQ(scale.numel(), R);
    Tensor scaled = gpu::device_empty<bf16>({R, H});
    with_vector(H, H, [&](auto vector) {
        gpu::launch("scale_rows_kernel", scale_rows_kernel<decltype(vector)::value>,
                    one_warp_per(R, stream), gpu::device_data<bf16>(scaled),
                    make_rows(x, row_ids, groups), gpu::device_data<float>(scale));
    });
    return scaled;
}

Tensor row_dots(const Tensor& x, const Tensor& y, const Tensor& row_ids,
                const RowGroups& groups, cudaStream_t stream) {
    const std::int64_t R = y.dim(0), H = y.dim(1);
    MOE_CHECK_EQ(num_rows_of(x, row_ids), R);
    MOE_CHECK_EQ(x.dim(1), H);
    Tensor dots = gpu::device_empty<float>({R});
    with_vector(H, H, [&](auto vector) {
        gpu::launch("row_dots_kernel", row_dots_kernel<decltype(vector)::value>,
                    one_warp_per(R, stream), gpu::device_data<float>(dots),
                    make_rows(x, row_ids, groups), gpu::device_data<bf16>(y));
    });
    return dots;
}

void add_bias_dots(Tensor& dp, const Tensor& bias, const Tensor& dy,
                   const Tensor& row_ids, const RowGroups& groups, cudaStream_t stream) {
    const std::int64_t R = num_rows_of(dy, row_ids), H = dy.dim(1);
    MOE_CHECK_EQ(dp.numel(), R);
    MOE_CHECK_EQ(bias.dim(0), groups.num_groups());
    MOE_CHECK_EQ(bias.dim(1), H);
    with_vector(H, H, [&](auto vector) {
        gpu::launch("add_bias_dots_kernel", add_bias_dots_kernel<decltype(vector)::value>,
                    one_warp_per(R, stream), gpu::device_data<float>(dp),
                    make_rows(dy, row_ids, groups), gpu::device_data<bf16>(bias));
    });
}

}  // namespace moe::optimized
