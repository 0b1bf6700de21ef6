// up_projection.cu: FC1 with the activation in its epilogue, on the rung that is chosen;
// the first one's kernel.

#include "optimized_gpu/grouped_gemm/up_projection.h"

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

/// One block per tile of h.
template <bool kGated, int Vector, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    up_projection_kernel(const UpProblem<H> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const int line = int(blockIdx.x) * kLines, width = p.width();
    const Operand x = rows_of_group(p.x, p.row_ids, tile.first_row, tile.rows, p.depth);
    const Operand weight = {p.weight + std::int64_t(tile.group) * width * p.depth,
                            nullptr, width, p.depth, kGated ? p.ffn : 0};
    Sums sums;
    multiply<Along::depth, Along::depth, Vector>(sums, s, x, tile.tile * kLines, weight,
                                                 line, p.depth);
    finish_up_projection<kGated, kRowBlocks, kColumnBlocks>(sums, s.a[0], p, tile, line);
}

template <typename H>
void mma_sync_up_projection(const UpProblem<H>& problem, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    const std::int64_t lines = gated ? (problem.ffn + 15) / 16 * 32 : problem.ffn;
    const dim3 grid(tiles_of(lines), most_row_tiles(problem.rows, problem.groups));
    const std::int64_t x = problem.depth | begin_of(problem.x);
    const std::int64_t weight = problem.depth | begin_of(problem.weight);
    with_vector(x, weight, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("up_projection_kernel",
                    gated ? up_projection_kernel<true, kVector, H>
                          : up_projection_kernel<false, kVector, H>,
                    {grid, kThreads, sizeof(MmaSyncSmem), stream}, problem);
    });
}

template <typename H>
UpProjection run(UpProblem<H> problem, cudaStream_t stream, const UpProjection& into) {
    UpProjection made = into;
    if (!made.h.defined())
        made = {gpu::device_empty<H>({problem.rows, problem.width()}),
                gpu::device_empty<bf16>({problem.rows, problem.ffn})};
    MOE_CHECK_EQ(made.a.numel(), problem.rows * problem.ffn);
    problem.h = gpu::device_data<H>(made.h);
    problem.a = gpu::device_data<bf16>(made.a);
    switch (chosen_rung({problem.depth, begin_of(problem.x), begin_of(problem.weight),
                         begin_of(problem.h), begin_of(problem.a)})) {
        case Rung::mma_sync: mma_sync_up_projection(problem, stream); break;
        case Rung::tma_wgmma: tma_wgmma_up_projection(problem, stream); break;
        case Rung::warp_specialized:
            warp_specialized_up_projection(problem, stream);
            break;
        case Rung::scheduler_and_epilogue: scheduled_up_projection(problem, stream);
    }
    return made;
}

}  // namespace

UpProjection linear_forward_activation(const Tensor& x, const Tensor& weight,
                                       const Tensor& bias, const Tensor& row_probs,
                                       const Tensor& row_ids, const RowGroups& groups,
                                       const ExpertActivation& activation, DType dtype,
                                       cudaStream_t stream, const UpProjection& into) {
    MOE_CHECK_EQ(x.dim(1), weight.dim(2));
    MOE_CHECK_EQ(weight.dim(0), groups.num_groups());
    MOE_CHECK(!activation.gated || weight.dim(1) % 2 == 0);
    const std::int64_t rows = num_rows_of(x, row_ids);
    const auto make = [&]<typename H>() {
        return run(
            UpProblem<H>{nullptr, nullptr, gpu::device_data<bf16>(x),
                         gpu::device_data<bf16>(weight), gpu::device_data<bf16>(bias),
                         gpu::device_data<float>(row_probs),
                         gpu::device_data<std::int32_t>(row_ids),
                         gpu::device_data<std::int32_t>(groups.offsets),
                         int(groups.num_groups()), int(weight.dim(2)),
                         int(weight.dim(1) / (activation.gated ? 2 : 1)), rows,
                         activation},
            stream, into);
    };
    if (dtype == DType::bf16) return make.template operator()<bf16>();
    MOE_CHECK(dtype == DType::f32);
    return make.template operator()<float>();
}

}  // namespace moe::optimized
