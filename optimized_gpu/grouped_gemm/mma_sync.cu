// mma_sync.cu: the products of grouped_gemm.h on the first rung, 1_mma_sync.

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/epilogue.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/schedule.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// What a product of rows and weights works on, see grouped_gemm.h.
template <typename Y>
struct RowsProblem {
    Y* y;
    const bf16 *x, *weight, *bias;
    const float* row_scale;
    const int *row_ids, *offsets;
    int groups, depth, columns;  ///< summed over; of y
};

/// One block per tile of y. W's rows are y's columns (forward), or what is summed over
/// (backward).
template <Along kWeight, int Vector, typename Y>
__global__ void __launch_bounds__(kThreads) grouped_rows_kernel(const RowsProblem<Y> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const std::int64_t first = tile.first_row;
    const int row = tile.tile * kLines, column = int(blockIdx.x) * kLines;
    const Operand x = rows_of_group(p.x, p.row_ids, first, tile.rows, p.depth);
    const bool forward = kWeight == Along::depth;
    const Operand weight = {p.weight + std::int64_t(tile.group) * p.depth * p.columns,
                            nullptr, forward ? p.columns : p.depth,
                            forward ? p.depth : p.columns};
    Sums sums;
    multiply<Along::depth, kWeight, Vector>(sums, s, x, row, weight, column, p.depth);
    const int rows = tile.rows - row, columns = p.columns - column;
    add_bias(sums,
             p.bias == nullptr ? nullptr
                               : p.bias + std::int64_t(tile.group) * p.columns + column,
             p.row_scale == nullptr ? nullptr : p.row_scale + first + row, rows, columns);
    store_tile(
        s, sums,
        Target<Y>{p.y + (first + row) * p.columns + column, p.columns, rows, columns});
}

template <typename Y>
struct WeightProblem {
    Y* dweight;
    const bf16 *dy, *x;
    const int *dy_row_ids, *x_row_ids, *offsets;
    int out, in;
};

/// One block per tile of dW of one group; what is summed over are the group's rows.
template <int Vector, typename Y>
__global__ void __launch_bounds__(kThreads)
    grouped_weight_kernel(const WeightProblem<Y> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const int group = int(blockIdx.z);
    const std::int64_t first = p.offsets[group];
    const int rows = p.offsets[group + 1] - int(first);
    const int row = int(blockIdx.y) * kLines, column = int(blockIdx.x) * kLines;
    const Operand dy = rows_of_group(p.dy, p.dy_row_ids, first, rows, p.out);
    const Operand x = rows_of_group(p.x, p.x_row_ids, first, rows, p.in);
    Sums sums;
    multiply<Along::lines, Along::lines, Vector>(sums, s, dy, row, x, column, rows);
    const std::int64_t target = (std::int64_t(group) * p.out + row) * p.in + column;
    store_tile(s, sums, Target<Y>{p.dweight + target, p.in, p.out - row, p.in - column});
}

template <Along kWeight, typename Y>
Tensor multiply_rows(RowsProblem<Y> problem, std::int64_t rows, cudaStream_t stream) {
    Tensor y = gpu::device_empty<Y>({rows, problem.columns});
    problem.y = gpu::device_data<Y>(y);
    // Rows of x, and those of W one way or the other, are copied.
    const int weight_width = kWeight == Along::depth ? problem.depth : problem.columns;
    with_vector(problem.depth, weight_width, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch(
            "grouped_rows_kernel", grouped_rows_kernel<kWeight, kVector, Y>,
            {dim3(tiles_of(problem.columns), most_row_tiles(rows, problem.groups)),
             kThreads, sizeof(MmaSyncSmem), stream},
            problem);
    });
    return y;
}

template <typename Y>
Tensor forward(const Tensor& x, const Tensor& weight, const Bias& bias,
               const Tensor& row_ids, const RowGroups& groups, cudaStream_t stream) {
    const RowsProblem<Y> problem = {nullptr,
                                    gpu::device_data<bf16>(x),
                                    gpu::device_data<bf16>(weight),
                                    gpu::device_data<bf16>(bias.values),
                                    gpu::device_data<float>(bias.row_scale),
                                    gpu::device_data<std::int32_t>(row_ids),
                                    gpu::device_data<std::int32_t>(groups.offsets),
                                    int(groups.num_groups()),
                                    int(weight.dim(2)),
                                    int(weight.dim(1))};
    return multiply_rows<Along::depth>(problem, num_rows_of(x, row_ids), stream);
}

template <typename Y>
Tensor backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                       const Tensor& x_row_ids, const RowGroups& groups,
                       cudaStream_t stream) {
    const std::int64_t out = dy.dim(1), in = x.dim(1);
    Tensor dweight = gpu::device_empty<Y>({groups.num_groups(), out, in});
    const WeightProblem<Y> problem = {gpu::device_data<Y>(dweight),
                                      gpu::device_data<bf16>(dy),
                                      gpu::device_data<bf16>(x),
                                      gpu::device_data<std::int32_t>(dy_row_ids),
                                      gpu::device_data<std::int32_t>(x_row_ids),
                                      gpu::device_data<std::int32_t>(groups.offsets),
                                      int(out),
                                      int(in)};
    with_vector(out, in, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("grouped_weight_kernel", grouped_weight_kernel<kVector, Y>,
                    {dim3(tiles_of(in), tiles_of(out), unsigned(groups.num_groups())),
                     kThreads, sizeof(MmaSyncSmem), stream},
                    problem);
    });
    return dweight;
}

}  // namespace

Tensor linear_forward(const Tensor& x, const Tensor& weight, const Bias& bias,
                      const Tensor& row_ids, const RowGroups& groups, DType dtype,
                      cudaStream_t stream) {
    MOE_CHECK_EQ(x.dim(1), weight.dim(2));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    if (dtype == DType::bf16)
        return forward<bf16>(x, weight, bias, row_ids, groups, stream);
    MOE_CHECK(dtype == DType::f32);
    return forward<float>(x, weight, bias, row_ids, groups, stream);
}

Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups, cudaStream_t stream) {
    MOE_CHECK_EQ(dy.dim(1), weight.dim(1));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    const RowsProblem<bf16> problem = {nullptr,
                                       gpu::device_data<bf16>(dy),
                                       gpu::device_data<bf16>(weight),
                                       nullptr,
                                       nullptr,
                                       nullptr,
                                       gpu::device_data<std::int32_t>(groups.offsets),
                                       int(groups.num_groups()),
                                       int(weight.dim(1)),
                                       int(weight.dim(2))};
    return multiply_rows<Along::lines>(problem, dy.dim(0), stream);
}

Tensor linear_backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                              const Tensor& x_row_ids, const RowGroups& groups,
                              DType dtype, cudaStream_t stream) {
    MOE_CHECK_EQ(num_rows_of(dy, dy_row_ids), num_rows_of(x, x_row_ids));
    if (dtype == DType::bf16)
        return backward_weight<bf16>(dy, dy_row_ids, x, x_row_ids, groups, stream);
    MOE_CHECK(dtype == DType::f32);
    return backward_weight<float>(dy, dy_row_ids, x, x_row_ids, groups, stream);
}

}  // namespace moe::optimized
