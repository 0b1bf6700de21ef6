// grouped_gemm.cu: the products of grouped_gemm.h, each on the rung that is chosen.

#include "optimized_gpu/grouped_gemm/grouped_gemm.h"

#include "core/error.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/problem.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;

/// The caller's tensor, or a new one.
template <typename Y>
Tensor result(const Tensor& into, Shape shape) {
    if (!into.defined()) return gpu::device_empty<Y>(std::move(shape));
    MOE_CHECK(into.shape() == shape);
    return into;
}

template <Along kWeight, typename Y>
Tensor multiply_rows(RowsProblem<Y> problem, cudaStream_t stream, const Tensor& into) {
    Tensor y = result<Y>(into, {problem.rows, problem.columns});
    problem.y = gpu::device_data<Y>(y);
    const int weight_width = kWeight == Along::depth ? problem.depth : problem.columns;
    switch (chosen_rung({problem.depth, weight_width, begin_of(problem.x),
                         begin_of(problem.weight), begin_of(problem.y)})) {
        case Rung::mma_sync: mma_sync_rows<kWeight>(problem, stream); break;
        case Rung::tma_wgmma: tma_wgmma_rows<kWeight>(problem, stream); break;
        case Rung::warp_specialized:
            warp_specialized_rows<kWeight>(problem, stream);
            break;
        case Rung::scheduler_and_epilogue: scheduled_rows<kWeight>(problem, stream);
    }
    return y;
}

template <typename Y>
Tensor forward(const Tensor& x, const Tensor& weight, const Bias& bias,
               const Tensor& row_ids, const RowGroups& groups, cudaStream_t stream,
               const Tensor& into) {
    const RowsProblem<Y> problem = {nullptr,
                                    gpu::device_data<bf16>(x),
                                    gpu::device_data<bf16>(weight),
                                    gpu::device_data<bf16>(bias.values),
                                    gpu::device_data<float>(bias.row_scale),
                                    gpu::device_data<std::int32_t>(row_ids),
                                    gpu::device_data<std::int32_t>(groups.offsets),
                                    int(groups.num_groups()),
                                    int(weight.dim(2)),
                                    int(weight.dim(1)),
                                    num_rows_of(x, row_ids)};
    return multiply_rows<Along::depth>(problem, stream, into);
}

template <typename Y>
Tensor backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                       const Tensor& x_row_ids, const RowGroups& groups,
                       cudaStream_t stream, const Tensor& into) {
    const std::int64_t out = dy.dim(1), in = x.dim(1);
    Tensor dweight = result<Y>(into, {groups.num_groups(), out, in});
    const WeightProblem<Y> problem = {gpu::device_data<Y>(dweight),
                                      gpu::device_data<bf16>(dy),
                                      gpu::device_data<bf16>(x),
                                      gpu::device_data<std::int32_t>(dy_row_ids),
                                      gpu::device_data<std::int32_t>(x_row_ids),
                                      gpu::device_data<std::int32_t>(groups.offsets),
                                      int(groups.num_groups()),
                                      int(out),
                                      int(in),
                                      num_rows_of(x, x_row_ids)};
    switch (chosen_rung({out, in, begin_of(problem.dy), begin_of(problem.x),
                         begin_of(problem.dweight)})) {
        case Rung::mma_sync: mma_sync_weight(problem, stream); break;
        case Rung::tma_wgmma: tma_wgmma_weight(problem, stream); break;
        case Rung::warp_specialized: warp_specialized_weight(problem, stream); break;
        case Rung::scheduler_and_epilogue: scheduled_weight(problem, stream);
    }
    return dweight;
}

}  // namespace

Tensor linear_forward(const Tensor& x, const Tensor& weight, const Bias& bias,
                      const Tensor& row_ids, const RowGroups& groups, DType dtype,
                      cudaStream_t stream, const Tensor& into) {
    MOE_CHECK_EQ(x.dim(1), weight.dim(2));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    if (dtype == DType::bf16)
        return forward<bf16>(x, weight, bias, row_ids, groups, stream, into);
    MOE_CHECK(dtype == DType::f32);
    return forward<float>(x, weight, bias, row_ids, groups, stream, into);
}

Tensor linear_backward_input(const Tensor& dy, const Tensor& weight,
                             const RowGroups& groups, cudaStream_t stream,
                             const Tensor& into) {
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
                                       int(weight.dim(2)),
                                       dy.dim(0)};
    return multiply_rows<Along::lines>(problem, stream, into);
}

Tensor linear_backward_weight(const Tensor& dy, const Tensor& dy_row_ids, const Tensor& x,
                              const Tensor& x_row_ids, const RowGroups& groups,
                              DType dtype, cudaStream_t stream, const Tensor& into) {
    MOE_CHECK_EQ(num_rows_of(dy, dy_row_ids), num_rows_of(x, x_row_ids));
    if (dtype == DType::bf16)
        return backward_weight<bf16>(dy, dy_row_ids, x, x_row_ids, groups, stream, into);
    MOE_CHECK(dtype == DType::f32);
    return backward_weight<float>(dy, dy_row_ids, x, x_row_ids, groups, stream, into);
}

}  // namespace moe::optimized
