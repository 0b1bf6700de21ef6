// up_projection.cu: FC1 with the activation in its epilogue, on the first rung.

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

template <typename H>
struct UpProblem {
    H* h;
    bf16* a;
    const bf16 *x, *weight, *bias;
    const float* row_probs;
    const int *row_ids, *offsets;
    int groups, depth, ffn;
    ExpertActivation activation;

    __device__ int width() const { return activation.gated ? 2 * ffn : ffn; }
};

/// The column of h that is column `line` of the result, see row_of(); -1: none.
template <bool kGated>
__device__ int column_of_h(int line, int ffn) {
    return row_of({nullptr, nullptr, ffn, 0, kGated ? ffn : 0}, line);
}

template <bool kGated, typename H>
__device__ void add_bias_to_h(Sums& sums, const UpProblem<H>& p, int group, int column) {
    if (p.bias == nullptr) return;
    const bf16* const bias = p.bias + std::int64_t(group) * p.width();
    for_each_sum([&](int i, int j, int e, int, int line) {
        const int h_column = column_of_h<kGated>(column + line, p.ffn);
        if (h_column >= 0) sums[i][j][e] += __bfloat162float(bias[h_column]);
    });
}

/// Writes h as a tile of its own columns, eight at a time where rows allow it.
template <bool kGated>
__device__ void store_h(MmaSyncSmem& s, const Sums& sums, bf16* h, int rows, int column,
                        int ffn) {
    constexpr int kChunks = kLines / kChunk;
    const int width = kGated ? 2 * ffn : ffn;
    const bf16* const staged = stage_tile(s, sums);
    const bool whole = ffn % kChunk == 0;
    for (int i = int(threadIdx.x); i < kLines * kChunks; i += kThreads) {
        const int row = i / kChunks, chunk = i % kChunks;
        const int first = column_of_h<kGated>(column + chunk * kChunk, ffn);
        if (row >= rows || first < 0) continue;
        const bf16* const source = staged + chunk_at<Along::lines>(row, chunk);
        bf16* const target = h + row * std::int64_t(width) + first;
        // Columns of this half that are left
        const int left = (first < ffn ? ffn : width) - first;
        if (whole)
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
        else
            for (int k = 0; k < kChunk && k < left; ++k) target[k] = source[k];
    }
}
template <bool kGated>
__device__ void store_h(MmaSyncSmem&, const Sums& sums, float* h, int rows, int column,
                        int ffn) {
    const std::int64_t width = kGated ? 2 * ffn : ffn;
    for_each_sum([&](int i, int j, int e, int row, int line) {
        const int h_column = column_of_h<kGated>(column + line, ffn);
        if (row < rows && h_column >= 0) h[row * width + h_column] = sums[i][j][e];
    });
}

/// The activation of a thread's sums takes the place of the gates, or of all of h.
template <bool kGated>
__device__ void activate(Sums& sums, const ExpertActivation& activation,
                         const float* row_probs, int rows) {
    for_each_sum([&](int i, int j, int e, int row, int) {
        const float p = row_probs == nullptr || row >= rows ? 1.0f : row_probs[row];
        if constexpr (kGated) {
            if (j < kColumnBlocks / 2)
                sums[i][j][e] = p * activation.forward(sums[i][j][e],
                                                       sums[i][j + kColumnBlocks / 2][e]);
        } else {
            sums[i][j][e] = p * activation.forward(sums[i][j][e]);
        }
    });
}

