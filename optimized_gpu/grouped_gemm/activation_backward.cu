// activation_backward.cu: FC2's input gradient with the activation's backward in its
// epilogue, on the rung that is chosen; the first one's kernel.

#include "optimized_gpu/grouped_gemm/activation_backward.h"

#include "core/error.h"
#include "gpu/launch.h"
#include "gpu/tensor.h"
#include "optimized_gpu/grouped_gemm/grouped_gemm.h"
#include "optimized_gpu/grouped_gemm/launch.h"
#include "optimized_gpu/grouped_gemm/mma_sync.h"
#include "optimized_gpu/grouped_gemm/rung.h"

namespace moe::optimized {
namespace {

using bf16 = __nv_bfloat16;
using Smem = BackwardSmem<MmaSyncSmem, WarpPart<kRowBlocks, kColumnBlocks>::kAcross>;

/// One block per tile of da.
template <bool kGated, int Vector, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    activation_backward_kernel(const BackwardProblem<H> p) {
    auto& s = gpu::shared_memory<Smem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const int column = int(blockIdx.x) * kLines;
    const Operand dy = rows_of_group(p.dy, p.row_ids, tile.first_row, tile.rows, p.depth);
    const Operand weight = {p.weight + std::int64_t(tile.group) * p.depth * p.ffn,
                            nullptr, p.depth, p.ffn};
    Sums da;
    multiply<Along::depth, Along::lines, Vector>(da, s.operands, dy, tile.tile * kLines,
                                                 weight, column, p.depth);
    finish_activation_backward<kGated, Vector>(da, s, p, tile, column);
}

/// One thread per row: the parts of its dp, in the order of the tiles.
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(float* sums, const float* parts, int num_parts, const int* offsets,
                     int groups, std::int64_t num_rows) {
    const std::int64_t row = std::int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (row < offsets[0] || row >= offsets[groups]) return;
    float sum = 0.0f;
    for (int i = 0; i < num_parts; ++i) sum += parts[i * num_rows + row];
    sums[row] = sum;
}

template <typename H>
void mma_sync_activation_backward(const BackwardProblem<H>& problem,
                                  cudaStream_t stream) {
    const dim3 grid(tiles_of(problem.ffn),
                    most_row_tiles(problem.num_rows, problem.groups));
    const std::int64_t dy = problem.depth | begin_of(problem.dy);
    const std::int64_t weight_and_h =
        problem.ffn | begin_of(problem.weight) | begin_of(problem.h);
    with_vector(dy, weight_and_h, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("activation_backward_kernel",
                    problem.activation.gated
                        ? activation_backward_kernel<true, kVector, H>
                        : activation_backward_kernel<false, kVector, H>,
                    {grid, kThreads, sizeof(Smem), stream}, problem);
    });
}

template <typename H>
ActivationGradients run(BackwardProblem<H> problem, cudaStream_t stream,
                        const ActivationGradients& into) {
    const std::int64_t rows = problem.num_rows, ffn = problem.ffn;
    const unsigned tiles = tiles_of(ffn);
    ActivationGradients made = into;
    if (!made.dh.defined()) {
        made = {gpu::device_empty<bf16>({rows, problem.width()}),
                gpu::device_empty<bf16>({rows, ffn}),
                gpu::device_empty<float>({rows}),
                {}};
        if (tiles > 1) made.dp_parts = gpu::device_empty<float>({tiles, rows});
    }
    MOE_CHECK_EQ(made.a.numel(), rows * ffn);
    problem.dh = gpu::device_data<bf16>(made.dh);
    problem.a = gpu::device_data<bf16>(made.a);
    problem.dp = gpu::device_data<float>(tiles > 1 ? made.dp_parts : made.dp);
    switch (
        chosen_rung({problem.depth, ffn, begin_of(problem.dy), begin_of(problem.weight),
                     begin_of(problem.h), begin_of(problem.dh), begin_of(problem.a)})) {
        case Rung::mma_sync: mma_sync_activation_backward(problem, stream); break;
        case Rung::tma_wgmma: tma_wgmma_activation_backward(problem, stream); break;
        case Rung::warp_specialized:
            warp_specialized_activation_backward(problem, stream);
            break;
        case Rung::scheduler_and_epilogue: scheduled_activation_backward(problem, stream);
    }
    if (tiles > 1)
        gpu::launch("sum_parts_kernel", sum_parts_kernel,
                    gpu::one_thread_per(rows, stream), gpu::device_data<float>(made.dp),
                    problem.dp, int(tiles), problem.offsets, problem.groups, rows);
    return made;
}

}  // namespace

ActivationGradients linear_backward_activation(
    const Tensor& dy, const Tensor& weight, const Tensor& h, const Tensor& row_probs,
    const Tensor& row_ids, const RowGroups& groups, const ExpertActivation& activation,
    cudaStream_t stream, const ActivationGradients& into) {
    const std::int64_t ffn = weight.dim(2);
    MOE_CHECK_EQ(dy.dim(1), weight.dim(1));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    MOE_CHECK_EQ(h.dim(1), activation.gated ? 2 * ffn : ffn);
    MOE_CHECK_EQ(h.dim(0), num_rows_of(dy, row_ids));
    const auto make = [&]<typename H>() {
        return run(
            BackwardProblem<H>{nullptr, nullptr, nullptr, gpu::device_data<bf16>(dy),
                               gpu::device_data<bf16>(weight), gpu::device_data<H>(h),
                               gpu::device_data<float>(row_probs),
                               gpu::device_data<std::int32_t>(row_ids),
                               gpu::device_data<std::int32_t>(groups.offsets),
                               int(groups.num_groups()), int(weight.dim(1)), int(ffn),
                               h.dim(0), activation},
            stream, into);
    };
    if (h.dtype() == DType::bf16) return make.template operator()<bf16>();
    MOE_CHECK(h.dtype() == DType::f32);
    return make.template operator()<float>();
}

}  // namespace moe::optimized