/// Writes a; of a gated unit every other 16 columns of the tile are its columns.
template <bool kGated>
__device__ void store_a(MmaSyncSmem& s, const Sums& sums, bf16* a, int rows, int column,
                        int ffn) {
    constexpr int kBlocks = kGated ? kColumnBlocks / 2 : kColumnBlocks;
    constexpr Along kWide = kGated ? Along::depth : Along::lines;
    constexpr int kChunks = 4 * kBlocks;
    const bf16* const staged = stage_tile<kBlocks>(s, sums);
    const bool whole = ffn % kChunk == 0;
    for (int i = int(threadIdx.x); i < kLines * kChunks; i += kThreads) {
        const int row = i / kChunks, n = i % kChunks;
        const int chunk = kGated ? n / 2 * 4 + n % 2 : n;
        const int first = column_of_h<kGated>(column + chunk * kChunk, ffn);
        if (row >= rows || first < 0) continue;
        const bf16* const source = staged + chunk_at<kWide>(row, n);
        bf16* const target = a + row * std::int64_t(ffn) + first;
        if (whole)
            *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(source);
        else
            for (int k = 0; k < kChunk && first + k < ffn; ++k) target[k] = source[k];
    }
}

/// One block per tile of h.
template <bool kGated, int Vector, typename H>
__global__ void __launch_bounds__(kThreads, 1)
    up_projection_kernel(const UpProblem<H> p) {
    auto& s = gpu::shared_memory<MmaSyncSmem>();
    const GroupTile tile = find_tile(p.offsets, p.groups, int(blockIdx.y), kLines);
    if (tile.group < 0) return;
    const std::int64_t first = tile.first_row;
    const int row = tile.tile * kLines, column = int(blockIdx.x) * kLines;
    const int width = p.width(), rows = tile.rows - row;
    const Operand x = rows_of_group(p.x, p.row_ids, first, tile.rows, p.depth);
    const Operand weight = {p.weight + std::int64_t(tile.group) * width * p.depth,
                            nullptr, width, p.depth, kGated ? p.ffn : 0};
    Sums sums;
    multiply<Along::depth, Along::depth, Vector>(sums, s, x, row, weight, column,
                                                 p.depth);
    add_bias_to_h<kGated>(sums, p, tile.group, column);
    store_h<kGated>(s, sums, p.h + (first + row) * width, rows, column, p.ffn);
    __syncthreads();
    activate<kGated>(sums, p.activation,
                     p.row_probs == nullptr ? nullptr : p.row_probs + first + row, rows);
    store_a<kGated>(s, sums, p.a + (first + row) * p.ffn, rows, column, p.ffn);
}

template <typename H>
UpProjection run(UpProblem<H> problem, std::int64_t rows, cudaStream_t stream) {
    const bool gated = problem.activation.gated;
    const std::int64_t ffn = problem.ffn;
    UpProjection made = {gpu::device_empty<H>({rows, gated ? 2 * ffn : ffn}),
                         gpu::device_empty<bf16>({rows, ffn})};
    problem.h = gpu::device_data<H>(made.h);
    problem.a = gpu::device_data<bf16>(made.a);
    const std::int64_t lines = gated ? (ffn + 15) / 16 * 32 : ffn;
    const dim3 grid(tiles_of(lines), most_row_tiles(rows, problem.groups));
    with_vector(problem.depth, problem.depth, [&](auto vector) {
        constexpr int kVector = decltype(vector)::value;
        gpu::launch("up_projection_kernel",
                    gated ? up_projection_kernel<true, kVector, H>
                          : up_projection_kernel<false, kVector, H>,
                    {grid, kThreads, sizeof(MmaSyncSmem), stream}, problem);
    });
    return made;
}

}  // namespace

UpProjection linear_forward_activation(const Tensor& x, const Tensor& weight,
                                       const Tensor& bias, const Tensor& row_probs,
                                       const Tensor& row_ids, const RowGroups& groups,
                                       const ExpertActivation& activation, DType dtype,
                                       cudaStream_t stream) {
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
                         int(weight.dim(1) / (activation.gated ? 2 : 1)), activation},
            rows, stream);
    };
    if (dtype == DType::bf16) return make.template operator()<bf16>();
    MOE_CHECK(dtype == DType::f32);
    return make.template operator()<float>();
}

}  // namespace moe::optimized
